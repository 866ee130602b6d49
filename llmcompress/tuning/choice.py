"""Which setting is taken: the best by the objective of those that are permitted, if it is better beyond noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from llmcompress.evaluation.gate import gate_record, threshold_checks
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import DivergenceRecord, GateRecord
from llmcompress.report.tuning import Trial
from llmcompress.spec import Gate
from llmcompress.summary.trade_offs import pareto_front
from llmcompress.tuning.space import Dimension, text_of

MAX_KL_INCREASE = 0.001
"""Nats per token over the default's, where no limit was given."""
OUT_OF_TIME = "the budget was over"
NO_GROUPS = "a cache that is not quantized has no groups"
MEMORY_STEP = 1.01
"""What one process tells of memory without an interval: less than this is nothing."""
WORTHWHILE = 1.02
"""A gain over the best so far that is worth more runs where those made do not tell it from noise."""

Measure = Callable[[dict[str, str], Trial | None], Trial]


class Limits(NamedTuple):
    """What a setting must keep."""

    max_kl: float
    gate: Gate

    def problem(self, divergence: DivergenceRecord) -> str:
        """What a setting does not keep; nothing where it keeps all."""
        value = divergence.kl_divergence.value
        # What is not a number is beyond every limit.
        if not value <= self.max_kl:
            return f"KL divergence {value:.3g}, at most {self.max_kl:.3g} is permitted"
        record = self.gate_record(divergence)
        failed = [check for check in record.checks if check.passed is False] if record else []
        return "; ".join(
            f"{check.name} of the gate: {check.value:.3g}, required {check.required:.3g}" for check in failed
        )

    def gate_record(self, divergence: DivergenceRecord) -> GateRecord | None:
        """The artifact's gate on this divergence; None where it has none."""
        checks = threshold_checks(self.gate, divergence)
        return gate_record(checks) if checks else None


def limits(max_kl: float | None, gate: Gate, default: DivergenceRecord) -> Limits:
    """The limit that was given, or one that follows the default's own divergence; and the gate."""
    return Limits(default.kl_divergence.value + MAX_KL_INCREASE if max_kl is None else max_kl, gate)


def search(
    dimensions: Sequence[Dimension], default: Trial, measure: Measure, in_time: Callable[[], bool]
) -> tuple[Trial | None, list[Trial], dict[str, str]]:
    """Dimension by dimension from the best so far, which only a setting that is better beyond noise replaces.

    The dimensions hardly depend on one another, and a whole grid would take hours.

    Args:
        default: Its status says whether it is permitted itself.
        measure: Told the best so far, by which a setting may be beaten early.
        in_time: Asked before each setting.

    Returns:
        The best permitted setting, None where there is none; all that was measured; what was not, and why.
    """
    best = default if default.status == "default" else None
    trials: list[Trial] = []
    left: dict[str, str] = {}
    for dimension in dimensions:
        start = best.properties if best else {}
        for value in dimension.values:
            properties = {**start, **value}
            if not _takes_effect(properties, value):
                left[text_of(properties)] = NO_GROUPS
                continue
            if not in_time():
                left[text_of(properties)] = OUT_OF_TIME
                continue
            trial = measure(properties, best)
            trials.append(trial)
            if trial.status == "measured" and better(trial, best):
                best = trial
    return best, trials, left


def better(trial: Trial, best: Trial | None) -> bool:
    """Whether a trial is better than the best so far beyond noise; than no permitted one, any is."""
    assert trial.gain is not None
    if best is None:
        return True
    assert best.gain is not None
    if trial.gain.low is None:
        return trial.gain.value > best.gain.value * MEMORY_STEP
    return trial.gain.low > best.gain.value


def is_beaten(gain: Estimate, best: Trial | None) -> bool:
    """Whether a setting is worse than a permitted one beyond noise."""
    if best is None or best.gain is None or best.gain.low is None or gain.high is None:
        return False
    return gain.high < best.gain.low


def is_undecided(gain: Estimate, best: Trial | None) -> bool:
    """Whether a setting looks better than the best so far and may not be."""
    if best is None or best.gain is None or gain.low is None:
        return False
    return gain.low <= best.gain.value < gain.value / WORTHWHILE


def with_front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Trials with those marked that no other scored one beats in both gain and divergence."""
    made = list(trials)
    scored = [n for n, trial in enumerate(made) if trial.gain is not None and trial.divergence is not None]
    costs = []
    for number in scored:
        gain, divergence = made[number].gain, made[number].divergence
        assert gain is not None
        assert divergence is not None
        costs.append((-gain.value, divergence.kl_divergence.value))
    for number, on_front in zip(scored, pareto_front(costs), strict=True):
        made[number] = made[number].model_copy(update={"on_front": on_front})
    return tuple(made)


def _takes_effect(properties: dict[str, str], value: dict[str, str]) -> bool:
    """A cache that is not quantized has no groups."""
    groups = {name for name in value if name.endswith("CACHE_GROUP_SIZE")}
    return not groups or properties.get("KV_CACHE_PRECISION", "u8") not in ("f16", "bf16", "f32")
