"""The child process: it carries out one function, or one after the other, and sends back what comes of them."""

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
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import IO, Any, NamedTuple, NoReturn

from llmcompress.errors import InterruptedRunError, KilledForMemoryError, LlmcompressError
from llmcompress.system.environment import leave_out_sklearn, quiet_libraries
from llmcompress.system.memory import peak_rss_bytes
from llmcompress.system.messages import Done, Failed, greet, receive, send, sendable
from llmcompress.system.progress import Progress

_GRACE_S = 15.0
_SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1


class _Channel(NamedTuple):
    """The pipes from and to the parent."""

    calls: IO[bytes]
    answers: IO[bytes]


def serve_one(parent_pid: int) -> NoReturn:
    """Carry out the one function that comes through stdin, with its progress told; answer through stdout."""
    channel = _start(parent_pid)
    call = receive(channel.calls)
    if call is None:
        # The parent was gone before it had said what to do.
        os._exit(_SIGTERM_EXIT_CODE)
    # The pipe stays open for as long as the parent lives and wants the result.
    threading.Thread(target=_stop_at_end_of, args=(channel.calls.fileno(),), daemon=True).start()

    def report(progress: Progress) -> None:
        send(channel.answers, pickle.dumps(progress))

    def carry_out() -> object:
        function, arguments, keywords = pickle.loads(call)
        return function(*arguments, **keywords, progress=report)

    _end(channel, _answer(carry_out))


def serve_many(parent_pid: int) -> NoReturn:
    """Carry out one function after the other; what the first returns is held, and is the others' first argument."""
    channel = _start(parent_pid)
    held: list[Any] = []

    def carry_out(call: bytes) -> object:
        function, arguments, keywords = pickle.loads(call)
        result = function(*held, *arguments, **keywords)
        if not held:
            held.append(result)
            return None
        return result

    # Before and between calls there is nothing to clean up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        call = receive(channel.calls)
        if call is None:
            os._exit(0)
        signal.signal(signal.SIGTERM, _stop)
        answer = _answer(partial(carry_out, call))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            send(channel.answers, answer)
        except OSError:
            # The parent has given up.
            os._exit(_SIGTERM_EXIT_CODE)


def _start(parent_pid: int) -> _Channel:
    _die_with_parent(parent_pid)
    channel = _take_channel()
    # Ctrl-C and a closed terminal reach the whole process group; the parent decides and passes SIGTERM on.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    quiet_libraries()
    leave_out_sklearn()
    greet(channel.answers)
    return channel


def _end(channel: _Channel, answer: bytes) -> NoReturn:
    send(channel.answers, answer)
    channel.answers.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries' threads and exit handlers have nothing left to do that the result needs, and some of them hang.
    os._exit(0)


def _answer(carry_out: Callable[[], object]) -> bytes:
    """Call a function; return its Done or Failed as a pickle."""
    try:
        result = carry_out()
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
    except BaseException as error:  # noqa: BLE001 - whatever ends the function has to reach the parent
        return pickle.dumps(Failed(sendable(error), _trace(error)))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _take_channel() -> _Channel:
    channel = _Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # What libraries print is log, not result.
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return channel


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # A second one must not break the cleaning that the first began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # SystemExit, because libraries catch Exception and go on.
    raise SystemExit(_SIGTERM_EXIT_CODE)


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
