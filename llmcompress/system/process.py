"""The parent's side: start the worker, hand on progress and log lines, pass on the wish to stop, return the result."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import IO, Any, TypeVar, cast

from llmcompress.errors import InterruptedRunError
from llmcompress.system.exit import Death, explain
from llmcompress.system.memory import kill_count, memory, peak_rss_bytes, reaped_peak_rss_bytes
from llmcompress.system.progress import Progress, Reporter, silent
from llmcompress.system.worker import GREETING, Done, Failed, Job

ResultT = TypeVar("ResultT")

_TICK_S = 0.2
_LAST_LINES = 10
_LAST_WORDS_S = 2.0
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

_Inbox = queue.SimpleQueue["Progress | Done | Failed | None"]


def run_supervised(
    function: Callable[..., ResultT],
    kwargs: Mapping[str, Any],
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
    grace_s: float = 10.0,
) -> ResultT:
    """Call `function(**kwargs, progress=...)` in a fresh Python process and return what it returns.

    Args:
        function: a function of a module, whose name a pickle keeps; arguments, result and errors travel as pickles.
        kwargs: the function's keyword arguments, without `progress`.
        progress: called here, in this thread, with each Progress that the function reports, in order.
        logs: called with each line that the worker writes to stdout or stderr, from another thread; by default only
            the last lines of a worker that crashed are shown, in the error.
        grace_s: seconds from Ctrl-C, SIGTERM or SIGHUP until a worker that does not stop is killed. A second signal
            kills it at once.

    Raises:
        Whatever the function raised, its traceback added as a note.
        KilledForMemoryError: the worker was killed for its memory, or got no more.
        InterruptedRunError: this process was told to stop; `exit_code` is 128 plus the signal's number.
        LlmcompressError: the worker crashed.
    """
    kills_before = kill_count()
    worker = _start()
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    inbox: _Inbox = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_read_messages, args=(worker.stdout, inbox), daemon=True),
        threading.Thread(target=_read_lines, args=(worker.stderr, last_lines, logs), daemon=True),
    ]
    for reader in readers:
        reader.start()
    stage, answer, told = "", None, False
    peak, reaped_before = 0, reaped_peak_rss_bytes()
    with _stopping(worker, grace_s) as received:
        # A worker that died while Python started is explained below, by its end.
        with contextlib.suppress(OSError):
            pickle.dump(Job(pickle.dumps((function, dict(kwargs))), os.getpid()), worker.stdin)
            worker.stdin.flush()
        next_look, ended_at = 0.0, float("inf")
        while answer is None:
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
                    break
                continue
            if message is None:
                break
            if isinstance(message, Progress):
                stage = message.stage
                progress(message)
            else:
                answer = message
        returncode = worker.wait()
    reaped = reaped_peak_rss_bytes()
    # The system keeps the largest of all children: it is this one's where it grew, and exact where a look came late.
    # A child begins with its parent's peak on record, so a smaller number says nothing.
    if reaped > max(reaped_before, peak_rss_bytes(os.getpid())):
        peak = max(peak, reaped)
    for reader in readers:
        reader.join(timeout=1)
    if received:
        raise _interrupted(received[0], answer, killed=returncode == -9)
    if isinstance(answer, Done):
        return cast(ResultT, answer.result)
    if isinstance(answer, Failed):
        if answer.traceback:
            answer.error.add_note(f"In the worker:\n{answer.traceback}")
        raise answer.error
    kills_now = kill_count()
    kills = None if kills_before is None or kills_now is None else kills_now - kills_before
    raise explain(Death(returncode, stage, peak, memory(), kills, tuple(last_lines)))


def _start() -> subprocess.Popen[bytes]:
    # The worker imports from where this process imports; -P keeps it from adding the working directory to that.
    program = f"import sys; sys.path = {sys.path!r}; from llmcompress.system.worker import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def _stopping(worker: subprocess.Popen[bytes], grace_s: float) -> Iterator[list[int]]:
    """Pass this process's stop signals on to the worker; yields the list of those received; leaves no worker behind."""
    received: list[int] = []
    killer = threading.Timer(grace_s, worker.kill)
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
        if worker.poll() is None:
            # Only an error of this side (a reporter that raised) comes here with the worker still running.
            _ask_to_stop(worker)
            try:
                worker.wait(grace_s)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        killer.cancel()
        for number, handler in previous.items():
            # None: a handler from outside Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        with contextlib.suppress(OSError):
            if worker.stdin is not None:
                worker.stdin.close()


def _ask_to_stop(worker: subprocess.Popen[bytes]) -> None:
    if os.name == "nt":
        # There `terminate` would leave no time to clean up; the worker watches this pipe.
        if worker.stdin is not None:
            worker.stdin.close()
    else:
        worker.terminate()


def _read_messages(stream: IO[bytes], inbox: _Inbox) -> None:
    seen = b""
    while not seen.endswith(GREETING):
        byte = stream.read(1)
        if not byte:
            inbox.put(None)
            return
        seen = (seen + byte)[-len(GREETING) :]
    while True:
        try:
            message = pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):
            message = None
        inbox.put(message)
        if not isinstance(message, Progress):
            return


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
        error = InterruptedRunError(f"interrupted by {by}, but the work was already done: its output is complete")
    elif killed:
        error = InterruptedRunError(
            f"interrupted by {by}; the worker did not stop by itself and was killed: the output is untouched, "
            "a hidden staging directory may lie beside it",
            hint="run the same command again: it removes what was left",
        )
    else:
        error = InterruptedRunError(f"interrupted by {by}; nothing was left behind", hint="run the same command again")
    error.exit_code = 128 + number
    return error
