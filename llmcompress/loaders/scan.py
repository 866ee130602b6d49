"""One pass over the weights: the hash of every file, and the values that are not numbers.

SHA-256 of one stream runs on one core (0.3 to 2 GB/s, by CPU); the search runs beside it and is faster, so the hash
sets the pace. Both release the interpreter lock: the pass can run in a thread while the model is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from llmcompress.errors import HubError, ModelError
from llmcompress.graph.model import is_weight
from llmcompress.loaders.nonfinite import Nonfinite, Search, Span, judge
from llmcompress.loaders.safetensors_file import TensorInfo
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.report.record import FileRecord
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

_BLOCK_BYTES = 8 << 20
# OpenVINO's names of safetensors' formats.
_ELEMENTS = {
    "f64": "F64",
    "f32": "F32",
    "bf16": "BF16",
    "f16": "F16",
    "f8e5m2": "F8_E5M2",
    "f8e4m3": "F8_E4M3",
    "f8e8m0": "F8_E8M0",
}


def scan(
    checkpoint: Checkpoint,
    *,
    allow_nonfinite: bool = False,
    expected_sha256: Mapping[str, str] | None = None,
    progress: Reporter = silent,
) -> tuple[FileRecord, ...]:
    """Read every weight file once; return size and sha256 of each, and of the shard index.

    Args:
        checkpoint: validated headers.
        allow_nonfinite: go on when a weight is NaN or infinite.
        expected_sha256: hashes that the files must have, by file name; others are not compared.
        progress: told the bytes read so far.

    Raises:
        HubError: a file has another hash than expected.
        ModelError: a weight is NaN or infinite (names file, tensor, how many, and where the first one is), or a file
            changed while it was read.
    """
    tensors: dict[str, list[tuple[str, TensorInfo]]] = {file: [] for file in checkpoint.files}
    for name, tensor in checkpoint.tensors.items():
        tensors[tensor.file].append((name, tensor))
    total = sum(max((tensor.end for _, tensor in held), default=0) for held in tensors.values())
    done, lock = [0], Lock()

    def advance(count: int) -> None:
        with lock:
            done[0] += count
            progress(Progress("check weights", done[0], total, "bytes"))

    def one(file: str) -> tuple[FileRecord, list[Nonfinite]]:
        path = checkpoint.path / file
        try:
            return _scan_file(path, tensors[file], advance)
        except OSError as error:
            hint = "check the disk, and download the file again"
            raise ModelError(f"it cannot be read: {error.strerror}", where=str(path), hint=hint) from error

    with ThreadPoolExecutor(min(len(checkpoint.files), os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, checkpoint.files))
    records = [record for record, _ in results]
    if checkpoint.index_file:
        content = (checkpoint.path / checkpoint.index_file).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        records.append(FileRecord(path=checkpoint.index_file, size_bytes=len(content), sha256=digest))
    check_hashes(records, expected_sha256 or {}, checkpoint.path)
    judge([one for _, found in results for one in found], where=str(checkpoint.path), allow_nonfinite=allow_nonfinite)
    return tuple(records)


def check_hashes(records: Iterable[FileRecord], expected_sha256: Mapping[str, str], directory: Path) -> None:
    """Compare files with what the Hub states; files of which it states nothing are not compared.

    Raises:
        HubError: a file has another hash than expected.
    """
    for record in records:
        expected = expected_sha256.get(record.path, record.sha256)
        if record.sha256 != expected:
            raise HubError(
                f"the file's sha256 is {record.sha256}; the Hub states {expected}",
                where=str(directory / record.path),
                hint=f"delete {(directory / record.path).resolve()} and run again",
            )


def scan_constants(model: ov.Model, *, where: str, file: str, allow_nonfinite: bool = False) -> None:
    """Search the floating-point constants of a graph, scalars aside: a mask's -inf is one.

    Raises:
        ModelError: a constant holds NaN or infinite values (names it, how many, and where the first one is).
    """
    weights = [op for op in model.get_ops() if is_weight(op) and op.get_element_type().get_type_name() in _ELEMENTS]

    def one(op: ov.Node, data: Any) -> list[Nonfinite]:
        dtype = _ELEMENTS[op.get_element_type().get_type_name()]
        tensor = TensorInfo(file, dtype, tuple(op.get_output_shape(0)), 0, op.get_byte_size())
        search = Search(file, [(op.get_friendly_name(), tensor)])
        search.look(memoryview(data.reshape(-1).view("u1")), 0, Span(0, 0, tensor.end))
        return search.found()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # Not in the threads: when two of them ask OpenVINO for its first array at once, both wait forever.
        arrays = [op.data for op in weights]
        found = [each for several in pool.map(one, weights, arrays) for each in several]
    judge(found, where=where, allow_nonfinite=allow_nonfinite)


def _scan_file(
    path: Path, tensors: list[tuple[str, TensorInfo]], advance: Callable[[int], None]
) -> tuple[FileRecord, list[Nonfinite]]:
    digest = hashlib.sha256()
    search = Search(path.name, tensors)
    buffers = [bytearray(2 * _BLOCK_BYTES) for _ in range(2)]
    hashed: list[Future[None] | None] = [None, None]
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as hasher:
        size = os.fstat(stream.fileno()).st_size
        if tensors and not _ends_at(size, tensors[-1][1].end, path):
            raise _changed(path)
        for turn, (start, end, spans) in enumerate(_blocks(tensors, size)):
            if waiting := hashed[turn % 2]:
                waiting.result()
            block = memoryview(buffers[turn % 2])[: end - start]
            if not _read(stream, block):
                raise _changed(path)
            hashed[turn % 2] = hasher.submit(digest.update, block)
            for span in spans:
                search.look(block, start, span)
            advance(end - start)
    return FileRecord(path=path.name, size_bytes=size, sha256=digest.hexdigest()), search.found()


def _ends_at(size: int, end: int, path: Path) -> bool:
    """Whether a file ends with its last tensor, as safetensors does; GGUF and ONNX may have more behind that."""
    return size == end if path.name.endswith(".safetensors") else size >= end


def _changed(path: Path) -> ModelError:
    return ModelError("the file changed while it was read", where=str(path), hint="run it again")


def _blocks(tensors: list[tuple[str, TensorInfo]], size: int) -> Iterator[tuple[int, int, list[Span]]]:
    """Cut a file into blocks that no element straddles, each with the parts of tensors in it."""
    start, spans = 0, list[Span]()
    for number, (_, tensor) in enumerate(tensors):
        position = tensor.start
        while start + _BLOCK_BYTES < position:
            # A header, or tensors that are no weights.
            yield start, start + _BLOCK_BYTES, spans
            start, spans = start + _BLOCK_BYTES, []
        while position < tensor.end:
            # No element has more than 16 bytes, and a part starts at the tensor's beginning or 16 bytes times n later.
            room = (start + _BLOCK_BYTES - position) // 16 * 16
            if room <= 0:
                yield start, position, spans
                start, spans = position, []
                continue
            end = min(tensor.end, position + room)
            spans.append(Span(number, position, end))
            position = end
    yield start, size, spans


def _read(stream: IO[bytes], block: memoryview) -> bool:
    filled = 0
    while filled < len(block):
        count = stream.readinto(block[filled:])  # type: ignore[attr-defined]
        if not count:
            return False
        filled += count
    return True
