"""What tests have done in the background; a process of its own imports it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def work(place: Path, seconds: float) -> None:
    """Add a byte to a file, time after time, and say how it ended."""
    (place / "pid").write_text(str(os.getpid()))
    end = time.monotonic() + seconds
    try:
        with (place / "work").open("ab", buffering=0) as file:
            while time.monotonic() < end:
                file.write(b".")
                time.sleep(0.01)
        (place / "ended").write_text("done")
    except SystemExit:
        (place / "ended").write_text("told to")
        raise


def fail() -> None:
    raise ValueError("not today")
