"""The time and peak memory of each stage of a run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from llmcompress.report.record import Measured, StageTime
from llmcompress.system.memory import peak_rss_bytes


class Stages:
    """Collects the stages of one run, in order."""

    def __init__(self) -> None:
        self._created = datetime.now(UTC)
        self._started = time.perf_counter()
        self._done: list[StageTime] = []
        self._paused: float | None = None

    def pause(self) -> None:
        """Leave the time from now to the next stage out of the whole."""
        self._paused = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one stage; a stage that fails is not recorded."""
        started = time.perf_counter()
        if self._paused is not None:
            self._started += started - self._paused
            self._paused = None
        yield
        duration_s = time.perf_counter() - started
        self._done.append(StageTime(stage=name, duration_s=duration_s, peak_rss_bytes=peak_rss_bytes(os.getpid())))

    def measured(self) -> Measured:
        """What was measured so far."""
        return Measured(
            created=self._created.isoformat(timespec="seconds"),
            duration_s=time.perf_counter() - self._started,
            peak_rss_bytes=peak_rss_bytes(os.getpid()),
            stages=tuple(self._done),
        )
