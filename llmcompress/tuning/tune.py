"""An artifact in, its report ``tune.json`` out: what its settings gain and cost on this device, and the choice."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.artifact import manifest_sha256, require_verified, write_report
from llmcompress.errors import UsageError
from llmcompress.evaluation.gate import combined
from llmcompress.graph.device import check_device, properties_of
from llmcompress.loaders.context import require_context
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.compression import CompressionReport
from llmcompress.report.file_names import TUNE_REPORT
from llmcompress.report.record import Stages, environment_record
from llmcompress.report.tuning import Trial, TuneReport, TuningReference, TuningVerification
from llmcompress.spec import Gate, TuneSpec
from llmcompress.spec.access import Access
from llmcompress.spec.dataset import AUTO
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.progress import Reporter
from llmcompress.tuning.choice import OUT_OF_TIME, Limits, limits, with_front
from llmcompress.tuning.damage import Models, TuneRequest, divergence_under, open_models
from llmcompress.tuning.race import SAME, start
from llmcompress.tuning.space import DeviceProperties, Space, find_space
from llmcompress.tuning.trials import Bench, decide, search_space, verify_best


class Target(NamedTuple):
    """What is tuned, checked as far as it goes before anything is loaded."""

    request: TuneRequest
    manifest: CompressionReport
    config: Mapping[str, Any]
    """The model's ``config.json``."""
    device: DeviceProperties

    def space(self, standing: Mapping[str, str]) -> Space:
        """The settings to try; ``standing`` are the effective properties of the model as it is."""
        spec = self.request.spec
        return find_space(self.device, standing, self.manifest, self.config, spec.asked_values(), spec.scope)


class Searched(NamedTuple):
    """What the search measured."""

    models: Models
    reference_properties: dict[str, str]
    limits: Limits
    default: Trial
    best: Trial | None
    """Of those that are permitted; None where not even the default is."""
    trials: tuple[Trial, ...]
    """Without the default."""
    skipped: dict[str, str]


class Choice(NamedTuple):
    """What is taken, and why."""

    properties: dict[str, str]
    permitted: bool
    reason: str
    verification: TuningVerification | None = None


@library_call
def tune(
    directory: str | Path,
    spec: TuneSpec,
    *,
    reference: str | Path | None = None,
    reference_revision: str | None = None,
    trust_remote_code: bool = False,
    allow_nonfinite: bool = False,
    allow_links: bool = False,
    merge_adapter: bool = False,
    max_context: int | None = None,
    file: str | None = None,
    offline: bool = False,
    gate: Gate | None = None,
    progress: ProgressOption = "auto",
) -> TuneReport:
    """Search the runtime's settings of an artifact on a device: speed and memory against what they cost.

    Every setting runs in turn with the default, each in a process of its own, and is scored under that very setting,
    in chunks, against the reference in exact execution. The best that is permitted is verified in fresh processes and
    on held-out text; where its gain is inside the noise, the defaults stay. The report is written as ``tune.json``.

    Args:
        directory: An artifact of ours.
        spec: Device, workloads, text, and the rule of the choice.
        reference: What the artifact was made from; None: the artifact itself, so that the divergence is that of the
            settings alone.
        reference_revision: Branch, tag or commit of a Hub reference.
        trust_remote_code: Run Python code that the reference brings.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        allow_links: Follow links that leave a source's directory.
        merge_adapter: Load the base model of an adapter's directory and merge the adapter into it (the extra
            ``adapters``).
        max_context: Tokens that the model's positions reach, where its configuration states another context.
        file: The GGUF or ONNX file that is meant, of a reference that holds several.
        offline: Use local files and caches only.
        gate: Thresholds, each instead of the artifact's own.
        progress: Told of every step.

    Raises:
        UsageError: No such device or property, a value that the device refuses, more tokens than the model's context,
            or a gate that cannot be judged without the reference.
        ArtifactError: The directory is no artifact, or not what its manifest says.
        ModelError: A model cannot be used, or the reference has other tokens.
        DataError: The text cannot be used or is too short.
        ResourceError: Memory will not suffice.
        WriteError: The report could not be written.
    """
    progress = reporter(progress)
    quiet_libraries()
    stages, deadline = Stages(), time.monotonic() + spec.budget_s
    access = Access(
        reference_revision,
        trust_remote_code,
        offline,
        allow_nonfinite,
        allow_links,
        merge_adapter,
        max_context,
        file=file,
    )
    target = prepare(TuneRequest(Path(directory).absolute(), spec, reference, access, gate or Gate()))
    directory = target.request.directory
    with _logits_dir(directory) as logits_dir:
        target = target._replace(request=target.request._replace(logits_dir=logits_dir))
        searched = search(target, deadline, stages, progress)
        # The verification reads it again, and must read the same, whatever the Hub does meanwhile.
        choice = verify(_on_the_text_of(searched, target.request), searched, stages, progress)
    made = report(target, searched, choice, stages)
    # The artifact must still be the one that was measured.
    require_verified(directory)
    write_report(directory, TUNE_REPORT, made)
    return made


def prepare(request: TuneRequest) -> Target:
    """Check the artifact, the device and what is asked of both. Raises: as ``tune``."""
    spec, directory = request.spec, request.directory
    check_device(spec.device)
    manifest = require_verified(directory)
    request = request._replace(gate=combined(manifest.recipe.gate, request.gate))
    found = resolve(directory, request.access.of_candidate(), vision=True)
    _check_reference(request)
    _check_context(found, spec)
    # Exact execution must be possible, and a wrong property is an error before anything slow.
    properties_of(spec.device, "pinned")
    target = Target(request, manifest, found.config, DeviceProperties(spec.device))
    if spec.properties:
        target.space({})
    return target


def search(target: Target, deadline: float, stages: Stages, progress: Reporter) -> Searched:
    """Measure the default and then the settings, each next to it, until ``deadline`` on the monotonic clock.

    Raises: as ``tune``.
    """
    request, spec = target.request, target.request.spec
    with stages.stage("load"):
        models = open_models(request, progress)
    with contextlib.ExitStack() as stack:
        with stages.stage("default"):
            client, standing = start(request.directory, spec.device, {})
            stack.enter_context(client)
            lost, reference_properties = divergence_under(models, {}, models.search, spec.confidence, progress)
        space = target.space(standing)
        kept = limits(spec.max_kl, request.gate, lost)
        problem = kept.problem(lost)
        default = Trial(
            properties={},
            status="not permitted" if problem else "default",
            reason=problem,
            effective=standing,
            gain=SAME,
            divergence=lost,
        )
        bench = Bench(request, models, client, progress)
        with stages.stage("search"):
            best, trials, default, left = search_space(bench, space, default, kept, deadline)
    return Searched(models, reference_properties, kept, default, best, tuple(trials), {**space.skipped, **left})


def verify(request: TuneRequest, searched: Searched, stages: Stages, progress: Reporter) -> Choice:
    """Measure the best once more where it is not the default, and decide."""
    best, default = searched.best, searched.default
    if best is None:
        return Choice({}, False, f"nothing that was measured is permitted; the default: {default.reason}")
    if not best.properties:
        measured = "no setting was better than the default beyond noise"
        return Choice({}, True, measured if searched.trials else "no setting was measured")
    with stages.stage("verify"):
        found = verify_best(request, best, progress)
    kept = limits(request.spec.max_kl, request.gate, found.default_divergence)
    chosen, permitted, reason = decide(found, best, default, kept)
    return Choice(chosen.properties, permitted, reason, found)


def report(target: Target, searched: Searched, choice: Choice, stages: Stages) -> TuneReport:
    """Put together what was measured and chosen."""
    request, models, verified = target.request, searched.models, choice.verification
    judged = searched.default.divergence
    if verified is not None:
        judged = verified.divergence if choice.properties else verified.default_divergence
    assert judged is not None
    in_model = {key: value for key, value in choice.properties.items() if target.device.reads_from_model(key, value)}
    threads = searched.default.effective.get("INFERENCE_NUM_THREADS", "0")
    text = models.search.windows.record
    return TuneReport(
        llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
        spec=request.spec.model_copy(update={"dataset": text.dataset}),
        source=request.directory.name,
        manifest_sha256=manifest_sha256(request.directory),
        device_name=target.device.full_name,
        text=text,
        reference=TuningReference(
            itself=request.reference is None,
            provenance=models.reference.loaded.provenance,
            properties=searched.reference_properties,
        ),
        max_kl=searched.limits.max_kl,
        gate=searched.limits.gate_record(judged),
        trials=with_front([searched.default, *searched.trials]),
        skipped=searched.skipped,
        out_of_time=OUT_OF_TIME in searched.skipped.values(),
        verification=verified,
        chosen=choice.properties,
        permitted=choice.permitted,
        reason=choice.reason,
        in_model=in_model,
        in_profile={key: value for key, value in choice.properties.items() if key not in in_model},
        environment=environment_record(int(threads) if threads.isdigit() else 0),
        measured=stages.measured(),
    )


@contextlib.contextmanager
def _logits_dir(directory: Path) -> Iterator[Path]:
    """A directory next to the artifact, on its disk; what a killed run left there goes first."""
    place = directory.with_name(f".{directory.name}.tune-logits")
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _on_the_text_of(searched: Searched, request: TuneRequest) -> TuneRequest:
    """The request, with the dataset that was read where none was named."""
    if request.spec.dataset != AUTO:
        return request
    dataset = searched.models.search.windows.record.dataset
    return request._replace(spec=request.spec.model_copy(update={"dataset": dataset}))


def _check_reference(request: TuneRequest) -> None:
    if request.reference is not None:
        return
    if request.access.revision is not None:
        raise UsageError("`reference_revision` has no effect without `reference`", hint="leave it out")
    thresholds = sorted(request.gate.model_dump(exclude_none=True))
    if thresholds:
        raise UsageError(
            f"the gate ({', '.join(thresholds)}) compares with the original, and none was given",
            where=request.directory.name,
            hint="add `reference` with the model that it was made from",
        )


def _check_context(found: Source, spec: TuneSpec) -> None:
    asked = {str(each): each.prompt_tokens + each.new_tokens for each in spec.workloads} | {"`seq_len`": spec.seq_len}
    for what, num_tokens in asked.items():
        require_context(found, num_tokens, f"{what} needs {num_tokens} tokens")
