"""One function in a fresh process: its progress and log lines come back, and requests to stop are passed on to it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

from llmcompress.errors import InterruptedRunError
from llmcompress.system.memory import own_bytes, peak_rss_bytes
from llmcompress.system.messages import Done, Failed, await_greeting, receive, result_of
from llmcompress.system.progress import Progress, Reporter, silent
from llmcompress.system.starting import Started, start
from llmcompress.system.worker import call_with_progress

ResultT = TypeVar("ResultT")

GRACE_S = 10.0
_TICK_S = 0.2
_LAST_LINES = 10
_LAST_WORDS_S = 2.0
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

_Inbox = queue.SimpleQueue[bytes | None]
"""Messages, still pickles: what they import takes its time in the thread that waits for them. None: no more come."""


class _Worker(NamedTuple):
    """A worker, and what listens to it."""

    started: Started
    inbox: _Inbox
    last_lines: deque[str]
    log_reader: threading.Thread
    kind: tuple[object, ...]
    """What it was started with."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.started.process

    def end(self) -> None:
        """Let it end, which it does when nothing can be asked of it any more."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()


_waiting: list[_Worker] = []
"""One at most, which the next call takes or ends."""


def run_supervised(
    function: Callable[..., ResultT],
    kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
    search_path: Sequence[Path] = (),
    first_import: str = "",
    waiting: Literal["none", "leave", "take"] = "none",
) -> ResultT:
    """Call `function(**kwargs, progress=...)` in a Python process of its own and return what it returns.

    Args:
        function: a function of a module, whose name a pickle keeps; arguments, result and errors travel as pickles.
        kwargs: the function's keyword arguments, without `progress`; or what gives them, called while the process
            starts.
        progress: called here, in this thread, with each Progress that the function reports, in order.
        logs: called with each line that the worker writes to stdout or stderr, from another thread; by default only
            the last lines of a worker that crashed are shown, in the error.
        search_path: Where the worker looks for modules before it looks where this process does.
        first_import: A module that the worker imports meanwhile.
        waiting: `leave`: the worker waits for the next call afterwards, and one that does not take it ends it.
            `take`: where a call left a worker, it is that one, with what it has imported; else a fresh one.

    Ctrl-C, SIGTERM and SIGHUP are passed on to the worker; one that does not stop within `GRACE_S` is killed, at once
    with a second signal.

    Raises:
        Whatever the function raised, its traceback added as a note; of a foreign exception its name and message, as a
            LlmcompressError.
        KilledForMemoryError: the worker was killed for its memory, or got no more.
        InterruptedRunError: this process was told to stop; `exit_code` is 128 plus the signal's number.
        LlmcompressError: the worker crashed.
    """
    kind = (logs, tuple(search_path), first_import)
    worker = _take_waiting(kind if waiting == "take" else None) or _listened_to(
        start(stderr=subprocess.PIPE, search_path=search_path, first_import=first_import), logs, kind
    )
    with _stopping(worker.process) as received:
        worker.started.call(call_with_progress, function, dict(kwargs() if callable(kwargs) else kwargs))
        watched = _watch(worker.process, worker.inbox, received, progress)
        if waiting == "leave" and isinstance(watched.answer, Done) and not received:
            _waiting.append(worker)
            return cast(ResultT, result_of(watched.answer))
        worker.end()
        returncode = worker.process.wait()
    worker.log_reader.join(timeout=1)
    if received:
        raise _interrupted(received[0], watched.answer, killed=returncode == -9)
    if watched.answer is None:
        raise worker.started.death(
            stage=watched.stage, peak_rss_bytes_seen=watched.peak_rss_bytes, last_lines=tuple(worker.last_lines)
        )
    return cast(ResultT, result_of(watched.answer))


def end_waiting() -> None:
    """End the worker that a call left, where there is one."""
    _take_waiting(None)


def waiting_bytes() -> int:
    """Memory that the worker holds which a call left; 0: there is none."""
    return sum(own_bytes(worker.process.pid) for worker in _waiting)


def _take_waiting(kind: tuple[object, ...] | None) -> _Worker | None:
    """Take the worker that waits; one of another kind, or that is gone, ends."""
    if not _waiting:
        return None
    worker = _waiting.pop()
    if worker.kind == kind and worker.process.poll() is None:
        return worker
    worker.end()
    worker.process.wait()
    return None


def _listened_to(started: Started, logs: Callable[[str], None] | None, kind: tuple[object, ...]) -> _Worker:
    process = started.process
    assert process.stdout is not None
    assert process.stderr is not None
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    inbox: _Inbox = queue.SimpleQueue()
    threading.Thread(target=_read_messages, args=(process.stdout, inbox), daemon=True).start()
    log_reader = threading.Thread(target=_read_lines, args=(process.stderr, last_lines, logs), daemon=True)
    log_reader.start()
    return _Worker(started, inbox, last_lines, log_reader, kind)


class _Watched(NamedTuple):
    answer: Done | Failed | None
    """None: the worker ended without one."""
    stage: str
    """The last one that it reported."""
    peak_rss_bytes: int


def _watch(worker: subprocess.Popen[bytes], inbox: _Inbox, received: Sequence[int], progress: Reporter) -> _Watched:
    """Hand on progress until the answer is there, or does not come any more."""
    stage, peak, told = "", 0, False
    next_look, ended_at = 0.0, float("inf")
    while True:
        now = time.monotonic()
        if now >= next_look:
            peak = max(peak, peak_rss_bytes(worker.pid))
            next_look = now + _TICK_S
        if received and not told:
            told = True
            progress(Progress("stopping", 0, 0))
        try:
            message = inbox.get(timeout=_TICK_S)
        except queue.Empty:
            # A grandchild can hold the pipe open after the worker's end, so its end is looked for too.
            if worker.poll() is not None:
                ended_at = min(ended_at, now)
            if now - ended_at > _LAST_WORDS_S:
                return _Watched(None, stage, peak)
            continue
        arrived = None if message is None else pickle.loads(message)
        if not isinstance(arrived, Progress):
            return _Watched(arrived, stage, peak)
        stage = arrived.stage
        progress(arrived)


@contextlib.contextmanager
def _stopping(worker: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass this process's stop signals on to the worker; yields the list of those received; leaves no worker behind."""
    received: list[int] = []
    killer = threading.Timer(GRACE_S, worker.kill)
    killer.daemon = True

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            worker.kill()
            return
        killer.start()
        _ask_to_stop(worker)

    previous = {}
    # Python lets only the main thread set signal handlers; in another one the caller's handling stays as it is.
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)):
            # Ignored on purpose (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        if worker.poll() is None and not _waits(worker):
            # Only an error of this side (a reporter that raised) comes here with the worker still running.
            _ask_to_stop(worker)
            try:
                worker.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        killer.cancel()
        for number, handler in previous.items():
            # None: a handler from outside Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if not _waits(worker):
            with contextlib.suppress(OSError):
                if worker.stdin is not None:
                    worker.stdin.close()


def _waits(worker: subprocess.Popen[bytes]) -> bool:
    return any(each.process is worker for each in _waiting)


def _ask_to_stop(worker: subprocess.Popen[bytes]) -> None:
    if os.name == "nt":
        # There `terminate` would leave no time to clean up; the worker watches this pipe.
        if worker.stdin is not None:
            worker.stdin.close()
    else:
        worker.terminate()


def _read_messages(stream: IO[bytes], inbox: _Inbox) -> None:
    message = receive(stream) if await_greeting(stream) else None
    while message is not None:
        inbox.put(message)
        message = receive(stream)
    inbox.put(None)


def _read_lines(stream: IO[bytes], last_lines: deque[str], logs: Callable[[str], None] | None) -> None:
    # Universal newlines: a progress bar's carriage returns separate lines too.
    for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace"):
        if line.strip():
            last_lines.append(line.rstrip())
        if logs is not None:
            logs(line.rstrip())


def _interrupted(number: int, answer: Done | Failed | None, *, killed: bool) -> InterruptedRunError:
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    if isinstance(answer, Done):
        error = InterruptedRunError(
            f"interrupted by {by}, but the work was already done: its output is complete", hint="use it as it is"
        )
    elif killed:
        error = InterruptedRunError(
            f"interrupted by {by}; the worker did not stop by itself and was killed: the output is untouched, "
            "a hidden staging directory may lie next to it",
            hint="run the same command again: it removes what was left",
        )
    else:
        error = InterruptedRunError(f"interrupted by {by}; nothing was left behind", hint="run the same command again")
    error.exit_code = 128 + number
    return error
