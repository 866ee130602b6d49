"""A checkpoint and a limit in; an artifact whose weights have formats of their own, and ``search.json``, out."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from llmcompress.artifact import manifest_sha256, write_errors, write_report
from llmcompress.artifact.placement import checked_output
from llmcompress.compression.forecast import Forecast, forecast
from llmcompress.compression.forecast.peak_memory import LIBRARY_BYTES
from llmcompress.compression.layers import constants_taken_by, layer_table
from llmcompress.compression.nncf.graph_reading import graphs_read_once
from llmcompress.compression.output import texts_converted_once
from llmcompress.errors import ModelError, ResourceError
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.file_names import SEARCH_REPORT
from llmcompress.report.record import Stages, environment_record
from llmcompress.report.search import (
    Contender,
    CorrectionRecord,
    ExpertsRecord,
    FrontPoint,
    RepairRecord,
    SearchReport,
    SpeedRecord,
    WeightChoice,
)
from llmcompress.searching.candidates import BACKUP, Formats, Table, Uncompressed, by_gptq, by_name, data_free, uniform
from llmcompress.searching.contest import Calibrated, Entrant, Output, Planned, Workshop, contenders, decide
from llmcompress.searching.correction import corrected
from llmcompress.searching.crew import Crew, crew_of
from llmcompress.searching.pieces import pieces
from llmcompress.searching.planning import first_plans, further_directory, further_sizes, planned_for, speed_record
from llmcompress.searching.repair import repaired
from llmcompress.searching.shelf import shelf_of
from llmcompress.searching.solver import Plan, front, kl_per_further_byte, total_bytes, total_kl
from llmcompress.searching.speed import timed
from llmcompress.searching.windows import SearchWindows, search_windows, stacked
from llmcompress.spec import Access, Recipe
from llmcompress.spec.search import Format, SearchSpec
from llmcompress.system.background import available_for
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.executors import ExecutorName
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.memory import own_bytes
from llmcompress.system.progress import Reporter

NUM_FRONT_POINTS = 16
SLOPE = 1e-4
"""Relative, over which a slope is taken."""
BYTES_PER_PARAMETER = 7
"""Of the verdict: weights of the original in f32, and those of four plans."""
BYTES_PER_STACKED = 4
"""Further ones of stacks of experts, which are in f32 while sensitivities are taken, with the gradient of one."""
JOINT_BYTES_PER_PARAMETER = 5
"""Further ones where errors make up for each other: products of a layer's inputs, as a llama's layers have them."""


@library_call
def search(
    source: str | Path,
    spec: SearchSpec,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    allow_nonfinite: bool = False,
    allow_links: bool = False,
    overwrite: bool = False,
    executor: ExecutorName = "local",
    address: str | None = None,
    progress: ProgressOption = "auto",
) -> SearchReport:
    """Give each weight the format that costs least under a limit, and write the artifact with ``search.json``.

    Each weight's actual error in each format, weighed by the Fisher information of a few windows, predicts the KL
    divergence that it adds (see ``llmcompress.searching.sensitivity``), corrected by a few plans that are measured; a
    solver takes the best plan. The plan is measured against the best uniform format and NNCF's mixed precision of no
    more bytes on windows that follow in the text; where it does not win beyond noise, the best of these is written.

    Args:
        source: Hub id or checkpoint directory.
        spec: The limit, the formats, and the text.
        output_dir: Appears complete, by one rename, or not at all; further sizes of the spec appear next to it.
        revision: Branch, tag or commit of a Hub source.
        trust_remote_code: Run Python code that the repository brings.
        offline: Use local files and caches only.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        allow_links: Follow links that leave the source's directory.
        overwrite: Replace an existing artifact, in one step.
        executor: ``local``, or ``ray`` (the extra ``ray``): the nodes of a cluster make weights by GPTQ and measure
            plans, each its share. Sources given as directories and the output must be at the same path on every node.
        address: Of the cluster; None: ``RAY_ADDRESS``, or a Ray of its own on this machine.
        progress: Told of every step.

    Raises:
        UsageError: The output exists, no plan of these formats keeps the limit, or there is no such executor.
        ModelError: The source is no checkpoint in floating point, cannot be converted, or gives no finite logits.
        DataError: A text cannot be used, is too short, or has 64 tokens in a row in common with another one.
        ResourceError: Memory will not suffice.
        HubError, SecurityError, WriteError, LockedError: as ``compress``.
    """
    progress = reporter(progress)
    quiet_libraries()
    stages = Stages()
    access = Access(revision, trust_remote_code, offline, allow_nonfinite, allow_links)
    found = resolve(source, access, vision=True)
    needed_bytes = _require_searchable(found, spec)
    inputs = [found.path] if found.id is None else []
    output = checked_output(output_dir, inputs, overwrite=overwrite)
    for size in spec.front:
        checked_output(further_directory(output, size), inputs, overwrite=overwrite)
    named = found.id or str(Path(source).absolute())
    with crew_of(executor, address, named, access.at(found.revision), needed_bytes) as crew:
        return _searched(found, spec, Output(output, overwrite, True, offline), access, crew, stages, progress)


def _searched(
    found: Source,
    spec: SearchSpec,
    output: Output,
    access: Access,
    crew: Crew | None,
    stages: Stages,
    progress: Reporter,
) -> SearchReport:
    """Search, where everything has been checked."""
    with stages.stage("read the text"):
        windows = search_windows(found, spec, offline=access.offline)
    found = fetch_weights(found, progress=progress)
    with stages.stage("load"):
        loaded = load(found, tokenizer=False, allow_nonfinite=access.allow_nonfinite, progress=progress)
    with _place_next_to(output.directory) as place, graphs_read_once(), texts_converted_once():
        shop = workshop(loaded, spec, windows, place, progress, crew)
        predicted = _first_table(shop, stages)
        with stages.stage("correct predictions"):
            table, correction = corrected_table(shop, predicted)
        planned, repair, speed = _best_plan(shop, table, stages)
        with stages.stage("verify"):
            plan, others = contenders(shop, table, planned)
        chosen, gain, reason = decide(plan, [each for each, _ in others], spec.confidence)
        with stages.stage("write"):
            manifest = shop.write(planned.plan if chosen is plan else {}, chosen.recipe, output)
        with stages.stage("further sizes"):
            further = further_sizes(shop, table, planned, output)
    report = SearchReport(
        llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
        spec=_portable(spec, windows),
        manifest_sha256=manifest_sha256(output.directory),
        text=windows.held_out.record,
        num_sensitivity_tokens=table.num_tokens,
        num_parameters=manifest.num_parameters,
        contenders=(
            _contender(plan, "searched", table.predicted(planned.plan), spec.confidence),
            *(_contender(each, rival.kind, rival.predicted_kl, spec.confidence) for each, rival in others),
        ),
        gain=gain,
        chosen=chosen.name,
        reason=reason,
        weights=_choices(table, planned.plan),
        experts=table.experts,
        correction=correction
        and correction.model_copy(update={"uncorrected_kl": predicted.predicted(predicted.same(planned.plan))}),
        repair=repair,
        speed=speed,
        front=_front(table, planned),
        kl_per_further_mb=_kl_per_further_mb(table, planned) if spec.phase is None else None,
        further=further,
        environment=environment_record(int(plan.scored.properties.get("INFERENCE_NUM_THREADS", 0))),
        measured=stages.measured(),
    )
    write_report(output.directory, SEARCH_REPORT, report)
    return report


def _portable(spec: SearchSpec, windows: SearchWindows) -> SearchSpec:
    """With no path of this machine."""
    calibration = spec.calibration and spec.calibration.portable()
    return spec.model_copy(update={"dataset": windows.held_out.record.dataset, "calibration": calibration})


def _first_table(shop: Workshop, stages: Stages) -> Table:
    """What weights cost, before a plan is measured."""
    with stages.stage("sensitivity"):
        original = uncompressed(shop)
    with stages.stage("candidates"):
        table = predicted_table(shop, original)
    if shop.spec.phase is None:
        return table
    del original
    with stages.stage("time products"):
        return timed(table, shop.loaded, shop.spec.phase, shop.progress)


def _best_plan(shop: Workshop, table: Table, stages: Stages) -> tuple[Planned, RepairRecord | None, SpeedRecord | None]:
    """The plan that is held against others."""
    with stages.stage("plan"):
        planned, repair, speed = planned_for(shop, table), None, None
    if shop.spec.budget_s is not None:
        with stages.stage("repair"):
            planned, repair = repaired(shop, table, planned, shop.spec.budget_s)
    if shop.spec.phase is not None:
        with stages.stage("time models"):
            speed = speed_record(shop, table, planned)
    return planned, repair, speed


def _require_searchable(found: Source, spec: SearchSpec) -> int:
    """Refuse what has no floats in torch, and what does not fit; the bytes that a search takes."""
    if found.layout == "ir" or is_repacked(found.config):
        kind = "an OpenVINO model" if found.layout == "ir" else "quantized already"
        raise ModelError(
            f"a search compares with the original weights in torch, and the source is {kind}",
            where=found.name,
            hint="give the original checkpoint",
        )
    if found.sees and found.runs_code:
        raise ModelError(
            "a search asks the model's class in torch about text, and that of what sees is code of its repository here",
            where=found.name,
            hint="compress it by a recipe",
        )
    predicted = forecast(found, Recipe(name="original", method="none"))
    # Part of the libraries has been imported.
    whole = needed_memory(predicted, spec)
    needed = whole - min(own_bytes(), LIBRARY_BYTES)
    available = available_for(needed)
    if needed > available:
        raise ResourceError(
            f"a search needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
            where="memory",
            hint="close other programs, or take a machine with more memory",
        )
    return whole


def needed_memory(predicted: Forecast, spec: SearchSpec) -> int:
    """Bytes that a search of a model takes in a process of its own.

    Args:
        predicted: Of the model, whatever the recipe.
        spec: Whether GPTQ is tried.
    """
    of_each = BYTES_PER_PARAMETER + (JOINT_BYTES_PER_PARAMETER if spec.is_calibrated else 0)
    in_stacks = sum(math.prod(layer.shape) for layer in predicted.layers if len(layer.shape) == 3)
    return LIBRARY_BYTES + predicted.num_parameters * of_each + in_stacks * BYTES_PER_STACKED


@contextlib.contextmanager
def _place_next_to(output: Path) -> Iterator[Path]:
    """A directory for the contenders, on the output's disk; what a killed search left there goes first."""
    place = output.with_name(f".{output.name}.search")
    shutil.rmtree(place, ignore_errors=True)
    try:
        with write_errors(output):
            place.mkdir(parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def workshop(
    loaded: LoadedModel,
    spec: SearchSpec,
    windows: SearchWindows,
    place: Path,
    progress: Reporter,
    crew: Crew | None = None,
) -> Workshop:
    """Where contenders of a search are made: with what GPTQ goes by, and the shelf of what it made by that before."""
    calibration = windows.calibration
    shelf = calibration and shelf_of(loaded, calibration.record, place / "candidates")
    calibrated = Calibrated(calibration, shelf) if calibration and shelf else None
    crew = crew and crew._replace(place=place)
    return Workshop(loaded, spec, place, windows.looked_at, windows.held_out, calibrated, progress, crew)


def uncompressed(shop: Workshop) -> Uncompressed:
    """The model that errors are taken from, with what they cost."""
    from llmcompress.searching.sensitivity import sensitivity

    loaded = shop.loaded
    model = load_torch_model(loaded.source)
    token_ids, jointly = stacked(shop.looked_at), shop.calibrated is not None
    sensitive = sensitivity(model, token_ids, shop.spec.seed, shop.place, shop.progress, jointly=jointly)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    layers = {layer.name for layer in layer_table(loaded.model)}
    return Uncompressed(loaded, model, parameters, sensitive, pieces(loaded.model, layers, parameters))


def predicted_table(shop: Workshop, original: Uncompressed) -> Table:
    """What each weight costs in each format, as its actual error predicts."""
    loaded, spec, calibrated = shop.loaded, shop.spec, shop.calibrated
    formats = _formats(original, spec)
    found = list(data_free(original, formats.by("data_free"), shop.progress))
    if calibrated is not None:
        found += by_gptq(original, formats.by("gptq"), calibrated.windows, calibrated.shelf, shop.progress, shop.crew)
    # What NNCF gives its backup precision beside a format of fewer bits.
    predicted = forecast(loaded.source, Recipe(name="uniform", weights=uniform(Format("int4_sym", -1))))
    special = {layer.name for layer in predicted.layers if layer.mode == BACKUP.mode}
    permitted = (*spec.formats, *spec.looked_up_formats)
    return Table(
        by_name(found),
        permitted,
        frozenset(special),
        formats.looked_up,
        original.sensitivity.num_tokens,
        settled=original.settled(),
        experts=_experts(original),
    )


def _experts(original: Uncompressed) -> ExpertsRecord | None:
    """Which experts the text called; None: there are none. Where an expert has several stacks it was called in all."""
    stacks = [name for name, each in original.parameters.items() if each.ndim == 3]
    never = [
        f"{name}[{number}]"
        for name in stacks
        for number, called in enumerate(original.sensitivity.called(name).tolist())
        if not called
    ]
    total = sum(len(original.parameters[name]) for name in stacks)
    return ExpertsRecord(num_experts=total, never_called=tuple(never)) if stacks else None


def corrected_table(shop: Workshop, table: Table) -> tuple[Table, CorrectionRecord | None]:
    """The table after the spec's number of plans near its limits were measured; None: none was."""
    plans = first_plans(shop, table) if shop.spec.num_probes else []
    return corrected(shop, table, plans) if plans else (table, None)


def _formats(original: Uncompressed, spec: SearchSpec) -> Formats:
    graph = original.loaded.model
    tables = constants_taken_by(graph, "Gather") - constants_taken_by(graph, "MatMul")
    looked_up = frozenset(map(parameter_name, tables)) & original.parameters.keys()
    return Formats(tuple(dict.fromkeys((*spec.formats, BACKUP))), spec.looked_up_formats, looked_up)


def _contender(
    measured: Entrant, kind: Literal["searched", "uniform", "mixed"], predicted_kl: float | None, confidence: float
) -> Contender:
    lost = measured.lost(confidence)
    return Contender(
        name=measured.name,
        kind=kind,
        size_bytes=measured.size_bytes,
        predicted_kl=predicted_kl,
        kl_divergence=lost.kl_divergence,
        top1_agreement=lost.top1_agreement,
    )


def _choices(table: Table, plan: Plan) -> tuple[WeightChoice, ...]:
    # Of a plan a weight is a part, which loses somewhat more than alone.
    part = table.predicted(plan) / (total_kl(plan) or 1.0)
    predicted: dict[str, dict[str, float]] = {}
    for each in sorted(table.permitted, key=lambda candidate: candidate.size_bytes):
        predicted.setdefault(each.weight, {})[str(each.format)] = part * each.kl_divergence
    return tuple(
        WeightChoice(
            name=each.weight,
            num_parameters=each.num_parameters,
            format=str(each.format),
            size_bytes=each.size_bytes,
            kl_divergence=part * each.kl_divergence,
            predicted=predicted[each.weight],
        )
        for each in plan.values()
    )


def _front(table: Table, planned: Planned) -> tuple[FrontPoint, ...]:
    others = planned.size_bytes - total_bytes(planned.plan)
    return tuple(
        FrontPoint(size_bytes=total_bytes(plan) + others, kl_divergence=table.predicted(plan))
        for plan in front(table.permitted, NUM_FRONT_POINTS)
    )


def _kl_per_further_mb(table: Table, planned: Planned) -> float:
    alone = total_kl(planned.plan)
    # What is lost together may grow faster than what weights lose alone.
    growth = (table.growth.of_sum(alone * (1 + SLOPE)) - table.growth.of_sum(alone)) / (alone * SLOPE) if alone else 1.0
    return 1e6 * growth * kl_per_further_byte(table.permitted, total_bytes(planned.plan))
