"""An artifact in, its report ``tune.json`` out: what its settings gain and cost on this device, and the choice."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from llmcompress.artifact import manifest_sha256, require_verified, write_report
from llmcompress.errors import UsageError
from llmcompress.evaluation.gate import combined
from llmcompress.graph.device import check_device, properties_of
from llmcompress.loaders.source import longest_context, resolve
from llmcompress.report.environment import environment_record
from llmcompress.report.file_names import TUNE_REPORT
from llmcompress.report.stages import Stages
from llmcompress.report.tuning import Trial, TuneReport, TuningReference
from llmcompress.spec import Gate, TuneSpec
from llmcompress.spec.access import Access
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.progress import Reporter, silent
from llmcompress.tuning.choice import OUT_OF_TIME, limits, with_front
from llmcompress.tuning.damage import Models, Reference, divergence_under, open_models
from llmcompress.tuning.race import SAME, start
from llmcompress.tuning.space import Device, find_space
from llmcompress.tuning.trials import Bench, search_space
from llmcompress.tuning.verification import decide, verify_best


def tune(
    directory: str | Path,
    spec: TuneSpec,
    *,
    reference: str | Path | None = None,
    reference_revision: str | None = None,
    trust_remote_code: bool = False,
    allow_nonfinite: bool = False,
    offline: bool = False,
    gate: Gate | None = None,
    progress: Reporter = silent,
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
    quiet_libraries()
    stages, began = Stages(), time.monotonic()
    directory = Path(directory).absolute()
    check_device(spec.device)
    manifest = require_verified(directory)
    gate = combined(manifest.recipe.gate, gate or Gate())
    _check(directory, spec, reference, reference_revision, gate)
    # Exact execution must be possible, and a wrong property is an error before anything slow.
    properties_of(spec.device, "pinned")
    device = Device(spec.device)
    config = resolve(directory).config
    if spec.properties:
        find_space(device, {}, manifest, config, spec.asked_values(), spec.scope)
    against = Reference(reference, Access(reference_revision, trust_remote_code, offline, allow_nonfinite))
    name = directory.name
    with _room_for_logits(directory) as keep_in, contextlib.ExitStack() as stack:
        with stages.stage("load"):
            models = open_models(directory, against, spec, progress, keep_in)
        with stages.stage("default"):
            client, standing = start(directory, name, spec.device, {})
            stack.enter_context(client)
            lost, reference_properties = divergence_under(models, {}, models.search, spec.confidence, progress)
        space = find_space(device, standing, manifest, config, spec.asked_values(), spec.scope)
        kept = limits(spec.max_kl, gate, lost)
        problem = kept.problem(lost)
        default = Trial(
            properties={}, status="not permitted" if problem else "default", reason=problem, effective=standing,
            gain=SAME, divergence=lost,
        )  # fmt: skip
        bench = Bench(directory, name, spec, models, client, progress)
        with stages.stage("search"):
            best, trials, default, left = search_space(bench, space, default, kept, began + spec.budget_s)
        # Nothing runs beside the fresh processes of the verification.
        stack.close()
        chosen, verification = best, None
        permitted = best is not None
        reason = problem and f"nothing that was measured is permitted; the default: {problem}"
        if best is not None and not best.properties:
            reason = "no setting was better than the default beyond noise" if trials else "no setting was measured"
        elif best is not None:
            with stages.stage("verify"):
                verification = verify_best(bench, against, best, gate)
            chosen, permitted, reason = decide(
                verification, best, default, limits(spec.max_kl, gate, verification.default_divergence)
            )
    properties = chosen.properties if chosen else {}
    in_model = {key: value for key, value in properties.items() if device.reads_from_model(key, value)}
    judged = (
        lost if verification is None else verification.divergence if properties else verification.default_divergence
    )
    threads = standing.get("INFERENCE_NUM_THREADS", "0")
    report = TuneReport(
        llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
        spec=_portable(spec, models),
        source=name,
        manifest_sha256=manifest_sha256(directory),
        device_name=device.full_name,
        text=models.search.windows.record,
        reference=TuningReference(
            itself=reference is None, provenance=models.reference.provenance, properties=reference_properties
        ),
        max_kl=kept.max_kl,
        gate=kept.gate_record(judged),
        trials=with_front([default, *trials]),
        skipped={**space.skipped, **left},
        out_of_time=OUT_OF_TIME in left.values(),
        verification=verification,
        chosen=properties,
        permitted=permitted,
        reason=reason,
        in_model=in_model,
        in_profile={key: value for key, value in properties.items() if key not in in_model},
        environment=environment_record(int(threads) if threads.isdigit() else 0),
        measured=stages.measured(),
    )
    # What was measured is what lies there still.
    require_verified(directory)
    write_report(directory, TUNE_REPORT, report)
    return report


@contextlib.contextmanager
def _room_for_logits(directory: Path) -> Iterator[Path]:
    """A directory beside the artifact, on its disk; what a killed run left there goes first."""
    place = directory.with_name(f".{directory.name}.tune-logits")
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _check(
    directory: Path, spec: TuneSpec, reference: str | Path | None, reference_revision: str | None, gate: Gate
) -> None:
    if reference is None and reference_revision is not None:
        raise UsageError("--reference-revision has no effect without --reference", hint="leave it out")
    thresholds = sorted(gate.model_dump(exclude_none=True))
    if reference is None and thresholds:
        raise UsageError(
            f"the gate ({', '.join(thresholds)}) compares with the original, and none was given",
            where=directory.name,
            hint="add --reference with the model that it was made from",
        )
    longest = longest_context(resolve(directory))
    asked = {str(each): each.prompt_tokens + each.new_tokens for each in spec.workloads} | {"--seq-len": spec.seq_len}
    for what, num_tokens in asked.items():
        if longest is not None and num_tokens > longest:
            raise UsageError(
                f"{what} needs {num_tokens} tokens, the model's context is {longest}",
                where=directory.name,
                hint="take fewer",
            )


def _portable(spec: TuneSpec, models: Models) -> TuneSpec:
    return spec.model_copy(update={"dataset": models.search.windows.record.dataset})
