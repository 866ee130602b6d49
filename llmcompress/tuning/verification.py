"""The best that was found once more: in fresh processes, on held-out text, and what follows from it."""

from __future__ import annotations

from llmcompress.benchmarking.ratios import judge_ratio
from llmcompress.report.evaluation import Estimate
from llmcompress.report.tuning import Trial, TuningVerification
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter
from llmcompress.tuning.choice import Limits, limits
from llmcompress.tuning.damage import TuneRequest, held_out_divergences
from llmcompress.tuning.race import memory_gain, race, start

MEMORY_PROCESSES = 3
"""Pairs of fresh processes that memory is verified by."""


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
    held_out = run_supervised(
        held_out_divergences,
        {"request": request._replace(spec=spec), "settings": [{}, best.properties]},
        progress=progress,
    )
    progress(Progress("verify", pairs + 1, pairs + 1))
    default_lost, lost = held_out.divergences
    return TuningVerification(
        gain=gain,
        judgement=judge_ratio(gain),
        speeds=races[0].speeds,
        text=held_out.text,
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
