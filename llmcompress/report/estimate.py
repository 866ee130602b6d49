"""A measured mean with its interval."""

from __future__ import annotations

from llmcompress.report.record import Record


class Estimate(Record):
    """A mean over tokens with its interval, which takes the tokens of a window or document as one cluster."""

    value: float
    standard_error: float | None
    """None where there are fewer than two clusters."""
    low: float | None
    """Lower end of the interval at the spec's confidence."""
    high: float | None


def interval_text(estimate: Estimate, form: str = ".4g") -> str:
    """A value with its interval: `0.00479 [0.00457, 0.00501]`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}} [no interval]"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
