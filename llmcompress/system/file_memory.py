"""Memory backed by a nameless file: under pressure the system writes it there instead of killing the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEGMENT_BYTES = 128 << 20
"""What the file grows by; each segment takes a file descriptor."""
_ALIGNMENT = 64


class FileMemory:
    """Blocks of memory in one file, which goes with the last of them, and with the process in any case."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - as long as this object
        self._file_bytes = 0
        self._segments: list[mmap.mmap] = []
        """Held as long as this object: who uses a block outside Python does not hold it."""
        self._used_bytes = 0
        """Of the last segment."""

    def block(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Zeros, uint8 ``[size_bytes]``; None where the file cannot grow."""
        import numpy as np

        if not self._segments or len(self._segments[-1]) - self._used_bytes < size_bytes:
            segment = self._segment(max(SEGMENT_BYTES, size_bytes))
            if segment is None:
                return None
            self._segments.append(segment)
            self._used_bytes = 0
        found = np.frombuffer(self._segments[-1], np.uint8, size_bytes, self._used_bytes)
        self._used_bytes += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        return found

    def _segment(self, size_bytes: int) -> mmap.mmap | None:
        size_bytes = -(-size_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            # Only what is there for certain: writing to a mapped page for which the disk has no room ends the process.
            os.posix_fallocate(self._file.fileno(), self._file_bytes, size_bytes)
            segment = mmap.mmap(self._file.fileno(), size_bytes, offset=self._file_bytes)
        except (OSError, AttributeError):
            # Windows and macOS have no such call.
            return None
        self._file_bytes += size_bytes
        return segment
