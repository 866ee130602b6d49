"""One pass over the weights: the hash of every file, and the values that are not numbers.

SHA-256 of one stream runs on one core (0.3 to 2 GB/s, by CPU); the search runs beside it and is faster, so the hash
sets the pace. Both release the interpreter lock: the pass can run in a thread while the model is loaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import HubError, ModelError
from llmcompress.graph.model import is_weight
from llmcompress.loaders.safetensors_file import BITS, TensorInfo
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.report.record import FileRecord
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import openvino as ov

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 8 << 20
# Two reductions read each piece, so it should stay in a core's own cache.
_PIECE_BYTES = 256 << 10
_SHOWN = 8

# The smallest bit pattern, sign aside, that is not finite: all exponent bits set. E4M3 has one NaN and no infinity.
_LIMITS = {
    "F64": 0x7FF0_0000_0000_0000,
    "F32": 0x7F80_0000,
    "C64": 0x7F80_0000,
    "BF16": 0x7F80,
    "F16": 0x7C00,
    "F8_E5M2": 0x7C,
    "F8_E4M3": 0x7F,
}
# OpenVINO's names of the formats above.
_ELEMENTS = {
    "f64": "F64",
    "f32": "F32",
    "bf16": "BF16",
    "f16": "F16",
    "f8e5m2": "F8_E5M2",
    "f8e4m3": "F8_E4M3",
    "f8e8m0": "F8_E8M0",
}
# Formats whose only value that is not finite is one NaN.
_SINGLE_NAN = {"F8_E8M0": 0xFF, "F8_E4M3FNUZ": 0x80, "F8_E5M2FNUZ": 0x80}


class Finding(NamedTuple):
    """Values of one tensor that are no finite numbers."""

    file: str
    tensor: str
    num_nan: int
    num_inf: int
    first: tuple[int, ...]
    """Index of the first one in the tensor."""


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

    def one(file: str) -> tuple[FileRecord, list[Finding]]:
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
    findings = [finding for _, found in results for finding in found]
    _judge(findings, where=str(checkpoint.path), allow_nonfinite=allow_nonfinite)
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

    def one(op: ov.Node, data: Any) -> list[Finding]:
        dtype = _ELEMENTS[op.get_element_type().get_type_name()]
        tensor = TensorInfo(file, dtype, tuple(op.get_output_shape(0)), 0, op.get_byte_size())
        search = _Search(file, [(op.get_friendly_name(), tensor)])
        search.look(memoryview(data.reshape(-1).view("u1")), 0, _Span(0, 0, tensor.end))
        return search.findings()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # Not in the threads: when two of them ask OpenVINO for its first array at once, both wait for ever.
        arrays = [op.data for op in weights]
        findings = [finding for found in pool.map(one, weights, arrays) for finding in found]
    _judge(findings, where=where, allow_nonfinite=allow_nonfinite)


def _judge(findings: list[Finding], *, where: str, allow_nonfinite: bool) -> None:
    problem = f"{len(findings)} tensors hold NaN or infinite weights: {'; '.join(map(_words, findings[:_SHOWN]))}"
    if findings and allow_nonfinite:
        _log.warning("%s; compressed as they are", problem)
    elif findings:
        raise ModelError(
            problem,
            where=where,
            hint="the model is damaged or its training diverged; --allow-nonfinite compresses it as it is",
        )


def _words(finding: Finding) -> str:
    counts = f"{finding.num_nan} NaN" * bool(finding.num_nan), f"{finding.num_inf} Inf" * bool(finding.num_inf)
    first = list(finding.first)
    return f"{finding.file}: {finding.tensor}: {' and '.join(filter(None, counts))}, the first at {first}"


class _Span(NamedTuple):
    """A part of a tensor inside a block: bytes ``start`` up to ``end`` of the file."""

    tensor: int
    start: int
    end: int


def _scan_file(
    path: Path, tensors: list[tuple[str, TensorInfo]], advance: Callable[[int], None]
) -> tuple[FileRecord, list[Finding]]:
    digest = hashlib.sha256()
    search = _Search(path.name, tensors)
    buffers = [bytearray(2 * _BLOCK_BYTES) for _ in range(2)]
    hashed: list[Future[None] | None] = [None, None]
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as hasher:
        size = os.fstat(stream.fileno()).st_size
        if tensors and size != tensors[-1][1].end:
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
    return FileRecord(path=path.name, size_bytes=size, sha256=digest.hexdigest()), search.findings()


def _changed(path: Path) -> ModelError:
    return ModelError("the file changed while it was read", where=str(path), hint="run it again")


def _blocks(tensors: list[tuple[str, TensorInfo]], size: int) -> Iterator[tuple[int, int, list[_Span]]]:
    """Cut a file into blocks that no element straddles, each with the parts of tensors in it."""
    start, spans = 0, list[_Span]()
    for number, (_, tensor) in enumerate(tensors):
        position = tensor.start
        while start + _BLOCK_BYTES < position:
            # Only the header can be that far ahead of the first part.
            yield start, start + _BLOCK_BYTES, []
            start += _BLOCK_BYTES
        while position < tensor.end:
            # No element has more than 16 bytes, and a part starts at the tensor's beginning or 16 bytes times n later.
            room = (start + _BLOCK_BYTES - position) // 16 * 16
            if room <= 0:
                yield start, position, spans
                start, spans = position, []
                continue
            end = min(tensor.end, position + room)
            spans.append(_Span(number, position, end))
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


class _Search:
    """Counts, per tensor of one file, what is not finite."""

    def __init__(self, file: str, tensors: list[tuple[str, TensorInfo]]) -> None:
        self._file, self._tensors = file, tensors
        self._found: dict[int, Finding] = {}

    def look(self, block: memoryview, block_start: int, span: _Span) -> None:
        import numpy as np

        name, tensor = self._tensors[span.tensor]
        if tensor.dtype not in _LIMITS and tensor.dtype not in _SINGLE_NAN:
            return
        size = 4 if tensor.dtype == "C64" else BITS[tensor.dtype] // 8
        count = (span.end - span.start) // size
        values = np.frombuffer(block, f"<u{size}", count, span.start - block_start)
        before = (span.start - tensor.start) // size
        for offset in range(0, count, _PIECE_BYTES // size):
            piece = values[offset : offset + _PIECE_BYTES // size]
            if not _has_nonfinite(piece, tensor.dtype):
                continue
            nan, inf = _nonfinite(piece, tensor.dtype)
            flat = before + offset + int(np.argmax(nan | inf))
            first = np.unravel_index(flat // (2 if tensor.dtype == "C64" else 1), tensor.shape)
            old = self._found.get(span.tensor) or Finding(self._file, name, 0, 0, tuple(int(i) for i in first))
            counted = old._replace(num_nan=old.num_nan + int(nan.sum()), num_inf=old.num_inf + int(inf.sum()))
            self._found[span.tensor] = counted

    def findings(self) -> list[Finding]:
        return list(self._found.values())


def _has_nonfinite(values: npt.NDArray[np.unsignedinteger[Any]], dtype: str) -> bool:
    if dtype in _SINGLE_NAN:
        return bool((values == _SINGLE_NAN[dtype]).any())
    # As signed integers the positive ones are the largest, as unsigned integers the negative ones.
    limit, bits = _LIMITS[dtype], values.itemsize * 8
    return int(values.view(f"<i{values.itemsize}").max()) >= limit or int(values.max()) >= limit + (1 << (bits - 1))


def _nonfinite(
    values: npt.NDArray[np.unsignedinteger[Any]], dtype: str
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where values are NaN, and where they are infinite."""
    if dtype in _SINGLE_NAN:
        nan = values == _SINGLE_NAN[dtype]
        return nan, nan & False
    magnitude = values & ((1 << (values.itemsize * 8 - 1)) - 1)
    inf = (magnitude == _LIMITS[dtype]) & (dtype != "F8_E4M3")
    return (magnitude >= _LIMITS[dtype]) & ~inf, inf
