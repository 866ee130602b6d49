"""A file whose last bytes are the hash of those before: what is damaged or was cut is known."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

_CHUNK_BYTES = 1 << 20


class Sealing:
    """Writes to an open file and hashes what it writes; ``seal`` ends it."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin at the start of a new file."""
        self._file, self._digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write some bytes; returns how many."""
        self._digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Hand on to the system what is buffered."""
        self._file.flush()

    def seal(self) -> None:
        """Write the hash; nothing may come after it."""
        self._file.write(self._digest.digest())


def is_sealed(path: Path) -> bool:
    """Whether a file is there and ends with the hash of what is before it."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = file.seek(0, os.SEEK_END) - digest.digest_size
            file.seek(0)
            while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
            return left == 0 and file.read() == digest.digest()
    except OSError:
        return False
