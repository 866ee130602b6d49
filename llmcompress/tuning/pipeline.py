"""An artifact in, its report ``tune.json`` out: what its settings gain and cost on this device, and the choice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import manifest_sha256, require_verified, write_report
from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.ratios import judge_ratio
from llmcompress.environment import environment_record, installed_versions, quiet_libraries
from llmcompress.errors import UsageError
from llmcompress.loaders.source import longest_context, resolve
from llmcompress.progress import Progress, Reporter, silent
from llmcompress.recipe import Gate, TuneSpec
from llmcompress.report import (
    Estimate,
    Trial,
    TuneReport,
    TuningReference,
    TuningVerification,
)
from llmcompress.runtime import check_device, properties_of
from llmcompress.stages import Stages
from llmcompress.supervisor import run_supervised
from llmcompress.tuning.application import TUNE_REPORT
from llmcompress.tuning.choice import OUT_OF_TIME, Limits, is_beaten, limits, search, with_front
from llmcompress.tuning.damage import HeldOut, Models, Reference, divergence_under, open_models
from llmcompress.tuning.race import SAME, Race, memory_gain, race, start
from llmcompress.tuning.space import Device, Space, find_space, text_of
from llmcompress.wording import duration_text

MEMORY_PROCESSES = 3
"""Pairs of fresh processes that memory is verified by."""


class _Bench(NamedTuple):
    """What settings are measured with."""

    directory: Path
    name: str
    spec: TuneSpec
    models: Models
    default: Client
    progress: Reporter


def tune(
    directory: str | Path,
    spec: TuneSpec,
    *,
    reference: str | Path | None = None,
    reference_revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
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
        offline: Use local files and caches only.
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
    gate = manifest.recipe.gate
    _check(directory, spec, reference, reference_revision, gate)
    # Exact execution must be possible, and a wrong property is an error before anything slow.
    properties_of(spec.device, "pinned")
    device = Device(spec.device)
    config = resolve(directory).config
    if spec.properties:
        find_space(device, {}, manifest, config, spec.asked_values())
    against = Reference(reference, reference_revision, trust_remote_code, offline)
    with stages.stage("load"):
        models = open_models(directory, against, spec, progress)
    name = directory.name
    with contextlib.ExitStack() as stack:
        with stages.stage("default"):
            client, standing = start(directory, name, spec.device, {})
            stack.enter_context(client)
            lost, reference_properties = divergence_under(models, {}, models.search, spec.confidence, progress)
        space = find_space(device, standing, manifest, config, spec.asked_values())
        kept = limits(spec.max_kl, gate, lost)
        problem = kept.problem(lost)
        default = Trial(
            properties={}, status="not permitted" if problem else "default", reason=problem, effective=standing,
            gain=SAME, divergence=lost,
        )  # fmt: skip
        bench = _Bench(directory, name, spec, models, client, progress)
        with stages.stage("search"):
            best, trials, default, left = _search(bench, space, default, kept, began + spec.budget_s)
    chosen, verification = best, None
    permitted = best is not None
    reason = problem and f"nothing that was measured is permitted; the default: {problem}"
    if best is not None and not best.properties:
        reason = "no setting was better than the default beyond noise" if trials else "no setting was measured"
    elif best is not None:
        with stages.stage("verify"):
            verification = _verify(bench, against, best, gate)
        chosen, permitted, reason = _decide(verification, best, default, Limits(_limit(spec, verification), gate))
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


def _check(
    directory: Path, spec: TuneSpec, reference: str | Path | None, reference_revision: str | None, gate: Gate
) -> None:
    if reference is None and reference_revision is not None:
        raise UsageError("--reference-revision has no effect without --reference", hint="leave it out")
    thresholds = sorted(gate.model_dump(exclude_none=True))
    if reference is None and thresholds:
        raise UsageError(
            f"the artifact's gate ({', '.join(thresholds)}) compares with the original, and none was given",
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


def _search(
    bench: _Bench, space: Space, default: Trial, kept: Limits, deadline: float
) -> tuple[Trial | None, list[Trial], Trial, dict[str, str]]:
    """Measure settings; the default comes back with the speed and memory that it had beside the first of them."""
    total = sum(len(dimension.values) for dimension in space.dimensions)
    stage = f"tune, at most {duration_text(bench.spec.budget_s)}"
    done, longest_s = 0, 0.0
    bench.progress(Progress(stage, 0, total, "settings"))

    def in_time() -> bool:
        # One more, and the verification, which takes about as long.
        return time.monotonic() + 2 * longest_s < deadline

    def measure(properties: dict[str, str], best: Trial | None) -> Trial:
        nonlocal default, done, longest_s
        began = time.monotonic()
        trial, made = _trial(bench, properties, best, kept, given=space.given)
        if made is not None and not default.speeds:
            default = default.model_copy(
                update={
                    "speeds": made.default_speeds,
                    "peak_rss_bytes": made.default_memory.peak_rss_bytes,
                    "steady_rss_bytes": made.default_memory.steady_rss_bytes,
                }
            )
        done += 1
        longest_s = max(longest_s, time.monotonic() - began)
        bench.progress(Progress(stage, done, total, "settings"))
        return trial

    best, trials, left = search(space.dimensions, default, measure, in_time)
    if done < total:
        bench.progress(Progress(stage, total, total, "settings"))
    return best, trials, default, left


def _trial(
    bench: _Bench, properties: dict[str, str], best: Trial | None, kept: Limits, *, given: bool
) -> tuple[Trial, Race | None]:
    spec = bench.spec
    try:
        client, effective = start(bench.directory, bench.name, spec.device, properties)
        with client:
            made = race(client, bench.default, spec, beaten=lambda gain: is_beaten(gain, best))
    except UsageError as error:
        if given:
            raise
        return Trial(properties=properties, status="refused", reason=error.message), None
    trial = Trial(
        properties=properties,
        status="measured",
        effective=effective,
        speeds=made.speeds,
        gain=made.gain,
        judgement=made.judgement,
        peak_rss_bytes=made.memory.peak_rss_bytes,
        steady_rss_bytes=made.memory.steady_rss_bytes,
    )
    if not made.finished or is_beaten(made.gain, best):
        by = text_of(best.properties) if best else ""
        return trial.model_copy(update={"status": "beaten", "reason": f"slower beyond noise than {by}"}), made
    lost, _ = divergence_under(bench.models, properties, bench.models.search, spec.confidence, bench.progress)
    problem = kept.problem(lost)
    status = "not permitted" if problem else "measured"
    return trial.model_copy(update={"divergence": lost, "status": status, "reason": problem}), made


def _verify(bench: _Bench, against: Reference, best: Trial, gate: Gate) -> TuningVerification:
    """Both in fresh processes, timed anew and scored on text that the search has not seen."""
    spec = bench.spec
    pairs = MEMORY_PROCESSES if spec.objective == "memory" else 1
    races = []
    for number in range(pairs):
        bench.progress(Progress("verify", number, pairs + 1))
        with _fresh(bench, {}) as default, _fresh(bench, best.properties) as client:
            races.append(race(client, default, spec))
    gain: Estimate = races[0].gain
    if spec.objective == "memory":
        gain = memory_gain([made.memory for made in races], [made.default_memory for made in races], spec.confidence)
    held_out = run_supervised(
        "llmcompress.tuning.damage:held_out_divergences",
        {"directory": bench.directory, "reference": against, "spec": spec, "settings": [{}, best.properties]},
        progress=bench.progress,
    )
    assert isinstance(held_out, HeldOut)
    bench.progress(Progress("verify", pairs + 1, pairs + 1))
    default_lost, lost = held_out.divergences
    return TuningVerification(
        gain=gain,
        judgement=judge_ratio(gain),
        speeds=races[0].speeds,
        text=held_out.text,
        default_divergence=default_lost,
        divergence=lost,
        permitted=not limits(spec.max_kl, gate, default_lost).problem(lost),
    )


@contextlib.contextmanager
def _fresh(bench: _Bench, properties: dict[str, str]) -> Iterator[Client]:
    client, _ = start(bench.directory, bench.name, bench.spec.device, properties)
    with client:
        yield client


def _limit(spec: TuneSpec, verification: TuningVerification) -> float:
    return limits(spec.max_kl, Gate(), verification.default_divergence).max_kl


def _decide(found: TuningVerification, best: Trial, default: Trial, kept: Limits) -> tuple[Trial, bool, str]:
    """The choice, whether it is permitted, and why it is this one."""
    default_permitted = default.status == "default" and not kept.problem(found.default_divergence)
    if not found.permitted:
        return default, default_permitted, f"on held-out text: {kept.problem(found.divergence)}; the defaults stay"
    if found.judgement == "better" or not default_permitted:
        why = (
            "better than the default beyond noise"
            if found.judgement == "better"
            else "permitted, as the default is not"
        )
        return best, True, f"{why}, in fresh processes and on held-out text"
    return default, True, "in fresh processes the gain was inside the noise; the defaults stay"


def _portable(spec: TuneSpec, models: Models) -> TuneSpec:
    return spec.model_copy(update={"dataset": models.search.windows.record.dataset})
