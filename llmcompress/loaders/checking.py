"""The check of a checkpoint's weights, in the background: it takes the time that imports and tracing leave free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import NamedTuple

from llmcompress.loaders.scan import scan
from llmcompress.loaders.source import Source, source_checkpoint
from llmcompress.loaders.tensors import Checkpoint, refuse_empty
from llmcompress.report.record import FileRecord
from llmcompress.system.progress import Progress, Reporter, silent


class CheckedWeights(NamedTuple):
    """Validated headers, and the bytes' check that may still be running."""

    checkpoint: Checkpoint
    records: Future[tuple[FileRecord, ...]]
    """Raises what ``scan`` raises."""
    allow_nonfinite: bool = False
    """Whether weights that are NaN or infinite are gone on with."""


StartCheck = Callable[[Source], CheckedWeights]
"""Validates a source's headers and starts the check of its bytes."""


class _NoLongerNeededError(Exception):
    """Ends the scan of a run that has failed or was interrupted elsewhere."""


@contextmanager
def weights_checked(*, allow_nonfinite: bool = False, progress: Reporter = silent) -> Iterator[StartCheck]:
    """Give a function that validates a source's headers and starts the check of its bytes.

    Leaving ends a check that is still running. The function raises what ``read_checkpoint`` and ``refuse_empty`` raise.
    """
    ended = Event()

    def told(step: Progress) -> None:
        if ended.is_set():
            raise _NoLongerNeededError
        progress(step)

    def start(source: Source) -> CheckedWeights:
        checkpoint = source_checkpoint(source)
        refuse_empty(checkpoint)
        records = pool.submit(
            scan,
            checkpoint,
            allow_nonfinite=allow_nonfinite,
            expected_sha256=source.expected_sha256,
            progress=told,
        )
        return CheckedWeights(checkpoint, records, allow_nonfinite)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield start
        finally:
            ended.set()
