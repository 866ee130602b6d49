"""Scores of tokens -> perplexity and divergence with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.protocols import EvaluationWindows
from llmcompress.evaluation.intervals import clustered_mean, exponential, transformed
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import BackendShare, DivergenceRecord, Histogram, PerplexityRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KL_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 5))
"""Edges of the histogram of KL divergence, in nats: four a decade, the same for all, from what rounding leaves up."""


class TokenScores(NamedTuple):
    """Scores of all tokens in the order of the text, and the cluster of each."""

    values: dict[str, NDArray[np.float64]]
    """By name, ``[num_tokens]``."""
    clusters: NDArray[np.int64]
    """``[num_tokens]``, counted from 0 without gaps."""

    def mean(self, name: str, confidence: float) -> Estimate:
        """Mean of one score over tokens."""
        return self.total_per(name, self.counts(), confidence)

    def counts(self) -> NDArray[np.int64]:
        """Number of tokens in each cluster."""
        import numpy as np

        return np.bincount(self.clusters)

    def total_per(self, name: str, counts: NDArray[Any], confidence: float) -> Estimate:
        """Total of one score over the total of ``counts``, which holds one number for each cluster."""
        import numpy as np

        sums = np.bincount(self.clusters, weights=self.values[name]).astype(np.float64)
        return clustered_mean(sums, counts, confidence)

    def with_values(self, **values: NDArray[np.float64]) -> TokenScores:
        """The same tokens with more scores."""
        return TokenScores({**self.values, **values}, self.clusters)


def token_scores(windows: EvaluationWindows, by_window: Sequence[Mapping[str, NDArray[Any]]]) -> TokenScores:
    """Join what was scored window by window."""
    import numpy as np

    numbers = [window.cluster for window in windows.windows]
    _, clusters = np.unique(numbers, return_inverse=True)
    lengths = [len(scores["nll"]) for scores in by_window]
    names = [name for name in by_window[0] if by_window[0][name].ndim == 1]
    values = {name: np.concatenate([scores[name] for scores in by_window]).astype(np.float64) for name in names}
    return TokenScores(values, np.repeat(clusters, lengths).astype(np.int64))


def perplexity(
    scores: TokenScores, windows: EvaluationWindows, confidence: float, *, name: str = "nll"
) -> PerplexityRecord:
    """Perplexity per token, and under ``rolling`` per word and byte (lm-evaluation-harness's three metrics)."""
    nll = scores.mean(name, confidence)
    per_token = PerplexityRecord(perplexity=exponential(nll), nll=nll)
    if windows.num_words is None or windows.num_bytes is None:
        return per_token
    per_byte = scores.total_per(name, windows.num_bytes, confidence)
    return PerplexityRecord(
        perplexity=per_token.perplexity,
        nll=nll,
        word_perplexity=exponential(scores.total_per(name, windows.num_words, confidence)),
        byte_perplexity=exponential(per_byte),
        bits_per_byte=transformed(per_byte, lambda value: value / math.log(2), 1 / math.log(2)),
    )


def divergence(
    scores: TokenScores,
    confidence: float,
    *,
    top_k: int | None = None,
    captured_mass: float | None = None,
    logits_error: float = 0.0,
) -> DivergenceRecord:
    """Statistics of the candidate against the reference, over the same tokens.

    Args:
        scores: With ``nll``, ``reference_nll``, ``kl`` and ``agrees``.
        confidence: Of the intervals.
        top_k: Given when ``kl`` is a lower bound from the reference's K likeliest tokens.
        captured_mass: Their mean probability.
        logits_error: Of each of the reference's logits, at most.
    """
    import numpy as np

    kl = scores.values["kl"]
    paired = scores.with_values(change=scores.values["nll"] - scores.values["reference_nll"])
    change = paired.mean("change", confidence)
    probability_change = np.exp(-scores.values["nll"]) - np.exp(-scores.values["reference_nll"])
    median, p90, p99, p999 = (float(value) for value in np.quantile(kl, (0.5, 0.9, 0.99, 0.999)))
    return DivergenceRecord(
        exact=top_k is None,
        top_k=top_k,
        captured_mass=captured_mass,
        logits_error=logits_error,
        kl_divergence=scores.mean("kl", confidence),
        kl_median=median,
        kl_p90=p90,
        kl_p99=p99,
        kl_p999=p999,
        kl_max=float(kl.max()),
        kl_histogram=Histogram(edges=KL_EDGES, counts=_counts(kl, KL_EDGES)),
        top1_agreement=scores.mean("agrees", confidence),
        log_perplexity_change=change,
        perplexity_ratio=exponential(change),
        rms_probability_change=float(np.sqrt(np.mean(probability_change**2))),
    )


def backend_share(scores: Sequence[TokenScores], confidence: float) -> BackendShare | None:
    """What the paged graph adds, token by token, to what the stateful one lost; None where only one was scored.

    Args:
        scores: Of the stateful graph, and of the paged one.
    """
    if len(scores) != 2:
        return None
    stateful, paged = scores
    names = [name for name in ("nll", "kl") if name in stateful.values]
    added = paged.with_values(**{name: paged.values[name] - stateful.values[name] for name in names})
    kl = added.mean("kl", confidence) if "kl" in names else None
    return BackendShare(kl_divergence=kl, nll=added.mean("nll", confidence))


def _counts(values: NDArray[np.float64], edges: Sequence[float]) -> tuple[int, ...]:
    import numpy as np

    places = np.searchsorted(np.asarray(edges), values, side="right")
    return tuple(int(count) for count in np.bincount(places, minlength=len(edges) + 1))


def exact_kl(scores: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The KL divergence of each token from the graph's two forms: the fine one wherever it is finite."""
    import numpy as np

    fine, coarse = scores["kl"].astype(np.float64), scores["kl_coarse"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        # Both are at least 0 but for rounding.
        return np.maximum(np.where(np.isfinite(fine), fine, coarse), 0.0)
