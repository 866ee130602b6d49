"""What a pseudo-terminal received."""

from __future__ import annotations

import os
import re


def received_from(terminal: int) -> str:
    """Read our end of a pseudo-terminal until the other end is closed, and close it."""
    received = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            break
        if not block:
            break
        received += block
    os.close(terminal)
    return received.decode()


def without_escapes(text: str) -> str:
    """The text without colours and movements of the cursor, its lines ended as in a file."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
