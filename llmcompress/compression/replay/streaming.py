"""Weights from the mapped checkpoint through the kernels into the .bin, read once: codes, hashes, search for NaN."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from llmcompress.compression.bin_file import BinFile, bin_file
from llmcompress.compression.coding import CodedParts, WeightLayout, write_codes
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.replay.content import TensorMemory
from llmcompress.compression.replay.hashing import SourceHashes, file_states, source_records
from llmcompress.compression.replay.skeleton import CodedWeight, KeptGraph
from llmcompress.compression.replay.values import format_of, values_of
from llmcompress.loaders.nonfinite import Search, Span
from llmcompress.report.record import FileRecord
from llmcompress.system.memory import let_go
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

STAGE = "compress by the kept graph"


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
    with ThreadPoolExecutor(num_threads) as pool, bin_file(file, room, durable=durable) as writer:
        for done in _constants(graph, tensors, writer, pool):
            progress(Progress(STAGE, min(done, room), room, "bytes"))
        _refuse_nonfinite(graph, tensors)
        sha256 = writer.sha256()
        records = source_records(hashes)
    if file_states(hashes.checkpoint) != hashes.states:
        raise DoubtError("a file of the checkpoint changed while it was read")
    progress(Progress(STAGE, room, room, "bytes"))
    return Streamed(tuple(writer.offsets), writer.num_bytes, sha256, records)


def _constants(graph: KeptGraph, tensors: TensorMemory, writer: BinFile, pool: ThreadPoolExecutor) -> Iterator[int]:
    """Put every constant; yields the bytes put so far."""
    done = 0
    parts: dict[int, CodedParts] = {}
    for constant in graph.skeleton.constants:
        content: NDArray[np.uint8] | None
        if constant.kind == "literal":
            content = np.frombuffer(graph.literals, np.uint8, constant.size, constant.literal_start)
        elif constant.kind == "values":
            assert constant.values is not None
            content = values_of(constant.values, tensors)
        elif constant.kind == "codes":
            weight = graph.skeleton.weights[constant.weight]
            values = values_of(weight.values, tensors)
            parts[constant.weight] = write_codes(values, _layout(weight), writer.room(constant.size), pool)
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


def _layout(weight: CodedWeight) -> WeightLayout:
    counts = weight.group_size, weight.num_columns, weight.num_groups
    return WeightLayout(weight.values.element, *counts, format_of(weight.format))


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
