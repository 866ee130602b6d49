"""The divergence over the full vocabulary where memory holds one model at a time: first the reference, then the others.

The reference's logits wait on disk, rounded (``logits_cache.STEP``). Rounding errors have no sign: in a mean over
tokens they even out but for ``STEP**2 / 24``, 4e-8 nats. Of a single token's KL divergence d, where that is small, they
change about ``STEP * sqrt(2 d)`` at most.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from llmcompress.errors import WriteError
from llmcompress.evaluation.graph import vocabulary_size
from llmcompress.evaluation.logits_cache import STEP, LogitsCache
from llmcompress.evaluation.measurement import ModelOnDevice, Scored, kept_logits, score_against_kept, scores_key
from llmcompress.evaluation.scoring import Feed, batches, calls, num_scored, score_against
from llmcompress.system.cache import cache_dir, hold
from llmcompress.system.progress import Progress, Reporter

KIND = "reference-logits"
"""In the cache, until the evaluation is done."""


def rounded_logits(
    candidates: Sequence[ModelOnDevice], reference: ModelOnDevice, feed: Feed, logits_dir: Path | None
) -> LogitsCache:
    """Where a reference's rounded logits are kept: in the directory of those who measure several, else in the cache."""
    return kept_logits(logits_dir or _place(candidates, reference, feed), reference, feed, rounded=True)


def forget_logits(candidates: Sequence[ModelOnDevice], reference: ModelOnDevice, feed: Feed) -> None:
    """Remove what ``score_in_turn`` keeps in the cache, also of an earlier run that was ended."""
    shutil.rmtree(_place(candidates, reference, feed), ignore_errors=True)


def _place(candidates: Sequence[ModelOnDevice], reference: ModelOnDevice, feed: Feed) -> Path:
    return cache_dir() / KIND / scores_key("in turn", feed, *candidates, reference)


def score_in_turn(
    candidates: Sequence[ModelOnDevice],
    reference: ModelOnDevice,
    feed: Feed,
    progress: Reporter,
    *,
    logits_dir: Path | None = None,
) -> tuple[Scored, ...]:
    """As ``score_at_once``, with one model in memory at a time.

    Args:
        candidates: Forms of one model.
        reference: It runs first, and only over what is not kept of it yet.
        feed: What is scored.
        progress: Told of the tokens of each model.
        logits_dir: Where the logits stay for the next candidates; None: in the cache, until ``forget_logits``.

    Raises:
        ModelError: The reference's logits are not finite.
        WriteError: The disk has no room for them, or they were removed meanwhile.
    """
    kept = rounded_logits(candidates, reference, feed, logits_dir)
    if logits_dir is None:
        hold(kept.directory.parent)
    _keep(kept, reference, feed, progress)
    found = []
    for number, candidate in enumerate(candidates):
        stage = f"score, {candidate.backend}" if number else "score"
        (scored,) = score_against_kept((candidate,), reference, feed, progress, kept, stage=stage)
        found.append(scored._replace(logits_error=STEP))
    return tuple(found)


def _keep(kept: LogitsCache, reference: ModelOnDevice, feed: Feed, progress: Reporter) -> None:
    """Run the reference over what is not kept yet."""
    made = batches(feed, vocabulary_size(reference.loaded.model))
    missing = [each for each in made if kept.get(each.numbers, len(list(calls(each, feed.chunk)))) is None]
    if not missing:
        return
    if not kept.has_room:
        raise _no_room(kept)
    compiled, properties = reference.scorer("logits")
    kept.keep_properties(properties)
    total = feed.windows.record.num_scored_tokens
    done = total - sum(num_scored(feed, each, call) for each in missing for call in calls(each, feed.chunk))
    progress(Progress("score the reference", done, total, "tokens"))
    for batch, _ in score_against(lambda: compiled, (), feed, missing, kept):
        if not kept.has_room:
            raise _no_room(kept)
        done += sum(num_scored(feed, batch, call) for call in calls(batch, feed.chunk))
        progress(Progress("score the reference", done, total, "tokens"))


def _no_room(kept: LogitsCache) -> WriteError:
    needed = f"the reference's logits need {kept.num_bytes / 1e9:.2g} GB of disk"
    refusal = kept.refusal and (kept.refusal.strerror or kept.refusal)
    message = f"{needed}: {refusal}" if refusal else f"{needed}, and as much again left free"
    return WriteError(
        message,
        where=str(kept.directory.parent),
        hint="free disk space, take another disk (`LLMCOMPRESS_CACHE` names the one of the cache) or fewer windows, or "
        '`reference_scores="cached"`',
    )
