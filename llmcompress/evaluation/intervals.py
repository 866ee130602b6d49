"""Means over tokens with intervals that do not take neighbouring tokens for independent, and the verdict on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


NO_SKEWNESS = 1e-6
"""Below it the transformation is the identity but for rounding."""


def clustered_mean(sums: NDArray[np.float64], counts: NDArray[Any], confidence: float) -> Estimate:
    """Mean over all units of all clusters, with a cluster-robust standard error and an interval.

    The ratio of two totals, linearised over the clusters, with the factor G / (G - 1): the estimator of Liang and Zeger
    (1986) for a mean. The interval is Student's with G - 1 degrees of freedom over how far each cluster lies from the
    mean of the others (CR3 of Bell and McCaffrey, 2002), since a long one draws the mean of all to itself, and after a
    transformation that removes the skewness of the clusters (Hall, 1992, "On the removal of skewness by
    transformation"): a few texts in which a model loses much more than in the others make the upper end the farther
    one.

    Args:
        sums: Sum of the values in each cluster, float64 ``[num_clusters]``.
        counts: Number of units (tokens, words, bytes) in each cluster, ``[num_clusters]``.
        confidence: Between 0 and 1.
    """
    import numpy as np
    from scipy import stats

    total = float(counts.sum())
    mean = float(sums.sum() / total)
    num_clusters = len(sums)
    # Where one cluster has all units, there are no others to measure it from.
    if num_clusters < 2 or counts.max() == total or not math.isfinite(mean):
        return Estimate(value=mean, standard_error=None, low=None, high=None)
    shares = (sums - mean * counts) * (num_clusters / total)
    error = float(stats.sem(shares))
    # Zero on average by construction, apart from rounding.
    assert abs(float(np.mean(shares))) <= 1e-6 * max(1.0, abs(mean))
    reach = float(stats.t.ppf((1 + confidence) / 2, num_clusters - 1)) / math.sqrt(num_clusters)
    from_others = shares / (1 - counts / total)
    deviation = float(np.std(from_others, ddof=1))
    skewness = _skewness(from_others - from_others.mean(), deviation)
    low, high = (mean - deviation * _deskewed(end, skewness, num_clusters) for end in (reach, -reach))
    return Estimate(value=mean, standard_error=error, low=low, high=high)


def _skewness(residuals: NDArray[np.float64], deviation: float) -> float:
    """Without the bias of few residuals: G1 of Joanes and Gill (1998); zero where it cannot be told.

    Not scipy's: that warns where all residuals are alike.
    """
    count = len(residuals)
    if count < 3 or deviation == 0:
        return 0.0
    return float((residuals**3).sum()) * count / ((count - 1) * (count - 2)) / deviation**3


def _deskewed(end: float, skewness: float, num_clusters: int) -> float:
    """By how many deviations a mean lies off the truth where Hall's transformation of that is ``end``."""
    if abs(skewness) < NO_SKEWNESS:
        return end
    return 3 / skewness * (math.cbrt(1 + skewness * (end - skewness / (6 * num_clusters))) - 1)


def transformed(estimate: Estimate, function: Callable[[float], float], slope: float) -> Estimate:
    """An estimate under a rising function, the ends of its interval mapped, the standard error by the delta method.

    Args:
        slope: The function's derivative at the estimate.
    """
    error = estimate.standard_error
    return Estimate(
        value=function(estimate.value),
        standard_error=None if error is None else error * slope,
        low=None if estimate.low is None else function(estimate.low),
        high=None if estimate.high is None else function(estimate.high),
    )


def exponential(estimate: Estimate, scale: float = 1.0) -> Estimate:
    """``exp(scale * estimate)``, as a perplexity is of a mean negative log-likelihood; infinite where it overflows."""

    def function(value: float) -> float:
        try:
            return math.exp(scale * value)
        except OverflowError:
            return math.inf

    return transformed(estimate, function, scale * function(estimate.value))


def judge(kl: Estimate, log_perplexity: Estimate, *, kl_margin: float, perplexity_margin: float) -> Verdict:
    """Say whether a model is equivalent to its reference, worse, or whether the text cannot tell.

    ``equivalent``: the upper ends of both intervals are below the margins. ``worse``: a lower end is above its margin.

    Args:
        kl: Mean KL divergence per token, in nats.
        log_perplexity: Change of the logarithm of perplexity.
        perplexity_margin: Relative; 0.01 is one percent.
    """
    limits = ((kl, kl_margin), (log_perplexity, math.log1p(perplexity_margin)))
    if any(not math.isfinite(estimate.value) for estimate, _ in limits):
        return "worse"
    if any(estimate.low is not None and estimate.low > margin for estimate, margin in limits):
        return "worse"
    if all(estimate.high is not None and estimate.high < margin for estimate, margin in limits):
        return "equivalent"
    return "cannot tell"
