"""Standard output without what a compiled library writes there, which nothing in Python could keep back."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

_STANDARD_OUTPUT = 1
_BLOCK_BYTES = 65536
_LAST_WORDS_S = 0.2
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def without_lines(beginning: bytes) -> Iterator[None]:
    """Keep back lines that begin so; what else any thread or child process writes meanwhile is passed on.

    Standard output is a pipe until the end of the block, so this is for calls of a moment.
    """
    with _one_at_a_time, contextlib.ExitStack() as stack:
        # Where it is closed, there is nothing to keep back.
        with contextlib.suppress(OSError):
            stack.enter_context(_redirected(os.dup(_STANDARD_OUTPUT), beginning))
        yield


@contextlib.contextmanager
def _redirected(shown: int, beginning: bytes) -> Iterator[None]:
    reading, writing = os.pipe()
    passing = threading.Thread(target=_pass_on, args=(reading, os.dup(shown), beginning), daemon=True)
    passing.start()
    os.dup2(writing, _STANDARD_OUTPUT)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(shown, _STANDARD_OUTPUT)
        os.close(shown)
        # The pipe ends with its last writer, and a child process that was started meanwhile may be one for long.
        passing.join(_LAST_WORDS_S)


def _pass_on(reading: int, shown: int, beginning: bytes) -> None:
    line = re.compile(re.escape(beginning) + rb"[^\n]*\n")
    held = b""
    with os.fdopen(reading, "rb", buffering=0) as source, os.fdopen(shown, "wb") as target:
        while block := source.read(_BLOCK_BYTES):
            held = line.sub(b"", held + block)
            end = held.rfind(b"\n") + 1
            begun = held[end:]
            if not (beginning.startswith(begun) or begun.startswith(beginning)):
                end = len(held)
            with contextlib.suppress(OSError):
                target.write(held[:end])
                target.flush()
            held = held[end:]
        target.write(held)
