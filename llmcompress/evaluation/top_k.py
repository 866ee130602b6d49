"""A lower bound of the divergence from the reference's likeliest tokens, for where memory holds one model at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.evaluation.graph import REFERENCE_IDS, vocabulary_size
from llmcompress.evaluation.measurement import ModelOnDevice, Scored, carry_out, scores_key
from llmcompress.evaluation.score_cache import ScoreCache, ScoringPass, each_batch
from llmcompress.evaluation.scoring import Batch, Call, Feed, batches, score
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.evaluation.scoring import Arrays

MASS = 0.99
"""Of the reference's probability, to be captured on average by its K likeliest tokens."""
SAMPLE_TOKENS = 256
SMALLEST_K = 64
ROUNDING = 1e-6


class TopTokens(NamedTuple):
    """The reference's K likeliest tokens at every scored position, in the cache."""

    cache: ScoreCache
    top_k: int
    properties: dict[str, str]
    """The reference's effective properties."""
    mass: float
    """Mean probability of the K tokens."""


def score_against_top_k(
    candidate: ModelOnDevice, reference: ModelOnDevice, feed: Feed, progress: Reporter, *, stage: str = "score"
) -> Scored:
    """A lower bound of the divergence, from the reference's K likeliest tokens and the mass of the rest.

    The reference runs first and alone, and only for what the cache does not hold yet; then the candidate. By the
    log-sum inequality, putting tokens together to one can only lower a KL divergence.
    """
    made = batches(feed, vocabulary_size(reference.loaded.model))
    known = _top_tokens(reference, feed, made, progress)
    compiled, effective = candidate.scorer("at_top_k")

    def run(todo: Sequence[Batch]) -> Iterator[tuple[Batch, list[Arrays]]]:
        stored: dict[tuple[int, ...], list[Arrays]] = {}

        def reference_ids(batch: Batch, call: Call) -> dict[str, ov.Tensor]:
            if batch.numbers not in stored:
                stored[batch.numbers] = known.cache.require(batch.numbers)
            return {REFERENCE_IDS: _ids_of_call(batch, call, feed, stored[batch.numbers])}

        for batch, scores in score(compiled, feed, todo, reference_ids):
            at_reference = stored.pop(batch.numbers)
            yield batch, [_bound(mine, theirs) for mine, theirs in zip(scores, at_reference, strict=True)]

    as_run = candidate._replace(properties=effective), reference._replace(properties=known.properties)
    cache = ScoreCache("evaluations", scores_key(f"top {known.top_k}", feed, *as_run))
    (found,) = carry_out(ScoringPass(stage, feed, made, cache, run), [(effective, known.properties)], progress)
    return found._replace(top_k=known.top_k, captured_mass=known.mass)


def _top_tokens(reference: ModelOnDevice, feed: Feed, made: Sequence[Batch], progress: Reporter) -> TopTokens:
    """Score the reference, with twice as many tokens where those did not hold enough of the mass."""
    import numpy as np

    compiled, effective = reference.scorer("logits")
    key = scores_key("reference", feed, reference._replace(properties=effective))
    known = ScoreCache("reference-scores", key).get(made[0].numbers)
    top_k = known[0]["ids"].shape[1] if known else _choose_k(compiled, feed, made[0])
    # It is large: never two of it at once.
    del compiled
    vocabulary = vocabulary_size(reference.loaded.model)
    while True:
        cache = ScoreCache("reference-scores", key)

        def run(todo: Sequence[Batch], top_k: int = top_k) -> Iterator[tuple[Batch, list[Arrays]]]:
            if todo:
                compiled, _ = reference.scorer("top_k", top_k=top_k)
                yield from score(compiled, feed, todo)

        masses: list[float] = []
        num_tokens = 0
        scoring = ScoringPass("score the reference", feed, made, cache, run)
        for _, scores, _ in each_batch(scoring, progress, must_keep=True):
            for window in scores:
                masses.append(float(np.exp(window["log_probabilities"].astype(np.float64)).sum()))
                num_tokens += len(window["nll"])
        mass = sum(masses) / num_tokens
        if mass >= MASS or top_k >= vocabulary:
            return TopTokens(cache, top_k, effective, mass)
        top_k = min(2 * top_k, vocabulary)
        cache.forget()


def _choose_k(compiled: ov.CompiledModel, feed: Feed, batch: Batch) -> int:
    """The smallest power of two whose tokens hold enough of the mass on the first tokens of the text."""
    import numpy as np

    number = batch.numbers[0]
    window = feed.windows.windows[number]
    only = Batch((number,), window.token_ids[None], window.first_scored)
    _, scores = next(score(compiled, feed, [only]))
    logits = scores[0]["logits"][:SAMPLE_TOKENS].astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    mass = np.cumsum(np.sort(probabilities, axis=1)[:, ::-1], axis=1).mean(axis=0)
    top_k = SMALLEST_K
    while top_k < len(mass) and mass[top_k - 1] < MASS:
        top_k *= 2
    return min(top_k, len(mass))


def _ids_of_call(batch: Batch, call: Call, feed: Feed, stored: Sequence[Arrays]) -> ov.Tensor:
    """The reference's tokens for each output row of a call; rows that are not scored get token 0."""
    import numpy as np
    import openvino as ov

    top_k = stored[0]["ids"].shape[1]
    ids = np.zeros((len(batch.numbers), call.end - call.first, top_k), dtype=np.int32)
    for row, number in enumerate(batch.numbers):
        # Position of the first stored row, counted from the call's first output row.
        offset = feed.windows.windows[number].first_scored - 1 - call.first
        known = stored[row]["ids"]
        begin, end = max(0, offset), min(ids.shape[1], offset + len(known))
        if begin < end:
            ids[row, begin:end] = known[begin - offset : end - offset]
    return ov.Tensor(ids)


def _bound(mine: Arrays, theirs: Arrays) -> Arrays:
    import numpy as np

    reference = theirs["log_probabilities"].astype(np.float64)
    candidate = mine["log_probabilities"].astype(np.float64)
    probabilities = np.exp(reference)
    # Below this the mass of the rest is rounding; no value above it makes the bound larger than it is.
    rest = np.clip(1.0 - probabilities.sum(axis=1), ROUNDING, 1.0)
    candidate_rest = np.clip(1.0 - np.exp(candidate).sum(axis=1), ROUNDING, 1.0)
    tail = rest * (np.log(rest) - np.log(candidate_rest))
    kl = (probabilities * (reference - candidate)).sum(axis=1) + tail
    return {
        "nll": mine["nll"],
        "reference_nll": theirs["nll"],
        "agrees": (mine["top_id"] == theirs["ids"][:, 0]).astype(np.float32),
        "kl": np.maximum(kl, 0.0),
    }
