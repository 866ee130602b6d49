"""Every worker process starts the same way, and its sudden end is explained the same way."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmcompress.errors import LlmcompressError
from llmcompress.system.exit import Death, explain
from llmcompress.system.memory import kill_count, memory, peak_rss_bytes, reaped_peak_rss_bytes
from llmcompress.system.messages import send


class Started(NamedTuple):
    """A worker process, and what the system had counted before it."""

    process: subprocess.Popen[bytes]
    kills_before: int | None
    reaped_before: int
    """The largest peak of the child processes that had ended."""

    def call(self, function: Callable[..., object], *arguments: object, **keywords: object) -> None:
        """Say what to do. A worker that is gone does not hear it: its end is explained where the answer is missing."""
        message = pickle.dumps((function, arguments, keywords))
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            send(self.process.stdin, message)

    def death(
        self, *, stage: str = "", peak_rss_bytes_seen: int = 0, last_lines: Sequence[str] | None = None
    ) -> LlmcompressError:
        """Wait for the end of a worker that gave no answer; return the error that explains it.

        Args:
            stage: The last that it told of.
            peak_rss_bytes_seen: Its peak as it was looked at while it ran.
            last_lines: What it wrote in the end; None: its stderr is ours.
        """
        returncode = self.process.wait()
        peak, reaped = peak_rss_bytes_seen, reaped_peak_rss_bytes()
        # The system keeps the largest of all children: it is this one's where it grew, and exact where a look came
        # late. A child begins with its parent's peak on record, so a smaller number says nothing.
        if reaped > max(self.reaped_before, peak_rss_bytes(os.getpid())):
            peak = max(peak, reaped)
        kills_now = kill_count()
        kills = None if self.kills_before is None or kills_now is None else kills_now - self.kills_before
        return explain(Death(returncode, stage, peak, memory(), kills, last_lines))


def start(*, stderr: int | None = None) -> Started:
    """Start a worker; ``stderr`` as ``subprocess`` takes it, None: it writes where this process writes."""
    # The worker imports from where this process imports; -P keeps it from adding the working directory to that.
    serve = f"from llmcompress.system.worker import serve; serve({os.getpid()})"
    command = [sys.executable, "-P", "-c", f"import sys; sys.path = {sys.path!r}; {serve}"]
    kills, reaped = kill_count(), reaped_peak_rss_bytes()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    return Started(process, kills, reaped)
