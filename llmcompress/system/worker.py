"""The child process: one function, its progress and its result sent to the parent."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from _thread import interrupt_main
from types import FrameType
from typing import IO, NamedTuple

from llmcompress.errors import InterruptedRunError, KilledForMemoryError, LlmcompressError
from llmcompress.system.environment import leave_out_sklearn, quiet_libraries
from llmcompress.system.memory import peak_rss_bytes
from llmcompress.system.progress import Progress

GREETING = b"\0llmcompress worker\0"
"""Sent first: whatever came before it, Python's start-up wrote."""


class Job(NamedTuple):
    """The one message to the worker; the pipe then stays open for as long as the parent lives and wants the result."""

    call: bytes
    """The function and its keyword arguments as a pickle of its own: reading it imports the function's module."""
    parent_pid: int


class Done(NamedTuple):
    """The function's result."""

    result: object


class Failed(NamedTuple):
    """The error that the function raised, and its traceback as text."""

    error: BaseException
    traceback: str


_GRACE_S = 15.0
_SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the one job that comes through stdin; answer through stdout; never return."""
    jobs, answers = _take_channel()
    _stop_on_sigterm()
    quiet_libraries()
    leave_out_sklearn()
    answers.write(GREETING)
    answers.flush()
    try:
        job = pickle.load(jobs)
    except EOFError:
        # The parent was gone before it had said what to do.
        os._exit(_SIGTERM_EXIT_CODE)
    _die_with_parent(job.parent_pid)
    threading.Thread(target=_stop_at_end_of, args=(jobs.fileno(),), daemon=True).start()
    answer = _answer(job, answers)
    answers.write(answer)
    answers.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries' threads and exit handlers have nothing left to do that the result needs, and some of them hang.
    os._exit(0)


def _answer(job: Job, answers: IO[bytes]) -> bytes:
    """Carry out the job; return its Done or Failed as a pickle."""

    def report(progress: Progress) -> None:
        pickle.dump(progress, answers)
        answers.flush()

    try:
        function, kwargs = pickle.loads(job.call)
        result = function(**kwargs, progress=report)
        # From here on the work is done, and saying so is all that is left.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return pickle.dumps(Done(result))
    except SystemExit as error:
        if error.code == _SIGTERM_EXIT_CODE:
            stopped = InterruptedRunError("ended by SIGTERM", hint="run the same command again")
            stopped.exit_code = _SIGTERM_EXIT_CODE
            return pickle.dumps(Failed(stopped, ""))
        ended = LlmcompressError(f"a library ended the worker with exit code {error.code!r}")
        return pickle.dumps(Failed(ended, _trace(error)))
    except MemoryError as error:
        message = f"an allocation was refused; the worker had reached {peak_rss_bytes(os.getpid()) / 1e9:.2f} GB"
        hint = "free memory or raise the limit (ulimit -v, cgroup); a recipe without calibration data needs less"
        return pickle.dumps(Failed(KilledForMemoryError(message, hint=hint), _trace(error)))
    except BaseException as error:  # noqa: BLE001  (whatever ends the function has to reach the parent)
        return pickle.dumps(Failed(_sendable(error), _trace(error)))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (a foreign exception's pickling can fail in any way)
        return LlmcompressError(f"{type(error).__name__}: {error}")
    return error


def _take_channel() -> tuple[IO[bytes], IO[bytes]]:
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # What libraries print is log, not result.
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return jobs, answers


def _stop_on_sigterm() -> None:
    # Ctrl-C and a closed terminal reach the whole process group; the parent decides and passes SIGTERM on.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def stop(number: int, frame: FrameType | None) -> None:
        # A second one must not break the cleaning that the first began.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # SystemExit, because libraries catch Exception and go on.
        raise SystemExit(_SIGTERM_EXIT_CODE)

    signal.signal(signal.SIGTERM, stop)


def _die_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(_SIGTERM_EXIT_CODE)


def _stop_at_end_of(descriptor: int) -> None:
    """Stop this process when the parent closes its end: on any system the sign that it is gone or gives up."""
    while os.read(descriptor, 1):
        pass
    interrupt_main(signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(_SIGTERM_EXIT_CODE)
