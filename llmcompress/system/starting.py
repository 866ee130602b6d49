"""Every worker process starts the same way, and its sudden end is explained the same way."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import KilledForMemoryError, LlmcompressError
from llmcompress.system.memory import Memory, kill_count, memory, peak_rss_bytes, reaped_peak_rss_bytes
from llmcompress.system.messages import send

_NEAR_THE_LIMIT = 0.9
_SIGKILL = 9
_REMEDY = (
    "give it more memory or close other programs; --dry-run predicts the peak; "
    "a recipe without calibration data needs less"
)


class Started(NamedTuple):
    """A worker process, and what the system had counted before it."""

    process: subprocess.Popen[bytes]
    kills_before: int | None
    reaped_before: int
    """The largest peak of the child processes that had ended."""

    def call(self, function: Callable[..., object], *arguments: object, **keywords: object) -> None:
        """Send a call. A worker that is gone does not get it: its end is explained where the answer is missing."""
        message = pickle.dumps((function, arguments, keywords))
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            send(self.process.stdin, message)

    def death(
        self, *, stage: str = "", peak_rss_bytes_seen: int = 0, last_lines: Sequence[str] | None = None
    ) -> LlmcompressError:
        """Wait for the end of a worker that gave no answer; return the error that explains it.

        Args:
            stage: The last one that it reported.
            peak_rss_bytes_seen: Its peak as it was looked at while it ran.
            last_lines: Its last lines; None: its stderr is ours.
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


def start(*, stderr: int | None = None, search_path: Sequence[Path] = (), first_import: str = "") -> Started:
    """Start a worker.

    Args:
        first_import: A module that it imports before it is asked for anything; where that fails, the call that needs
            it says why.
        stderr: As ``subprocess`` takes it; None: it writes where this process writes.
        search_path: Where it looks for modules before it looks where this process does.
    """
    # The worker imports from where this process imports; -P keeps it from adding the working directory to that.
    path = [*map(str, search_path), *sys.path]
    lines = [
        # Nothing that is imported goes again: looking through it for what could takes a sixth of the time.
        "import gc; gc.disable()",
        f"import sys; sys.path = {path!r}",
        "from llmcompress.system import worker",
        f"worker.begin({os.getpid()})",
    ]
    if first_import:
        lines += ["try:", f"    import {first_import}", "except Exception: pass"]
    command = [sys.executable, "-P", "-c", "\n".join([*lines, "worker.serve()"])]
    kills, reaped = kill_count(), reaped_peak_rss_bytes()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    return Started(process, kills, reaped)


class Death(NamedTuple):
    """What is known of a worker that ended without an answer."""

    returncode: int
    """As `subprocess` has it: minus the signal's number where a signal ended it."""
    stage: str
    peak_rss_bytes: int
    memory: Memory
    kills: int | None
    """Kernel kills for memory while the worker ran; None where the system does not count them."""
    last_lines: Sequence[str] | None
    """Its last lines; None: they went where this process writes."""


def explain(death: Death) -> LlmcompressError:
    """Return the error for a worker that ended without an answer.

    SIGKILL is put down to memory when the kernel counted such a kill meanwhile, when the peak came near the limit,
    or when the system keeps no count: nothing else ends a worker that way unasked.
    """
    at = f" in stage '{death.stage}'" if death.stage else ""
    peak = f"peak {death.peak_rss_bytes / 1e9:.2f} GB" if death.peak_rss_bytes else "peak unknown"
    limited = "limit" if death.memory.limit is not None else "machine"
    measures = f"{peak}, {limited} {death.memory.total / 1e9:.2f} GB"
    if any("std::bad_alloc" in line for line in death.last_lines or ()):
        return KilledForMemoryError(f"the worker got no more memory{at}: {measures}", hint=_REMEDY)
    if death.returncode == -_SIGKILL:
        near = death.peak_rss_bytes >= _NEAR_THE_LIMIT * death.memory.total
        if death.kills is None or death.kills > 0 or near:
            return KilledForMemoryError(
                f"the operating system killed the worker for its memory{at}: {measures}", hint=_REMEDY
            )
        return LlmcompressError(
            f"the worker was killed (SIGKILL){at}, possibly for its memory: {measures}, "
            "but the kernel counted no such kill",
            hint=f"look who sends SIGKILL here (a batch system, a memory guard); {_REMEDY}",
        )
    if death.last_lines is None:
        return LlmcompressError(f"the worker ended with code {death.returncode}", hint="run it again with -v")
    ended = (
        f"crashed with {_signal_name(-death.returncode)}" if death.returncode < 0 else f"exited with {death.returncode}"
    )
    return LlmcompressError(
        f"the worker {ended}{at} ({measures})" + ("; its last lines:" if death.last_lines else ", and wrote nothing"),
        hint="-v shows all that it writes; 'llmcompress doctor' looks for broken libraries",
        quoted=death.last_lines,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
