"""How often intervals and verdicts are right: simulated models whose true divergence and speed are known.

    python tests/faults/evidence.py --num-runs 4000

Tokens are skewed, as KL divergences are, and those of one window share a part: some texts are harder than others. The
spread between windows is given as the standard deviation of the logarithm of a window's mean; of the artifacts of the
documentation it is 0.1 to 0.3.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmcompress.benchmarking.ratios import judge_ratio, paired_ratio
from llmcompress.evaluation.intervals import clustered_mean, judge
from llmcompress.report.estimate import Estimate

TOKEN_SPREAD = 1.2
"""Standard deviation of the logarithm of a token's KL divergence."""
CONFIDENCE = 0.95


class Outcome(NamedTuple):
    """How often something that is claimed was so."""

    what: str
    under: str
    share: float
    wanted: str
    right: bool


def kl_windows(
    generator: np.random.Generator, num_windows: int, mean: float, spread: float, num_tokens: int | tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum and number of tokens of each window; the mean over all tokens there could be is ``mean``."""
    if isinstance(num_tokens, int):
        counts = np.full(num_windows, num_tokens)
    else:
        counts = generator.integers(*num_tokens, num_windows)
    shared = np.exp(generator.normal(-(spread**2) / 2, spread, num_windows))
    tokens = np.exp(generator.normal(-(TOKEN_SPREAD**2) / 2, TOKEN_SPREAD, int(counts.sum())))
    sums = np.add.reduceat(tokens, np.concatenate([[0], counts.cumsum()[:-1]]))
    return mean * shared * sums, counts


def kl_interval(generator: np.random.Generator, mean: float, **shape: Any) -> Estimate:
    sums, counts = kl_windows(generator, mean=mean, **shape)
    return clustered_mean(sums, counts, CONFIDENCE)


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def coverage(num_runs: int) -> Iterator[Outcome]:
    """Intervals of KL divergence, of the change of perplexity and of a ratio of speeds."""
    generator = np.random.default_rng(1)
    for num_windows in (16, 32, 64):
        for spread in (0.1, 0.3, 0.5):
            for num_tokens in (255, (64, 512)):
                shape = {"num_windows": num_windows, "spread": spread, "num_tokens": num_tokens}
                found = [covers(kl_interval(generator, 0.01, **shape), 0.01) for _ in range(num_runs)]
                lengths = "equal" if isinstance(num_tokens, int) else "unequal"
                under = f"{num_windows} windows of {lengths} length, spread {spread}"
                yield _covered("interval of the KL divergence", under, found)
    for num_windows in (16, 64):
        found = [covers(_change(generator, 0.01, num_windows), 0.01) for _ in range(num_runs)]
        yield _covered("interval of the change of log perplexity", f"{num_windows} windows, heavy tails", found)
    for noise in (0.02, 0.1):
        for repetitions in (5, 15):
            found = [covers(_speed(generator, 1.05, noise, repetitions), 1.05) for _ in range(num_runs)]
            under = f"{repetitions} runs a side, noise of {noise:.0%}, a machine that slows down by a third"
            yield _covered("interval of a ratio of speeds", under, found)


def verdicts(num_runs: int) -> Iterator[Outcome]:
    """Models beside the margin, which must not be called what they are not."""
    generator = np.random.default_rng(2)
    margin = 0.01
    for share in (0.5, 0.9, 1.0, 1.1, 2.0):
        shape = {"num_windows": 64, "spread": 0.3, "num_tokens": 255}
        found = [
            judge(
                kl_interval(generator, share * margin, **shape),
                _change(generator, 0.0, 64),
                kl_margin=margin,
                perplexity_margin=0.2,
            )
            for _ in range(num_runs)
        ]
        wrong = [verdict == ("equivalent" if share >= 1 else "worse") for verdict in found]
        yield _seldom("a verdict on a model that it is wrong of", f"{share} of the margin, 64 windows", wrong)


def wins(num_runs: int) -> Iterator[Outcome]:
    """What is said to beat another beyond noise, where both are the same."""
    generator = np.random.default_rng(3)
    for repetitions in (5, 15):
        found = [judge_ratio(_speed(generator, 1.0, 0.05, repetitions)) == "better" for _ in range(num_runs)]
        yield _seldom("a setting that is called faster and is not", f"{repetitions} runs a side", found)
    for num_windows in (16, 64):
        found = []
        for _ in range(num_runs):
            shared = kl_windows(generator, num_windows, 0.01, 0.3, 255)
            noise = [kl_windows(generator, num_windows, 0.01, 0.1, 255)[0] for _ in range(2)]
            gain = clustered_mean((noise[0] - noise[1]) * shared[0] / shared[0].mean(), shared[1], CONFIDENCE)
            found.append(gain.low is not None and gain.low > 0)
        yield _seldom("a plan that is said to lose less and does not", f"{num_windows} windows", found)


def _change(generator: np.random.Generator, mean: float, num_windows: int) -> Estimate:
    shared = generator.normal(0, 0.02, num_windows)
    tokens = 0.1 * generator.standard_t(4, (num_windows, 255))
    sums = (mean + shared[:, None] + tokens).sum(1)
    return clustered_mean(sums, np.full(num_windows, 255), CONFIDENCE)


def _speed(generator: np.random.Generator, truth: float, noise: float, repetitions: int) -> Estimate:
    """Runs in turn on a machine that gets slower; what hits both of a pair cancels."""
    drift = np.exp(-np.linspace(0, 0.33, repetitions) + generator.normal(0, 0.1, repetitions))
    mine, theirs = (drift * np.exp(generator.normal(0, noise, repetitions)) for _ in range(2))
    return paired_ratio((truth * mine).tolist(), theirs.tolist(), CONFIDENCE)


def _covered(what: str, under: str, found: list[bool]) -> Outcome:
    share = float(np.mean(found))
    return Outcome(what, under, share, "95 % within 1.5", abs(share - CONFIDENCE) <= 0.015 + _noise(found))


def _seldom(what: str, under: str, found: list[bool]) -> Outcome:
    share = float(np.mean(found))
    return Outcome(what, under, share, "under 5 %", share < 0.05)


def _noise(found: list[bool]) -> float:
    """What the simulation's own number of runs leaves open: two standard errors."""
    return float(2 * np.sqrt(0.05 * 0.95 / len(found)))


def simulated(num_runs: int) -> list[Outcome]:
    """All of it."""
    return [*coverage(num_runs), *verdicts(num_runs), *wins(num_runs)]


def main() -> None:
    """Print a table for the documentation; exit code 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-runs", type=int, default=4000, help="of each row")
    parser.add_argument("--json", type=Path, help="also write the outcomes here")
    args = parser.parse_args()
    outcomes = simulated(args.num_runs)
    print("| what | under | share | wanted |\n|---|---|---|---|")
    for each in outcomes:
        mark = "" if each.right else " **not kept**"
        print(f"| {each.what} | {each.under} | {each.share:.1%}{mark} | {each.wanted} |")
    if args.json is not None:
        args.json.write_text(json.dumps([each._asdict() for each in outcomes], indent=2) + "\n")
    sys.exit(0 if all(each.right for each in outcomes) else 1)


if __name__ == "__main__":
    main()
