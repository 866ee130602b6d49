"""Settings on trial: timed in turn with the default, scored where they are not beaten, and the best verified."""

from __future__ import annotations

import time
from typing import NamedTuple

from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.ratios import judge_ratio
from llmcompress.errors import UsageError
from llmcompress.report.estimate import Estimate
from llmcompress.report.text import duration_text
from llmcompress.report.tuning import Trial, TuningVerification
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter
from llmcompress.tuning.choice import Limits, is_beaten, is_undecided, limits, search
from llmcompress.tuning.damage import Models, TuneRequest, divergence_under, held_out_divergences
from llmcompress.tuning.race import Race, memory_gain, race, start
from llmcompress.tuning.space import Space, text_of

MEMORY_PROCESSES = 3
"""Pairs of fresh processes that memory is verified by."""


class Bench(NamedTuple):
    """What settings are measured with."""

    request: TuneRequest
    models: Models
    default: Client
    progress: Reporter


def search_space(
    bench: Bench, space: Space, default: Trial, kept: Limits, deadline: float
) -> tuple[Trial | None, list[Trial], Trial, dict[str, str]]:
    """Measure settings; the default comes back with the speed and memory that it had next to the first of them."""
    total = sum(len(dimension.values) for dimension in space.dimensions)
    stage = f"tune, at most {duration_text(bench.request.spec.budget_s)}"
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
    bench: Bench, properties: dict[str, str], best: Trial | None, kept: Limits, *, given: bool
) -> tuple[Trial, Race | None]:
    spec = bench.request.spec
    try:
        client, effective = start(bench.request.directory, spec.device, properties)
        with client:
            made = race(
                client,
                bench.default,
                spec,
                beaten=lambda gain: is_beaten(gain, best),
                undecided=lambda gain: is_undecided(gain, best),
            )
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


def verify_best(request: TuneRequest, best: Trial, progress: Reporter) -> TuningVerification:
    """Both in fresh processes, timed again and scored on text that the search has not seen."""
    # As often as the search needed to tell it from noise, and not by looking again.
    spec = request.spec.model_copy(update={"repetitions": len(best.speeds[0].prefill_tokens_per_s.values)})
    pairs = MEMORY_PROCESSES if spec.objective == "memory" else 1
    races = []
    for number in range(pairs):
        progress(Progress("verify", number, pairs + 1))
        with (
            start(request.directory, spec.device, {})[0] as default,
            start(request.directory, spec.device, best.properties)[0] as client,
        ):
            races.append(race(client, default, spec))
    gain: Estimate = races[0].gain
    if spec.objective == "memory":
        gain = memory_gain([made.memory for made in races], [made.default_memory for made in races], spec.confidence)
    text, (default_lost, lost) = run_supervised(
        held_out_divergences,
        {"request": request._replace(spec=spec), "settings": [{}, best.properties]},
        progress=progress,
    )
    progress(Progress("verify", pairs + 1, pairs + 1))
    return TuningVerification(
        gain=gain,
        judgement=judge_ratio(gain),
        speeds=races[0].speeds,
        text=text,
        default_divergence=default_lost,
        divergence=lost,
        permitted=not limits(spec.max_kl, request.gate, default_lost).problem(lost),
    )


def decide(found: TuningVerification, best: Trial, default: Trial, kept: Limits) -> tuple[Trial, bool, str]:
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
    how = "worse than the default" if found.judgement == "worse" else "better only inside the noise"
    return default, True, f"in fresh processes the best was {how}; the defaults stay"
