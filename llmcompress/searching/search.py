"""A checkpoint and a limit in; an artifact whose weights have formats of their own, and ``search.json``, out."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmcompress.artifact import manifest_sha256, write_errors, write_report
from llmcompress.artifact.placement import checked_output
from llmcompress.compression.compress import compress
from llmcompress.compression.forecast import forecast
from llmcompress.data.documents import read_documents, texts_for
from llmcompress.data.protocols import EvaluationWindows, evaluation_windows
from llmcompress.data.tokens import text_encoder
from llmcompress.errors import DataError, ModelError, ResourceError, UsageError
from llmcompress.evaluation.statistics import divergence
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.source import Source, fetch_weights, resolve
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.file_names import SEARCH_REPORT
from llmcompress.report.record import Stages, environment_record
from llmcompress.report.search import Contender, FrontPoint, SearchReport, WeightChoice
from llmcompress.searching.candidates import Table, candidates, uniform
from llmcompress.searching.contest import Entrant, Planned, Workshop, contenders, decide
from llmcompress.searching.plans import BACKUP, plan_recipe
from llmcompress.searching.solver import Plan, front, least_bytes, least_damage, smallest, total_bytes, total_kl
from llmcompress.spec import Access, Recipe
from llmcompress.spec.search import Format, SearchSpec
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.memory import memory
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    pass

NUM_FRONT_POINTS = 16
MAX_TRIES = 5
"""Of plans until one keeps the limit as measured."""
CAUTION = 0.98
"""Of the limit of KL divergence, after a plan that missed it."""
BYTES_PER_PARAMETER = 18
"""In f32 the weight, its gradient and its sensitivity; and codes of one format with the values they stand for."""


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
    progress: ProgressOption = "auto",
) -> SearchReport:
    """Give each weight the format that costs least under a limit, and write the artifact with ``search.json``.

    Each weight's actual error in each format, weighed by the Fisher information of a few windows, predicts the KL
    divergence that it adds (see ``llmcompress.searching.sensitivity``); a solver takes the best plan. The plan is
    measured against the best uniform format and NNCF's mixed precision of no more bytes on windows that follow in the
    text; where it does not win beyond noise, the best of these is written.

    Args:
        source: Hub id or checkpoint directory.
        spec: The limit, the formats, and the text.
        output_dir: Appears complete, by one rename, or not at all.
        revision: Branch, tag or commit of a Hub source.
        trust_remote_code: Run Python code that the repository brings.
        offline: Use local files and caches only.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        allow_links: Follow links that leave the source's directory.
        overwrite: Replace an existing artifact, in one step.
        progress: Told of every step.

    Raises:
        UsageError: The output exists, or no plan of these formats keeps the limit.
        ModelError: The source is no checkpoint in floating point, or cannot be converted.
        DataError: The text cannot be used or is too short.
        ResourceError: Memory will not suffice.
        HubError, SecurityError, WriteError, LockedError: as ``compress``.
    """
    progress = reporter(progress)
    quiet_libraries()
    stages = Stages()
    access = Access(revision, trust_remote_code, offline, allow_nonfinite, allow_links)
    found = _checked(resolve(source, access))
    output = checked_output(output_dir, [found.path] if found.id is None else [], overwrite=overwrite)
    with stages.stage("read the text"):
        looked_at, held_out = _windows(found, spec, offline=offline)
    found = fetch_weights(found, progress=progress)
    with stages.stage("load"):
        loaded = load(found, tokenizer=False, allow_nonfinite=allow_nonfinite, progress=progress)
    with stages.stage("candidates"):
        table = _table(loaded, spec, looked_at, progress)
    with _place_next_to(output) as place:
        shop = Workshop(loaded, spec, place, looked_at, held_out, progress)
        with stages.stage("plan"):
            planned = _planned(shop, table)
        with stages.stage("verify"):
            plan, others = contenders(shop, table, planned)
    chosen, gain, reason = decide(plan, [each for each, _ in others], spec.confidence)
    with stages.stage("write"):
        manifest = compress(loaded, chosen.recipe, output, overwrite=overwrite, offline=offline, progress=progress)
    report = SearchReport(
        llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
        spec=spec.model_copy(update={"dataset": held_out.record.dataset}),
        manifest_sha256=manifest_sha256(output),
        text=held_out.record,
        num_sensitivity_tokens=table.num_tokens,
        num_parameters=manifest.num_parameters,
        contenders=(
            _contender(plan, "searched", total_kl(planned.plan), spec.confidence),
            *(_contender(each, rival.kind, rival.predicted_kl, spec.confidence) for each, rival in others),
        ),
        gain=gain,
        chosen=chosen.name,
        reason=reason,
        weights=_choices(planned.plan),
        front=_front(table, planned),
        environment=environment_record(int(plan.scored.properties.get("INFERENCE_NUM_THREADS", 0))),
        measured=stages.measured(),
    )
    write_report(output, SEARCH_REPORT, report)
    return report


def _checked(found: Source) -> Source:
    """Refuse what has no floats in torch, and what does not fit."""
    if found.layout == "ir" or is_repacked(found.config):
        kind = "an OpenVINO model" if found.layout == "ir" else "quantized already"
        raise ModelError(
            f"a search compares with the original weights in torch, and the source is {kind}",
            where=found.name,
            hint="give the original checkpoint",
        )
    predicted = forecast(found, Recipe(name="original", method="none"))
    needed, available = predicted.num_parameters * BYTES_PER_PARAMETER, memory().available
    if needed > available:
        raise ResourceError(
            f"a search needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
            where="memory",
            hint="close other programs, or take a machine with more memory",
        )
    return found


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


def _windows(found: Source, spec: SearchSpec, *, offline: bool) -> tuple[EvaluationWindows, EvaluationWindows]:
    """For the sensitivity, and for the verdict."""
    documents = read_documents(spec.evaluation(), offline=offline)
    windows = evaluation_windows(texts_for(documents, found), documents.spec, text_encoder(found))
    available, wanted = len(windows.windows), spec.num_samples + spec.num_windows
    if available < wanted:
        raise DataError(
            f"the text has {available} windows of {spec.seq_len} tokens; {spec.num_samples} show the sensitivity and "
            f"{spec.num_windows} more the verdict",
            where=windows.record.dataset,
            hint="take more text, or smaller `num_samples`, `num_windows` or `seq_len`",
        )
    windows = windows.noting(documents.fallback)
    return windows.part(0, spec.num_samples), windows.part(spec.num_samples, wanted)


def _table(loaded: LoadedModel, spec: SearchSpec, windows: EvaluationWindows, progress: Reporter) -> Table:
    import numpy as np

    from llmcompress.searching.sensitivity import fisher

    model = load_torch_model(loaded.source).float()
    token_ids = np.stack([np.asarray(window.token_ids, np.int64) for window in windows.windows])
    sensitivity = fisher(model, token_ids, spec.seed, progress)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    formats = tuple(dict.fromkeys((*spec.formats, BACKUP)))
    found = candidates(loaded, parameters, sensitivity, token_ids.size, formats, progress)
    # What NNCF gives its backup precision beside a format of fewer bits.
    predicted = forecast(loaded.source, Recipe(name="uniform", weights=uniform(Format("int4_sym", -1))))
    special = {layer.name for layer in predicted.layers if layer.mode == BACKUP.mode}
    return Table(found, spec.formats, frozenset(special), token_ids.size)


def _planned(shop: Workshop, table: Table) -> Planned:
    """The best plan that keeps the limit as it comes out: of bytes in the file, of KL divergence on the windows
    that the sensitivity was taken from.

    Raises:
        UsageError: No plan does.
    """
    spec, permitted = shop.spec, table.permitted
    if spec.max_kl is not None:
        return _of_quality(shop, table, spec.max_kl)
    max_bytes = spec.max_bytes or int(shop.loaded.num_parameters * (spec.bits_per_weight or 0) / 8)
    others = 0
    for _ in range(MAX_TRIES):
        plan = least_damage(permitted, max_bytes - others) if max_bytes > others else None
        if plan is None:
            break
        made = _made(shop, table, plan)
        if made.size_bytes <= max_bytes:
            return made._replace(max_bytes=max_bytes)
        # Norms, tables and shapes are no weights of the plan's.
        others = max(made.size_bytes - total_bytes(plan), others + 1)
    least = total_bytes(smallest(permitted)) + others
    raise UsageError(
        f"no plan of these formats takes at most {max_bytes:,} bytes; the smallest takes about {least:,}",
        where="`max_bytes`" if spec.max_bytes else "`bits_per_weight`",
        hint="give more bytes, or `candidates` of fewer bits",
    )


def _of_quality(shop: Workshop, table: Table, max_kl: float) -> Planned:
    limit = max_kl
    for _ in range(MAX_TRIES):
        plan = least_bytes(table.permitted, limit)
        if plan is None:
            break
        made = _made(shop, table, plan)
        (scored,) = shop.score([made.directory], shop.looked_at)
        lost = divergence(scored.scores, shop.spec.confidence).kl_divergence.value
        if lost <= max_kl:
            return made
        limit *= CAUTION * max_kl / lost
    raise UsageError(
        f"no plan of these formats keeps the KL divergence at {max_kl:g} nats per token",
        where="`max_kl`",
        hint="permit more, or give `candidates` of more bits",
    )


def _made(shop: Workshop, table: Table, plan: Plan) -> Planned:
    recipe = plan_recipe(plan, table.special)
    directory, size_bytes = shop.make("searched", recipe)
    return Planned(plan, recipe, directory, size_bytes, size_bytes)


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


def _choices(plan: Plan) -> tuple[WeightChoice, ...]:
    return tuple(
        WeightChoice(
            name=each.weight,
            num_parameters=each.num_parameters,
            format=str(each.format),
            size_bytes=each.size_bytes,
            kl_divergence=each.kl_divergence,
        )
        for each in plan.values()
    )


def _front(table: Table, planned: Planned) -> tuple[FrontPoint, ...]:
    others = planned.size_bytes - total_bytes(planned.plan)
    return tuple(
        FrontPoint(size_bytes=total_bytes(plan) + others, kl_divergence=total_kl(plan))
        for plan in front(table.permitted, NUM_FRONT_POINTS)
    )
