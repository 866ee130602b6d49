"""A time limit for somebody else's template."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class OutOfTimeError(Exception):
    """The time is over."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the code inside when it runs longer than ``seconds``; one call into C is not stopped."""
    # A trace function sees every line that a compiled template runs, in any thread and on any system; a signal or
    # a child process would need the main thread, POSIX, or seconds of imports.
    end = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > end:
            raise OutOfTimeError
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
