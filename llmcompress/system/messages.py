"""What passes between a worker and the process that started it: pickles, each after its length."""

from __future__ import annotations

import pickle
import sys
from typing import IO, NamedTuple, TypeVar

from llmcompress.errors import LlmcompressError

_GREETING = b"\0llmcompress worker\0"
"""The worker's first bytes: whatever came before them, Python's start-up wrote."""
_LENGTH_BYTES = 8
# Their modules are imported already or quickly. Another exception can take a library of many seconds to read.
_HOMES_OF_ERRORS = frozenset({"llmcompress"}) | sys.stdlib_module_names

ErrorT = TypeVar("ErrorT", bound=BaseException)


class Done(NamedTuple):
    """A function's result."""

    result: object


class Failed(NamedTuple):
    """The error that a function raised, and its traceback as text."""

    error: BaseException
    traceback: str


def greet(stream: IO[bytes]) -> None:
    """Say that messages follow."""
    stream.write(_GREETING)
    stream.flush()


def await_greeting(stream: IO[bytes]) -> bool:
    """Read up to the worker's greeting; False: the stream ended before it."""
    seen = b""
    while not seen.endswith(_GREETING):
        byte = stream.read(1)
        if not byte:
            return False
        seen = (seen + byte)[-len(_GREETING) :]
    return True


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message, a pickle."""
    stream.write(len(message).to_bytes(_LENGTH_BYTES, "little") + message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Read one message, still a pickle: unpickling it may import a library. None: the stream ended before its end."""
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    message = stream.read(int.from_bytes(length, "little"))
    return message if len(message) == int.from_bytes(length, "little") else None


def result_of(answer: Done | Failed) -> object:
    """Return the result, or raise the error with its traceback as a note."""
    if isinstance(answer, Done):
        return answer.result
    if answer.traceback:
        answer.error.add_note(f"In the worker:\n{answer.traceback}")
    raise answer.error


def sendable(error: ErrorT) -> ErrorT | LlmcompressError:
    """Return the error, or an error of ours that names it, if only a foreign library could unpickle it."""
    home = type(error).__module__.partition(".")[0]
    try:
        if home in _HOMES_OF_ERRORS:
            pickle.loads(pickle.dumps(error))
            return error
    except Exception:  # noqa: BLE001 - pickling can fail in any way
        pass
    return LlmcompressError(f"{type(error).__name__}: {error}", hint="run it again with -v for the whole traceback")
