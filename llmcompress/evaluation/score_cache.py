"""Scores by batch, kept in the cache: an interrupted evaluation goes on from them, a reference is scored once."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import WriteError
from llmcompress.evaluation.scoring import Batch, Call, Feed, num_scored
from llmcompress.system.arrays import read_arrays
from llmcompress.system.cache import cache_dir, hold
from llmcompress.system.files import replacing
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    from llmcompress.evaluation.scoring import Arrays

    Score = Callable[[Sequence[Batch]], Iterator[tuple[Batch, list[Arrays]]]]
    """Batches -> each with the arrays of its windows."""


class ScoreCache:
    """The arrays of each window of a batch, one file for a batch, below ``cache_dir() / kind / key``."""

    def __init__(self, kind: str, key: str) -> None:
        self._directory = cache_dir() / kind / key
        hold(self._directory)

    def get(self, numbers: Sequence[int]) -> list[Arrays] | None:
        """The scores of a batch of windows; None where they are not there or were not written to their end."""
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            stored = read_arrays(self._directory / self._name(numbers))
            if tuple(stored["numbers"]) != tuple(numbers):
                return None
            found: list[Arrays] = [{} for _ in numbers]
            for name, values in stored.items():
                row, slash, field = name.partition("/")
                if slash:
                    found[int(row)][field] = values
            return found
        return None

    def require(self, numbers: Sequence[int]) -> list[Arrays]:
        """The scores of a batch that was written before.

        Raises:
            WriteError: They are gone.
        """
        found = self.get(numbers)
        if found is None:
            raise _not_kept()
        return found

    def add(self, numbers: Sequence[int], by_window: Sequence[Arrays]) -> bool:
        """Write the scores of a batch, by one rename. False: the cache's disk refuses, which stops no evaluation."""
        import numpy as np

        named = {f"{row}/{name}": values for row, scores in enumerate(by_window) for name, values in scores.items()}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with replacing(self._directory / self._name(numbers), durable=False) as file:
                np.savez(file, allow_pickle=False, numbers=np.array(numbers), **named)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Remove them all."""
        shutil.rmtree(self._directory, ignore_errors=True)

    @staticmethod
    def _name(numbers: Sequence[int]) -> str:
        return f"{numbers[0]:08d}.npz"


class ScoringPass(NamedTuple):
    """A text that is scored one way, and where its scores are kept."""

    stage: str
    """Its name in progress."""
    feed: Feed
    batches: Sequence[Batch]
    cache: ScoreCache
    score: Score


class NewScores(NamedTuple):
    """What was not in the cache and had to be scored."""

    num_windows: int = 0
    num_tokens: int = 0
    duration_s: float = 0.0

    def tokens_per_s(self) -> float | None:
        """Scored tokens a second, compiling aside; None where nothing was scored."""
        return self.num_tokens / self.duration_s if self.num_tokens else None


def all_scores(scoring: ScoringPass, progress: Reporter) -> tuple[list[Arrays], NewScores]:
    """The arrays of every window, in the order of the text."""
    found: dict[int, Arrays] = {}
    new, started = NewScores(), time.perf_counter()
    for batch, scores, was_cached in each_batch(scoring, progress):
        found.update(zip(batch.numbers, scores, strict=True))
        if was_cached:
            started = time.perf_counter()
            continue
        num_tokens = new.num_tokens + _count(scores)
        new = NewScores(new.num_windows + len(batch.numbers), num_tokens, time.perf_counter() - started)
    return [found[number] for number in range(len(found))], new


def each_batch(
    scoring: ScoringPass, progress: Reporter, *, must_keep: bool = False
) -> Iterator[tuple[Batch, list[Arrays], bool]]:
    """Every batch with its scores and whether they were cached: those first, then the others, which then are.

    Progress is reported after each call, in scored tokens.

    Raises:
        WriteError: The disk refuses scores that must be kept.
    """
    total = scoring.feed.windows.record.num_scored_tokens
    # Of each batch so far, by its first window.
    done: dict[int, int] = {}

    def tell() -> None:
        progress(Progress(scoring.stage, sum(done.values()), total, "tokens"))

    def told(batch: Batch) -> Batch:
        def called(call: Call) -> None:
            done[batch.numbers[0]] = done.get(batch.numbers[0], 0) + num_scored(scoring.feed, batch, call)
            tell()

        return batch._replace(called=called)

    tell()
    todo = []
    for batch in scoring.batches:
        scores = scoring.cache.get(batch.numbers)
        if scores is None:
            todo.append(told(batch))
            continue
        done[batch.numbers[0]] = _count(scores)
        tell()
        yield batch, scores, True
    for batch, scores in scoring.score(todo):
        if not scoring.cache.add(batch.numbers, scores) and must_keep:
            raise _not_kept()
        done[batch.numbers[0]] = _count(scores)
        tell()
        yield batch, scores, False


def _count(scores: Sequence[Arrays]) -> int:
    return sum(len(window["nll"]) for window in scores)


def _not_kept() -> WriteError:
    return WriteError(
        "the reference's scores cannot be kept in the cache",
        where=str(cache_dir()),
        hint='free disk space, set LLMCOMPRESS_CACHE to another disk, or take `reference_scores="exact"`',
    )
