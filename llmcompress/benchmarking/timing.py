"""From the moments at which tokens were there to the figures that people quote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.report.benchmark import Stats


class Run(NamedTuple):
    """Moments of one run, in seconds of one clock."""

    started: float
    """The prompt was handed over."""
    tokens: tuple[float, ...]
    """Each new token was there, in every sequence of the batch; the first comes with the prompt."""
    encoding_s: float = 0.0
    """What of the time to first token a picture's embeddings took."""
    input_tokens: int | None = None
    """What a sequence began with, a picture's tokens among it, where only the run shows it."""
    inference_s: tuple[float, ...] = ()
    """Of each token, where the runtime has a clock for its inference alone."""


def stats(values: Sequence[float]) -> Stats:
    """Describe raw values; percentiles are interpolated linearly between the sorted values, as numpy does."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.quantile(array, (0.5, 0.9, 0.99)))
    return Stats(
        values=tuple(float(value) for value in array),
        mean=float(array.mean()),
        std=float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        p50=p50,
        p90=p90,
        p99=p99,
    )


def ttft_s(run: Run) -> float:
    """Time to first token."""
    return run.tokens[0] - run.started


def tpot_s(run: Run) -> list[float]:
    """Time of each further token, from one timestamp to the next; no subtraction of one run from another."""
    return [after - before for before, after in zip(run.tokens, run.tokens[1:], strict=False)]


def prefill_tokens_per_s(run: Run, batch_size: int, prompt_tokens: int) -> float:
    """Prompt tokens of all sequences over the time to first token, without that of a picture's embeddings."""
    return batch_size * (run.input_tokens or prompt_tokens) / (ttft_s(run) - run.encoding_s)


def decode_tokens_per_s(run: Run, batch_size: int) -> float:
    """Further tokens of all sequences over the time they took."""
    return batch_size * (len(run.tokens) - 1) / (run.tokens[-1] - run.tokens[0])
