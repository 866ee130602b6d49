"""Models in, one report for each: runs of all of them in turn, so that the machine's drift hits all alike."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, add_benchmark, manifest_sha256, require_verified
from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.machine import EnergyMeter, Observer, memory_bandwidth_bytes_per_s
from llmcompress.benchmarking.ratios import ratios
from llmcompress.benchmarking.roofline import roofline
from llmcompress.benchmarking.timing import (
    Run,
    decode_tokens_per_s,
    prefill_tokens_per_s,
    stats,
    tpot_s,
    ttft_s,
)
from llmcompress.benchmarking.worker import MemoryUse, Opened
from llmcompress.errors import ModelError, ResourceError, UsageError
from llmcompress.graph.device import check_device, properties_of
from llmcompress.loaders.context import require_context
from llmcompress.loaders.environments import at_hand, fitting_layer
from llmcompress.loaders.exporter import VISION_TASK
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.layout import weight_bytes
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.benchmark import BenchCase, BenchReport, BenchSetting, LoadTimes
from llmcompress.report.record import Stages, environment_record
from llmcompress.spec.access import Access
from llmcompress.spec.benchmark import BenchSpec, Setting, Shape
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.progress import Progress, Reporter


class _Model(NamedTuple):
    """One model with its worker and what was measured of it."""

    name: str
    directory: Path
    local: bool
    client: Client
    settings: list[BenchSetting]
    cases: list[BenchCase]


class _Bench(NamedTuple):
    """What is measured, how, and what looks at the machine meanwhile."""

    models: list[_Model]
    spec: BenchSpec
    shapes: list[Shape]
    observer: Observer
    meter: EnergyMeter
    progress: Reporter


@library_call
def benchmark(
    sources: Sequence[str | Path],
    spec: BenchSpec,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    allow_links: bool = False,
    max_context: int | None = None,
    progress: ProgressOption = "auto",
) -> tuple[BenchReport, ...]:
    """Measure load time, prefill, decode and memory of OpenVINO models, each in a process of its own.

    Args:
        sources: OpenVINO IR directories, or Hub ids of such. An artifact of ours gets the report into its
            ``bench.json``, in the place of an earlier one of the same shapes, devices and settings.
        spec: Devices, shapes and repetitions.
        revision: Branch, tag or commit of the Hub sources.
        trust_remote_code: Run the Python code of a model that is shown pictures by its repository's own processor.
        offline: Use local files and caches only.
        allow_links: Follow links that leave a source's directory.
        max_context: Tokens that the models' positions reach, where a configuration states another context.
        progress: Told of every run.

    Returns:
        One report for each source, in their order; those after the first hold ratios to the first.

    Raises:
        UsageError: No such source or device, more tokens than a model's context, or a device that refuses.
        ModelError: A source is no OpenVINO IR, or damaged.
        ResourceError: The engine's extra is not installed.
        KilledForMemoryError: A worker was killed for its memory.
        WriteError: A report could not be written.
    """
    progress = reporter(progress)
    quiet_libraries()
    stages = Stages()
    require_engine(spec, where="`engine`")
    for device in spec.devices:
        check_device(device)
    with contextlib.ExitStack() as stack:
        bench = _Bench([], spec, list(spec.shapes()), Observer(), EnergyMeter(), progress)
        with stages.stage("start"):
            for source in sources:
                # A revision is of the Hub sources among them.
                of_hub = None if Path(source).exists() else revision
                access = Access(of_hub, trust_remote_code, offline, allow_links=allow_links, max_context=max_context)
                bench.models.append(_start(bench, source, access, stack))
        memories: list[MemoryUse] = []
        for setting in spec.settings():
            with stages.stage(f"{setting.device}, threads {setting.threads or 'default'}"):
                opened = _open(bench, setting)
                _measure(bench, setting, opened)
                # Of one model opened once; what follows opens it again.
                memories = memories or [model.client.memory() for model in bench.models]
                _reopen(bench, setting, opened)
    reports = tuple(_reports(bench, memories, stages))
    for model, report in zip(bench.models, reports, strict=True):
        if model.local and report.manifest_sha256:
            add_benchmark(model.directory, report)
    return reports


def require_engine(spec: BenchSpec, *, where: str) -> None:
    """Refuse a runtime that is not installed.

    Args:
        where: What asked for it.

    Raises:
        ResourceError: Its extra is not installed.
    """
    if spec.engine == "genai" and importlib.util.find_spec("openvino_genai") is None:
        raise ResourceError(
            "engine genai needs openvino-genai, which is not installed",
            where=where,
            hint='pip install "llmcompress[genai]"',
        )


def _start(bench: _Bench, source: str | Path, access: Access, stack: contextlib.ExitStack) -> _Model:
    found = resolve(source, access, vision=True)
    if found.layout != "ir":
        raise ModelError(
            "a benchmark runs OpenVINO models, and this is a checkpoint",
            where=found.name,
            hint="convert it first: llmcompress compress SOURCE --recipe none",
        )
    most = max(shape.depth + shape.prompt_tokens + shape.new_tokens for shape in bench.shapes)
    require_context(found, most, f"depth, prompt and new tokens are {most} together")
    _require_shown(found, bench.spec)
    found = fetch_weights(found, progress=bench.progress)
    if (found.path / MANIFEST).is_file():
        require_verified(found.path)
    client = stack.enter_context(
        Client(
            found.path,
            bench.spec.engine,
            name=found.name,
            backend=bench.spec.effective_backend,
            search_path=_search_path(found, bench, offline=access.offline),
            trust_remote_code=access.trust_remote_code,
        )
    )
    return _Model(found.name, found.path, found.id is None, client, [], [])


def _require_shown(found: Source, spec: BenchSpec) -> None:
    """Refuse pictures for what does not see, and several prompts at once for a pipeline that takes one."""
    if not found.sees and any(spec.picture_sizes):
        raise UsageError("a text model sees no pictures", where=found.name, hint="leave `picture_sizes` out")
    if found.sees and spec.engine == "genai" and max(spec.batch_sizes) > 1:
        raise UsageError(
            "OpenVINO GenAI's pipeline of vision-language models takes one prompt at once",
            where=found.name,
            hint="leave `batch_sizes` out, or take runtime openvino",
        )


def _search_path(found: Source, bench: _Bench, *, offline: bool) -> list[Path]:
    """Where the transformers lies that Optimum's class shows pictures with, if it is not the installed one."""
    if bench.spec.engine != "openvino" or not any(bench.spec.picture_sizes):
        return []
    layer = fitting_layer(str(found.config.get("model_type")), VISION_TASK)
    return [] if layer is None else [at_hand(layer, found.config, offline=offline, progress=bench.progress)]


def _properties(spec: BenchSpec, setting: Setting) -> dict[str, str]:
    properties = {**properties_of(setting.device, spec.precision, spec.profile), **spec.asked_properties()}
    if setting.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = str(setting.threads)
    return properties


def _one_by_one(bench: _Bench, stage: str) -> Iterator[_Model]:
    """The models, each step of the stage told of."""
    for number, model in enumerate(bench.models):
        bench.progress(Progress(stage, number, len(bench.models), "models"))
        yield model
    bench.progress(Progress(stage, len(bench.models), len(bench.models), "models"))


def _open(bench: _Bench, setting: Setting) -> list[Opened]:
    properties = _properties(bench.spec, setting)
    stage = f"load on {setting.device}"
    return [model.client.open(setting.device, properties) for model in _one_by_one(bench, stage)]


def _reopen(bench: _Bench, setting: Setting, opened: Sequence[Opened]) -> None:
    properties = _properties(bench.spec, setting)
    for model, ready in zip(_one_by_one(bench, f"load again on {setting.device}"), opened, strict=True):
        warm, cached = model.client.reopen(setting.device, properties)
        load = LoadTimes(cold=ready.cold, warm=warm, cached=cached)
        model.settings.append(
            BenchSetting(
                device=setting.device,
                threads=setting.threads,
                load=load,
                properties=ready.properties,
                is_recurrent=ready.is_recurrent,
            )
        )


def _measure(bench: _Bench, setting: Setting, opened: Sequence[Opened]) -> None:
    bandwidth = None
    if setting.device == "CPU":
        known = opened[0].properties.get("INFERENCE_NUM_THREADS")
        bandwidth = memory_bandwidth_bytes_per_s(int(known) if known else setting.threads or 1)
    for shape in bench.shapes:
        for model, ready, (runs, joules) in zip(bench.models, opened, _run_in_turn(bench, setting, shape), strict=True):
            model.cases.append(bench_case(setting, shape, runs, joules, ready, bandwidth))


def _run_in_turn(bench: _Bench, setting: Setting, shape: Shape) -> list[tuple[list[Run], list[float]]]:
    """For each model its runs of a shape, and the energy of each where that is measured."""
    spec = bench.spec
    measured: list[tuple[list[Run], list[float]]] = [([], []) for _ in bench.models]
    total = (spec.warmup_runs + spec.repetitions) * len(bench.models)
    stage = f"{setting.device}: batch {shape.batch_size}, {shape.prompt_tokens}+{shape.new_tokens}"
    stage += f" at {shape.depth}" if shape.depth else ""
    stage += f", picture {shape.picture_size}" if shape.picture_size else ""
    for repetition in range(spec.warmup_runs + spec.repetitions):
        for number, (model, (runs, joules)) in enumerate(zip(bench.models, measured, strict=True)):
            bench.progress(Progress(stage, repetition * len(bench.models) + number, total, "runs"))
            spent: list[float] = []
            with bench.meter.measured(spent):
                # Another prompt each time: nothing can be kept from the one before.
                run = model.client.run(shape, repetition)
            if repetition >= spec.warmup_runs:
                runs.append(run)
                joules += spent
            bench.observer.look()
    bench.progress(Progress(stage, total, total, "runs"))
    return measured


def _reports(bench: _Bench, memories: Sequence[MemoryUse], stages: Stages) -> Iterator[BenchReport]:
    for number, (model, used) in enumerate(zip(bench.models, memories, strict=True)):
        compared = bench.models[0] if number else None
        threads = model.settings[0].properties.get("INFERENCE_NUM_THREADS", "0")
        yield BenchReport(
            llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
            spec=bench.spec,
            source=model.name,
            manifest_sha256=manifest_sha256(model.directory) if (model.directory / MANIFEST).is_file() else None,
            size_bytes=weight_bytes(model.directory),
            settings=tuple(model.settings),
            cases=tuple(model.cases),
            peak_rss_bytes=used.peak_rss_bytes,
            steady_rss_bytes=used.steady_rss_bytes,
            compared_with=compared.name if compared else None,
            ratios=ratios(model.cases, compared.cases, bench.spec.confidence) if compared else (),
            steadiness=bench.observer.steadiness(),
            environment=environment_record(int(threads) if threads.isdigit() else 0),
            measured=stages.measured(),
        )


def bench_case(
    setting: Setting,
    shape: Shape,
    runs: Sequence[Run],
    joules: Sequence[float],
    opened: Opened,
    bandwidth_bytes_per_s: float | None,
) -> BenchCase:
    """The figures of one model's runs of one shape.

    Args:
        joules: Energy of each run; empty where it was not measured.
        bandwidth_bytes_per_s: None where the device reads another memory than was measured.
    """
    decoded = shape.new_tokens > 1
    rates = [decode_tokens_per_s(run, shape.batch_size) for run in runs] if decoded else []
    limit = None
    if decoded and bandwidth_bytes_per_s is not None:
        limit = roofline(
            bandwidth_bytes_per_s=bandwidth_bytes_per_s,
            weight_bytes=opened.weight_bytes,
            cache_elements_per_token=opened.cache_elements_per_token,
            properties=opened.properties,
            shape=shape._replace(prompt_tokens=runs[0].input_tokens or shape.prompt_tokens),
            tokens_per_s=stats(rates).p50,
        )
    tokens = shape.batch_size * shape.new_tokens * len(runs)
    return BenchCase(
        device=setting.device,
        threads=setting.threads,
        batch_size=shape.batch_size,
        depth=shape.depth,
        prompt_tokens=shape.prompt_tokens,
        new_tokens=shape.new_tokens,
        picture_size=shape.picture_size,
        input_tokens=runs[0].input_tokens if shape.picture_size else None,
        image_encoding_s=stats([run.encoding_s for run in runs]) if shape.picture_size else None,
        ttft_s=stats([ttft_s(run) for run in runs]),
        prefill_tokens_per_s=stats([prefill_tokens_per_s(run, shape.batch_size, shape.prompt_tokens) for run in runs]),
        tpot_s=stats([step for run in runs for step in tpot_s(run)]) if decoded else None,
        decode_tokens_per_s=stats(rates) if decoded else None,
        energy_j_per_token=sum(joules) / tokens if joules else None,
        roofline=limit,
    )
