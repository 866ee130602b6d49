"""The hashes of a checkpoint's files, by threads of their own: they begin while the rest still looks and imports."""

from __future__ import annotations

import hashlib
import mmap
import os
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

from llmcompress.compression.replay.content import TensorMemory
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.report.record import FileRecord
from llmcompress.system.memory import let_go

_BLOCK_BYTES = 8 << 20


class SourceHashes(NamedTuple):
    """Hashes that are being computed."""

    checkpoint: Checkpoint
    states: list[tuple[int, int]]
    """Of the weight files before: size, and time of the last change in nanoseconds."""
    records: tuple[Future[FileRecord], ...]
    """Of the weight files."""
    pool: ThreadPoolExecutor
    ended: Event
    """Nobody waits for them any more."""


def begin_hashing(tensors: TensorMemory) -> SourceHashes:
    """Begin; the pages are those that the kernels read."""
    states = file_states(tensors.checkpoint)
    pool, ended = ThreadPoolExecutor(min(len(tensors.files), os.cpu_count() or 1)), Event()
    records = [pool.submit(_record, name, memory, ended) for name, memory in tensors.files.items()]
    return SourceHashes(tensors.checkpoint, states, tuple(records), pool, ended)


def source_records(hashes: SourceHashes) -> tuple[FileRecord, ...]:
    """Wait for the size and hash of each weight file, and add those of the shard index."""
    checkpoint, records = hashes.checkpoint, [record.result() for record in hashes.records]
    if checkpoint.index_file:
        content = (checkpoint.path / checkpoint.index_file).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        records.append(FileRecord(path=checkpoint.index_file, size_bytes=len(content), sha256=digest))
    return tuple(records)


def end_hashing(hashes: SourceHashes) -> None:
    """End what is still running, and wait until it has."""
    hashes.ended.set()
    hashes.pool.shutdown()


def file_states(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Size of each weight file, and time of its last change in nanoseconds."""
    stats = [(checkpoint.path / name).stat() for name in checkpoint.files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _record(name: str, memory: mmap.mmap, ended: Event) -> FileRecord:
    digest, view = hashlib.sha256(), memoryview(memory)
    for start in range(0, len(view), _BLOCK_BYTES):
        if ended.is_set():
            raise CancelledError
        digest.update(view[start : start + _BLOCK_BYTES])
        let_go(memory, start, min(start + _BLOCK_BYTES, len(view)))
    return FileRecord(path=name, size_bytes=len(view), sha256=digest.hexdigest())
