"""The header of a safetensors file, read and checked without the library that would map the file.

Format: https://huggingface.co/docs/safetensors: 8 bytes little-endian header length, a JSON object that gives each
tensor's dtype, shape and byte range, then the tensors without gaps up to the end of the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llmcompress.errors import ModelError

MAX_HEADER_BYTES = 100_000_000

BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element, for every dtype of the format."""

_LFS_POINTER = b"version https://git-lfs"
_FRESH = "download the file again"

_Header = TypeVar("_Header")


class TensorInfo(NamedTuple):
    """Where one tensor lies: bytes ``start`` up to ``end`` of ``file``, counted from the file's beginning."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one file; its tensors, in the order of their bytes.

    Raises:
        ModelError: the file is not a complete safetensors file of known dtypes; names the file and the tensor.
    """
    return with_first_bytes(path, header_of)


def with_first_bytes(path: Path, read: Callable[[Path, int, Callable[[int], bytes]], _Header]) -> _Header:
    """Call ``read`` with a file's size and a function that gives so many of its first bytes.

    Raises:
        ModelError: The file is missing or cannot be read.
    """
    try:
        if not path.is_file():
            raise ModelError("the file is missing", where=str(path), hint=_FRESH)
        with path.open("rb") as stream:

            def first(count: int) -> bytes:
                stream.seek(0)
                return stream.read(count)

            return read(path, os.fstat(stream.fileno()).st_size, first)
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror}", where=str(path), hint=_FRESH) from error


def header_of(path: Path, size: int, first: Callable[[int], bytes]) -> dict[str, TensorInfo]:
    """As ``read_header``, of a file that need not be here.

    Args:
        path: Names the file.
        size: Its bytes.
        first: Gives so many of its first bytes, or all of a shorter one.

    Raises:
        ModelError: As ``read_header``.
    """
    text, data_start = _header_text(path, size, first)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKeyError as error:
        raise _wrong(path, f"the header gives {error.args[0]!r} twice") from error
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"the header is no JSON text ({type(error).__name__})") from error
    # It begins with a brace, so it is an object.
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _wrong(path, "__metadata__ is not an object of texts")
    tensors = {name: _tensor(path, name, entry, data_start) for name, entry in header.items()}
    # A tensor without elements starts where the next one starts, so the end decides between them.
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    position = data_start
    for name, tensor in ordered.items():
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves unused bytes before it"
            raise _wrong(path, f"tensor {name!r} {fault}")
        position = tensor.end
    if position != size:
        fault = "is cut short or padded" if ordered else "has bytes that belong to no tensor"
        raise _wrong(path, f"the file {fault}: its header accounts for {position} bytes, and it has {size}")
    return ordered


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKeyError(key)
        found[key] = value
    return found


def _header_text(path: Path, size: int, first: Callable[[int], bytes]) -> tuple[bytes, int]:
    """The header's text, and where the tensors begin."""
    beginning = first(len(_LFS_POINTER))
    if beginning == _LFS_POINTER:
        raise ModelError(
            "this is a Git LFS pointer, not the weights themselves",
            where=str(path),
            hint="run `git lfs pull` in the checkpoint's repository, or download it from the Hub",
        )
    if size < 8:
        raise _wrong(path, "the file is empty" if size == 0 else f"the file has only {size} bytes")
    length = int.from_bytes(beginning[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        limit = f"at most {MAX_HEADER_BYTES} are allowed and the file has {size}"
        raise _wrong(path, f"it states a header of {length} bytes, {limit}: cut short, or no safetensors file")
    text = first(8 + length)[8:]
    if not text.startswith(b"{"):
        raise _wrong(path, "the header does not begin with '{'")
    return text, 8 + length


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _wrong(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _wrong(path, f"tensor {name!r} has the dtype {dtype!r}; known are {', '.join(sorted(BITS))}")
    if not _counts(shape):
        raise _wrong(path, f"tensor {name!r} has a shape that is no list of sizes")
    if not _counts(offsets) or len(offsets) != 2:
        raise _wrong(path, f"tensor {name!r} has data_offsets that are no pair of positions")
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits != (end - begin) * 8:
        raise _wrong(path, f"tensor {name!r} of {dtype} {shape} needs {bits / 8:g} bytes, and has {end - begin}")
    return TensorInfo(path.name, dtype, tuple(shape), data_start + begin, data_start + end)


def _counts(value: object) -> bool:
    # A JSON true is a bool, which Python counts as an int.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError(what, where=str(path), hint=_FRESH)
