"""The child process: it carries out one function after the other, and sends back what comes of them."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from _thread import interrupt_main
from collections.abc import Callable, Mapping
from types import FrameType
from typing import IO, Any, NoReturn

from llmcompress.errors import InterruptedRunError, KilledForMemoryError, LlmcompressError
from llmcompress.system.environment import becomes_worker, leave_out_sklearn, quiet_libraries
from llmcompress.system.library_call import let_libraries_speak
from llmcompress.system.memory import is_refusal, peak_rss_bytes
from llmcompress.system.messages import Done, Failed, greet, receive, send, sendable
from llmcompress.system.progress import WARNING, Progress

_GRACE_S = 15.0
_SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1

_stream: IO[bytes]
_answers: IO[bytes]
_held: Any


def begin(parent_pid: int) -> None:
    """Make this process a worker, before it imports anything of what it will be asked for."""
    global _answers, _stream
    becomes_worker()
    die_with_parent(parent_pid)
    _stream, _answers = _take_channel()
    # Ctrl-C and a closed terminal reach the whole process group; the parent decides and passes SIGTERM on.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    quiet_libraries()
    _mark_warnings()
    let_libraries_speak()
    leave_out_sklearn()
    greet(_answers)


def serve() -> NoReturn:
    """Carry out the functions that come through stdin, until it ends; answer through stdout."""
    gc.freeze()
    gc.enable()
    calls: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_calls, args=(_stream, calls), daemon=True).start()
    while (call := calls.get()) is not None:
        signal.signal(signal.SIGTERM, stop)
        answer = _answer(call)
        if signal.getsignal(signal.SIGTERM) is stop:
            # Between two calls there is nothing to clean up.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            send(_answers, answer)
        except OSError:
            # The parent has given up.
            break
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries' threads and exit handlers have nothing left to do that a result needs, and some of them hang.
    os._exit(0)


def _mark_warnings() -> None:
    """Write our own warnings so that the parent knows them among what libraries write."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{WARNING}%(message)s"))
    logger = logging.getLogger("llmcompress")
    logger.addHandler(handler)
    logger.propagate = False


def call_with_progress(function: Callable[..., object], keywords: Mapping[str, Any]) -> object:
    """Call a function whose progress is sent before its result."""
    result = function(**keywords, progress=_report)
    # From here on the work is done, and saying so is all that is left.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return result


def hold(make: Callable[..., object], *arguments: object, **keywords: object) -> None:
    """Keep what a function makes, for ``call_with_held``."""
    global _held
    _held = make(*arguments, **keywords)


def call_with_held(function: Callable[..., object], *arguments: object, **keywords: object) -> object:
    """Call a function with what is held as its first argument."""
    return function(_held, *arguments, **keywords)


def _report(progress: Progress) -> None:
    send(_answers, pickle.dumps(progress))


def _answer(call: bytes) -> bytes:
    """Carry out a call; return its Done or Failed as a pickle."""
    try:
        # This imports the function's module.
        function, arguments, keywords = pickle.loads(call)
        return pickle.dumps(Done(function(*arguments, **keywords)))
    except SystemExit as error:
        if error.code == _SIGTERM_EXIT_CODE:
            stopped = InterruptedRunError("ended by SIGTERM", hint="run the same command again")
            stopped.exit_code = _SIGTERM_EXIT_CODE
            return pickle.dumps(Failed(stopped, ""))
        ended = LlmcompressError(f"a library ended the worker with exit code {error.code!r}")
        return pickle.dumps(Failed(ended, _trace(error)))
    except BaseException as error:  # noqa: BLE001 - whatever ends the function has to reach the parent
        return pickle.dumps(Failed(_refused() if is_refusal(error) else sendable(error), _trace(error)))


def _refused() -> KilledForMemoryError:
    return KilledForMemoryError(
        f"an allocation was refused; the worker had reached {peak_rss_bytes(os.getpid()) / 1e9:.2f} GB",
        hint="free memory or raise the limit (ulimit -v, cgroup); a recipe without calibration data needs less",
    )


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _take_channel() -> tuple[IO[bytes], IO[bytes]]:
    channel = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # What libraries print is log, not result.
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return channel


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End what this process does at SIGTERM, and let it clean up."""
    # A second one must not break the cleaning that the first began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # SystemExit, because libraries catch Exception and go on.
    raise SystemExit(_SIGTERM_EXIT_CODE)


def die_with_parent(parent_pid: int) -> None:
    """Be killed with the process that started this one; at once where it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(_SIGTERM_EXIT_CODE)


def _read_calls(stream: IO[bytes], calls: queue.SimpleQueue[bytes | None]) -> None:
    """Take calls until the parent closes its end: on any system the sign that it is gone, gives up or has all."""
    while (call := receive(stream)) is not None:
        calls.put(call)
    calls.put(None)
    # Stops a function that is at work.
    interrupt_main(signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(_SIGTERM_EXIT_CODE)
