"""Ratios between models from interleaved runs, and what lies inside the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from llmcompress.report.benchmark import BenchCase, Judgement, Ratio
from llmcompress.report.estimate import Estimate

Figure = Literal["image_encoding_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"]
LESS_IS_BETTER = {"image_encoding_s", "ttft_s"}


def ratios(cases: Sequence[BenchCase], others: Sequence[BenchCase], confidence: float) -> tuple[Ratio, ...]:
    """Each figure of ``cases`` over the same of ``others``, run by run."""
    found = []
    for number, (case, other) in enumerate(zip(cases, others, strict=True)):
        for figure in get_args(Figure):
            mine, theirs = getattr(case, figure), getattr(other, figure)
            if mine is None or theirs is None:
                continue
            ratio = paired_ratio(mine.values, theirs.values, confidence)
            found.append(
                Ratio(
                    case=number, figure=figure, ratio=ratio, judgement=judge_ratio(ratio, figure not in LESS_IS_BETTER)
                )
            )
    return tuple(found)


def paired_ratio(mine: Sequence[float], theirs: Sequence[float], confidence: float) -> Estimate:
    """Geometric mean of the ratios of runs that followed one another, with Student's interval of their logarithms."""
    import numpy as np
    from scipy import stats

    logs = np.log(np.asarray(mine) / np.asarray(theirs))
    mean = float(logs.mean())
    if len(logs) < 2:
        return Estimate(value=math.exp(mean), standard_error=None, low=None, high=None)
    error = float(stats.sem(logs))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1)) * error
    return Estimate(
        value=math.exp(mean),
        standard_error=error * math.exp(mean),
        low=math.exp(mean - reach),
        high=math.exp(mean + reach),
    )


def judge_ratio(ratio: Estimate, more_is_better: bool = True) -> Judgement:
    """Say whether a ratio is better than 1, worse, or not to be told from it; without an interval it is not."""
    if ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high:
        return "inside the noise"
    return "better" if (ratio.low > 1) == more_is_better else "worse"
