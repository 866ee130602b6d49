"""Weights from the mapped checkpoint through the kernels into the .bin, read once: codes, hashes, search for NaN.

What is laid out is what OpenVINO's ``save_model`` writes: constants in the order of the graph, one after another, and
one that equals an earlier one in its place.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from llmcompress.compression.kernels.groups import packed_zero_points, quantize
from llmcompress.compression.kernels.integers import Codes, Integers, StoredWeights
from llmcompress.compression.replay.content import TensorMemory, let_go, same_bytes
from llmcompress.compression.replay.hashing import SourceHashes, file_states, source_records
from llmcompress.compression.replay.skeleton import CodedWeight, KeptGraph
from llmcompress.compression.replay.values import as_kernels_take_it, format_of, values_of
from llmcompress.loaders.nonfinite import Search, Span
from llmcompress.report.record import FileRecord
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

STAGE = "compress by the kept graph"
SYNC_BYTES = 64 << 20
"""Are handed to the device while others are computed."""
_PREFIX_BYTES = 256


class DoubtError(Exception):
    """The kept graph does not say what becomes of this checkpoint; the whole way does."""


class Streamed(NamedTuple):
    """A .bin that was written."""

    offsets: tuple[int, ...]
    """Of the constants."""
    num_bytes: int
    sha256: str
    sources: tuple[FileRecord, ...]
    """Of the checkpoint's weight files, read on the way."""


def stream(
    graph: KeptGraph,
    tensors: TensorMemory,
    hashes: SourceHashes,
    file: IO[bytes],
    num_threads: int,
    progress: Reporter = silent,
    *,
    durable: bool = True,
) -> Streamed:
    """Write the .bin of a checkpoint.

    Args:
        graph: What was kept of another checkpoint with the same key.
        tensors: The checkpoint.
        hashes: Of its files, begun.
        file: The .bin, empty and open for reading and writing.
        num_threads: For the kernels; hashes, and what waits for the device, have threads of their own.
        progress: Told of the bytes that are written.
        durable: The device is to have the bytes in the end, and takes them on the way.

    Raises:
        DoubtError: A value is not finite, or a file changed.
        OSError: The disk refuses.
    """
    room = max(sum(constant.size for constant in graph.skeleton.constants), 1)
    with ThreadPoolExecutor(num_threads) as pool:
        # Only what is there for certain: writing to a mapped page for which the disk has no room ends the process.
        os.posix_fallocate(file.fileno(), 0, room)
        writer = _Writer(file.fileno(), room, pool, durable)
        try:
            for done in _constants(graph, tensors, writer):
                progress(Progress(STAGE, min(done, room), room, "bytes"))
            _refuse_nonfinite(graph, tensors)
            sha256, num_bytes = writer.sha256(), writer.position
            records = source_records(hashes)
        finally:
            writer.close()
        os.ftruncate(file.fileno(), num_bytes)
    if file_states(hashes.checkpoint) != hashes.states:
        raise DoubtError("a file of the checkpoint changed while it was read")
    progress(Progress(STAGE, room, room, "bytes"))
    return Streamed(tuple(writer.offsets), num_bytes, sha256, records)


class _Writer:
    """Puts constants into a mapped file, one after another; what equals an earlier one is not there twice."""

    def __init__(self, descriptor: int, room: int, pool: ThreadPoolExecutor, durable: bool) -> None:
        self.pool = pool
        self.durable = durable
        self.position = 0
        self.offsets: list[int] = []
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, room)
        self._array = np.frombuffer(self._memory, np.uint8)
        self._seen: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)
        self._hashed: Future[None] | None = None
        self._syncer = ThreadPoolExecutor(1)
        self._synced: Future[None] | None = None
        self._synced_bytes = 0

    def room(self, size: int) -> NDArray[np.uint8]:
        """Where the next constant goes, if there is none like it."""
        return self._array[self.position : self.position + size]

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
        alike.append(self.position)
        self.offsets.append(self.position)
        self._hashed = self._hasher.submit(self._hash, self.position, size)
        self.position += size

    def _hash(self, start: int, size: int) -> None:
        self._digest.update(self._array[start : start + size].data)
        let_go(self._memory, start, start + size)
        # Else the device would have all of it to take at the end, when there is nothing else to do.
        is_free = self._synced is None or (self._synced.done() and self._synced.exception() is None)
        if self.durable and is_free and start + size - self._synced_bytes >= SYNC_BYTES:
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


def _constants(graph: KeptGraph, tensors: TensorMemory, writer: _Writer) -> Iterator[int]:
    """Put every constant; yields the bytes put so far."""
    done = 0
    parts: dict[int, _Parts] = {}
    for constant in graph.skeleton.constants:
        content: NDArray[np.uint8] | None
        if constant.kind == "literal":
            content = np.frombuffer(graph.literals, np.uint8, constant.size, constant.literal_start)
        elif constant.kind == "values":
            assert constant.values is not None
            content = values_of(constant.values, tensors)
        elif constant.kind == "codes":
            weight = graph.skeleton.weights[constant.weight]
            parts[constant.weight] = _quantized(weight, tensors, writer.room(constant.size), writer.pool)
            content = None
            for piece in weight.values.pieces:
                tensor = tensors.checkpoint.tensors[piece.tensor]
                let_go(tensors.files[tensor.file], tensor.start + piece.start, tensor.start + piece.stop)
        else:
            made = parts[constant.weight]
            content = made.scales if constant.kind == "scales" else made.zero_points
        if content is not None and len(content) != constant.size:
            raise DoubtError("a constant has another size")
        writer.put(content, constant.size)
        done += constant.size
        yield done


class _Parts(NamedTuple):
    """What stands next to the codes of a weight."""

    scales: NDArray[np.uint8]
    zero_points: NDArray[np.uint8]


def _quantized(
    weight: CodedWeight, tensors: TensorMemory, packed: NDArray[np.uint8], pool: ThreadPoolExecutor
) -> _Parts:
    """Write the codes of a weight."""
    codes = format_of(weight.format)
    is_integer = isinstance(codes, Integers)
    scales = np.empty(weight.num_groups, np.float32)
    zero_points = np.zeros(weight.num_groups if is_integer else 0, np.float32)
    values = values_of(weight.values, tensors)
    element = weight.values.element
    stored = StoredWeights(
        as_kernels_take_it(values.view(np.uint32 if element == "f32" else np.uint16)),
        np.uint32(16 if element == "bf16" else 0),
        element == "f16",
        weight.group_size,
        weight.num_columns,
    )
    if not quantize(stored, codes, Codes(False, scales, zero_points, packed), pool):
        raise DoubtError("a weight is not finite")
    rounded = scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise DoubtError("a scale exceeds half precision")
    is_asymmetric = isinstance(codes, Integers) and codes.is_asymmetric
    zeros = packed_zero_points(zero_points, codes.num_bits) if is_asymmetric else np.empty(0, np.uint8)
    return _Parts(rounded.view(np.uint8), zeros)


def _refuse_nonfinite(graph: KeptGraph, tensors: TensorMemory) -> None:
    """Search the tensors that no kernel has gone through."""
    seen: dict[str, int] = defaultdict(int)
    for weight in graph.skeleton.weights:
        for piece in weight.values.pieces:
            seen[piece.tensor] += piece.stop - piece.start
    for name, tensor in tensors.checkpoint.tensors.items():
        if seen[name] >= tensor.end - tensor.start:
            continue
        search = Search(tensor.file, [(name, tensor)])
        search.look(memoryview(tensors.files[tensor.file]), 0, Span(0, tensor.start, tensor.end))
        if search.found():
            raise DoubtError("a weight is not finite")
