"""Intervals that cover the truth, and verdicts at the stated rates, on simulated tokens that hang together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from llmcompress.evaluation.intervals import clustered_mean, exponential, judge
from llmcompress.report.estimate import Estimate

NUM_TOKENS = 64


def windows(
    generator: np.random.Generator, num_windows: int, mean: float, *, between: float = 0.5
) -> NDArray[np.float64]:
    """Skewed values of ``mean``, as KL divergences are, that share a part within a window: [num_windows, tokens]."""
    shared = np.exp(generator.normal(-(between**2) / 2, between, (num_windows, 1)))
    own = np.exp(generator.normal(-0.5, 1.0, (num_windows, NUM_TOKENS)))
    values: NDArray[np.float64] = mean * shared * own
    return values


def estimate(values: NDArray[np.float64], confidence: float = 0.95) -> Estimate:
    counts = np.full(len(values), values.shape[1], dtype=np.int64)
    return clustered_mean(values.sum(axis=1), counts, confidence)


@pytest.mark.parametrize("num_windows", [20, 100])
def test_intervals_cover_the_truth(num_windows: int) -> None:
    generator = np.random.default_rng(1)
    runs = [estimate(windows(generator, num_windows, 0.01)) for _ in range(1000)]
    covered = np.mean([run.low <= 0.01 <= run.high for run in runs if run.low is not None and run.high is not None])
    assert 0.91 <= covered <= 0.98
    # Taking tokens for independent, as llama.cpp does, promises far more than it keeps.
    naive = 0
    for _ in range(300):
        values = windows(generator, num_windows, 0.01)
        reach = 1.96 * values.std() / math.sqrt(values.size)
        naive += abs(values.mean() - 0.01) <= reach
    assert naive / 300 < 0.75


def test_an_interval_allows_for_a_few_texts_in_which_much_is_lost() -> None:
    """By the definition of Hall's transformation, and by how often the truth lies above."""
    generator = np.random.default_rng(3)
    sums, counts = windows(generator, 40, 0.01, between=1.0).sum(axis=1), np.full(40, NUM_TOKENS, dtype=np.int64)
    got = clustered_mean(sums, counts, 0.95)
    # How far each window lies from the mean of the others.
    means = sums / NUM_TOKENS
    others = np.array([np.delete(means, number).mean() for number in range(40)])
    deviation, skewness = float((means - others).std(ddof=1)), float(stats.skew(means, bias=False))
    for end, quantile in ((got.low, 0.975), (got.high, 0.025)):
        assert end is not None
        off = (got.value - end) / deviation
        transformed = off + skewness * off**2 / 3 + skewness**2 * off**3 / 27 + skewness / (6 * 40)
        assert transformed == pytest.approx(stats.t.ppf(quantile, 39) / math.sqrt(40))
    assert got.high is not None
    assert got.low is not None
    assert got.high - got.value > 1.2 * (got.value - got.low)
    runs = [estimate(windows(generator, 40, 0.01, between=0.8)) for _ in range(1000)]
    above = np.mean([run.high < 0.01 for run in runs if run.high is not None])
    # Student's interval alone leaves it there in about 9 percent.
    assert above <= 0.065


def test_unequal_clusters_weigh_by_their_tokens() -> None:
    sums, counts = np.array([1.0, 30.0]), np.array([1, 10], dtype=np.int64)
    got = clustered_mean(sums, counts, 0.95)
    assert got.value == pytest.approx(31 / 11)
    # The delta-method variance of a ratio, written out.
    residuals = sums - 31 / 11 * counts
    variance = 2 / (2 - 1) * float((residuals**2).sum()) / 11**2
    assert got.standard_error == pytest.approx(math.sqrt(variance))


def test_a_long_cluster_does_not_narrow_the_interval() -> None:
    """What is left of a cluster is measured from the ratio of the others' totals, weighed by their tokens."""
    sums, counts = np.array([1.0, 5.0, 2.0, 60.0]), np.array([2, 4, 3, 20], dtype=np.int64)
    got = clustered_mean(sums, counts, 0.95)
    others = [np.delete(sums, number).sum() / np.delete(counts, number).sum() for number in range(4)]
    left_out = (sums - np.array(others) * counts) * 4 / counts.sum()
    deviation, skewness = float(left_out.std(ddof=1)), float(stats.skew(left_out, bias=False))
    assert got.low is not None
    off = (got.value - got.low) / deviation
    transformed = off + skewness * off**2 / 3 + skewness**2 * off**3 / 27 + skewness / (6 * 4)
    assert transformed == pytest.approx(stats.t.ppf(0.975, 3) / 2)


@pytest.mark.parametrize("counts", [[2], [0, 2, 0]])
def test_one_cluster_has_no_interval(counts: list[int]) -> None:
    sums = np.where(counts, 3.0, 0.0)
    got = clustered_mean(sums, np.array(counts, dtype=np.int64), 0.95)
    assert (got.value, got.standard_error, got.low, got.high) == (1.5, None, None, None)
    small = Estimate(value=0.0, standard_error=None, low=None, high=None)
    assert judge(small, small, kl_margin=1.0, perplexity_margin=1.0) == "cannot tell"


def test_perplexity_is_the_exponential_with_its_ends() -> None:
    got = exponential(Estimate(value=2.0, standard_error=0.1, low=1.8, high=2.2))
    assert got.value == pytest.approx(math.e**2)
    assert (got.low, got.high) == (pytest.approx(math.exp(1.8)), pytest.approx(math.exp(2.2)))
    assert got.standard_error == pytest.approx(0.1 * math.e**2)
    assert exponential(Estimate(value=1e4, standard_error=None, low=None, high=None)).value == math.inf


@pytest.mark.parametrize(
    ("kl", "change", "verdict"),
    [(0.007, 0.004, "equivalent"), (0.014, 0.004, "worse"), (0.007, 0.016, "worse"), (0.01, 0.004, "cannot tell")],
)
def test_verdicts_just_inside_and_just_outside_the_margins(kl: float, change: float, verdict: str) -> None:
    generator = np.random.default_rng(2)
    verdicts = []
    for _ in range(300):
        changes = change + generator.normal(0, 0.1, (400, NUM_TOKENS)) + generator.normal(0, 0.01, (400, 1))
        verdicts.append(
            judge(
                estimate(windows(generator, 400, kl, between=0.3)),
                estimate(changes),
                kl_margin=0.01,
                perplexity_margin=0.01,
            )
        )
    assert verdicts.count(verdict) / len(verdicts) >= 0.93
    # A model beyond a margin is called equivalent in about 2.5 percent of the cases, and the other way round.
    wrong = {"equivalent": "worse", "worse": "equivalent", "cannot tell": "worse"}[verdict]
    assert verdicts.count(wrong) / len(verdicts) <= 0.04


def test_what_is_not_a_number_is_worse() -> None:
    nan = Estimate(value=math.nan, standard_error=None, low=None, high=None)
    fine = Estimate(value=0.0, standard_error=0.0, low=0.0, high=0.0)
    assert judge(nan, fine, kl_margin=0.01, perplexity_margin=0.01) == "worse"
