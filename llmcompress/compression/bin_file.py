"""A .bin as OpenVINO's ``save_model`` lays it out, written constant by constant, hashed on the way.

Constants follow one another in the order of the graph, and one that equals an earlier one is not there twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

import numpy as np

from llmcompress.system.memory import let_go, make_writable, same_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

SYNC_BYTES = 64 << 20
"""Are handed to the device while others are computed."""
_PREFIX_BYTES = 256
_AHEAD_BYTES, _STEP_BYTES = 64 << 20, 8 << 20
"""How far pages are made ready before what is written, and how many at a time."""


class BinFile:
    """Puts constants into a mapped file."""

    def __init__(self, descriptor: int, room_bytes: int, *, durable: bool) -> None:
        """Map a file; who makes it also closes it.

        Args:
            descriptor: Of the file, empty and open for reading and writing.
            room_bytes: Of all constants.
            durable: The device is to have the bytes in the end, and takes them on the way.

        Raises:
            OSError: The disk has no such room.
        """
        # Only what is there for certain: writing to a mapped page for which the disk has no room ends the process.
        os.posix_fallocate(descriptor, 0, room_bytes)
        self.num_bytes = 0
        self.offsets: list[int] = []
        """Of the constants."""
        self._durable = durable
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, room_bytes)
        self._array = np.frombuffer(self._memory, np.uint8)
        self._seen: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)
        self._hashed: Future[None] | None = None
        self._syncer = ThreadPoolExecutor(1)
        self._synced: Future[None] | None = None
        self._synced_bytes = 0
        self._preparer = ThreadPoolExecutor(1)
        self._prepared_bytes = 0

    def room(self, size: int) -> NDArray[np.uint8]:
        """Where the next constant goes, if there is none like it."""
        self._prepare(self.num_bytes + size + _AHEAD_BYTES)
        return self._array[self.num_bytes : self.num_bytes + size]

    def _prepare(self, stop: int) -> None:
        """Have another thread make pages ready: whoever computes would wait for each."""
        while self._prepared_bytes < min(stop, len(self._array)):
            start, size = self._prepared_bytes, min(_STEP_BYTES, len(self._array) - self._prepared_bytes)
            self._preparer.submit(make_writable, self._array.ctypes.data + start, size)
            self._prepared_bytes += size

    def put(self, content: NDArray[np.uint8] | None, size: int) -> None:
        """Add a constant; None: it was written to ``room`` already."""
        place = self.room(size)
        if content is not None:
            place[:] = content
        alike = self._seen[size, place[:_PREFIX_BYTES].tobytes()]
        for offset in alike:
            if same_bytes(self._array[offset : offset + size], place):
                self.offsets.append(offset)
                return
        alike.append(self.num_bytes)
        self.offsets.append(self.num_bytes)
        self._hashed = self._hasher.submit(self._hash, self.num_bytes, size)
        self.num_bytes += size

    def _hash(self, start: int, size: int) -> None:
        self._digest.update(self._array[start : start + size].data)
        let_go(self._memory, start, start + size)
        # Else the device would have all of it to take at the end, when there is nothing else to do.
        is_free = self._synced is None or (self._synced.done() and self._synced.exception() is None)
        if self._durable and is_free and start + size - self._synced_bytes >= SYNC_BYTES:
            self._synced_bytes = start + size
            self._synced = self._syncer.submit(os.fsync, self._descriptor)

    def sha256(self) -> str:
        """Of all that was put.

        Raises:
            OSError: The device refused some of it.
        """
        if self._hashed is not None:
            self._hashed.result()
        # Of bytes that the device refused the system tells once, and would not at the end.
        if self._synced is not None:
            self._synced.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Wait for the threads that read the file."""
        self._hasher.shutdown(wait=True)
        self._syncer.shutdown(wait=True)
        self._preparer.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def bin_file(file: IO[bytes], room_bytes: int, *, durable: bool = True) -> Iterator[BinFile]:
    """Write a .bin; in the end it is as long as what was put.

    Args:
        file: Empty and open for reading and writing.
        room_bytes: Of all constants.
        durable: As of ``BinFile``.

    Raises:
        OSError: The disk refuses.
    """
    writer = BinFile(file.fileno(), max(room_bytes, 1), durable=durable)
    try:
        yield writer
    finally:
        writer.close()
    os.ftruncate(file.fileno(), writer.num_bytes)
