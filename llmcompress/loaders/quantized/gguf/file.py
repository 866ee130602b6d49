"""The header of a GGUF file, read and checked without mapping the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: the magic, a version, the numbers of tensors and of
metadata, the metadata, each tensor's name, sizes, type and offset, then the tensors, each at a multiple of the
alignment, without other gaps.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.safetensors_file import TensorInfo, with_first_bytes

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 512_000_000
MAX_NAME_BYTES = 65_535
_VERSIONS = (2, 3)
_FIRST_BYTES = 4_000_000
_MAX_SIZES = 4
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20


class BlockSize(NamedTuple):
    """Elements of a block along a row, and the bytes that it takes."""

    elements: int
    size_bytes: int


_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
BLOCK_SIZES: Mapping[str, BlockSize] = {name: BlockSize(*sizes) for name, *sizes in _TYPES.values()}
"""By the name of the type."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FRESH = "download the file again"


class GgufFile(NamedTuple):
    """What the header of one file says."""

    metadata: Mapping[str, Any]
    """Numbers, texts, and lists of either."""
    tensors: Mapping[str, TensorInfo]
    """In the order of their bytes; ``dtype`` is GGUF's name of the type, ``shape`` has the rows first."""


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of one file.

    Raises:
        ModelError: The file is not a complete GGUF file of known types; names the file and the tensor.
    """
    return with_first_bytes(path, gguf_of)


def gguf_of(path: Path, size: int, first: Callable[[int], bytes]) -> GgufFile:
    """As ``read_gguf``, of a file that need not be here.

    Args:
        path: Names the file.
        size: Its bytes.
        first: Gives so many of its first bytes, or all of a shorter one.

    Raises:
        ModelError: As ``read_gguf``.
    """
    count = _FIRST_BYTES
    while True:
        reader = _Reader(path, first(min(count, size)), size)
        try:
            return reader.header()
        except _TooShortError:
            if count >= MAX_HEADER_BYTES:
                raise reader.wrong(f"its header has more than {MAX_HEADER_BYTES} bytes") from None
            count *= 4


class _TooShortError(Exception):
    """The header goes on behind the bytes at hand."""


class _Reader:
    """Reads a header from the first bytes of a file; every count is held against the bytes that the file has left."""

    def __init__(self, path: Path, start: bytes, size: int) -> None:
        self._path, self._start, self._size, self._position = path, start, size, 0

    def wrong(self, what: str) -> ModelError:
        return ModelError(what, where=str(self._path), hint=_FRESH)

    def header(self) -> GgufFile:
        num_tensors, num_values = self._counts()
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._text(MAX_NAME_BYTES, "a key of the metadata")
            if key in metadata:
                raise self.wrong(f"the metadata gives {key!r} twice")
            metadata[key] = self._value(key)
        stated = [self._tensor() for _ in range(num_tensors)]
        return GgufFile(metadata, self._places(stated, self._alignment(metadata)))

    def _counts(self) -> tuple[int, int]:
        if self._start.startswith(b"version https://git-lfs"):
            raise ModelError(
                "this is a Git LFS pointer, not the model itself",
                where=str(self._path),
                hint="run `git lfs pull` in its repository, or download it from the Hub",
            )
        if self._size < 24:
            raise self.wrong("the file is empty" if not self._size else f"the file has only {self._size} bytes")
        if not self._start.startswith(MAGIC):
            raise self.wrong("it does not begin with GGUF")
        self._position = 4
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise self.wrong("its numbers are big-endian, which is not read")
        if version not in _VERSIONS:
            raise self.wrong(f"it is GGUF version {version}; 2 and 3 are read")
        num_tensors, num_values = self._number("Q"), self._number("Q")
        # A tensor's description takes 32 bytes at least, a value 13.
        self._require(num_tensors * 32 + num_values * 13, f"{num_tensors} tensors and {num_values} values")
        return num_tensors, num_values

    def _require(self, count: int, what: str) -> None:
        if count > self._size - self._position:
            raise self.wrong(f"it states {what}, and {self._size - self._position} bytes are left")

    def _take(self, count: int, what: str) -> bytes:
        self._require(count, what)
        end = self._position + count
        if end > len(self._start):
            raise _TooShortError
        taken = self._start[self._position : end]
        self._position = end
        return taken

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize(code), "a number"))[0]

    def _text(self, most: int, what: str) -> str:
        length = self._number("Q")
        if length > most:
            raise self.wrong(f"{what} has {length} bytes; at most {most} are read")
        text = self._take(length, f"a text of {length} bytes")
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8") from None

    def _value(self, key: str) -> Any:
        kind = self._number("I")
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self.wrong(f"the value of {key!r} is of type {kind}, which the format does not have")
        element, count = self._number("I"), self._number("Q")
        if element in _NUMBERS:
            width = struct.calcsize(_NUMBERS[element])
            packed = self._take(count * width, f"{count} elements of {key!r}")
            return list(struct.unpack(f"<{count}{_NUMBERS[element]}", packed))
        if element != _STRING:
            raise self.wrong(f"the elements of {key!r} are of type {element}; numbers and texts are read")
        self._require(count * 8, f"{count} elements of {key!r}")
        return [self._string() for _ in range(count)]

    def _string(self) -> str:
        length = self._number("Q")
        # A token of a vocabulary may be a part of a character.
        return self._take(length, f"a text of {length} bytes").decode(errors="replace")

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._text(MAX_NAME_BYTES, "the name of a tensor")
        num_sizes = self._number("I")
        if not 1 <= num_sizes <= _MAX_SIZES:
            raise self.wrong(f"tensor {name!r} has {num_sizes} sizes; 1 to {_MAX_SIZES} are read")
        shape = tuple(self._number("Q") for _ in range(num_sizes))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        if kind not in _TYPES:
            raise self.wrong(f"tensor {name!r} is of type {kind}, which is not read")
        dtype = _TYPES[kind][0]
        if not all(0 < size < 1 << 48 for size in shape) or shape[-1] % BLOCK_SIZES[dtype].elements:
            raise self.wrong(f"tensor {name!r} of {dtype} has the shape {list(shape)}, which is no whole blocks")
        return name, dtype, shape, offset

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.wrong(f"general.alignment is {alignment!r}; a power of two is needed")
        return alignment

    def _places(self, stated: list[tuple[str, str, tuple[int, ...], int]], alignment: int) -> dict[str, TensorInfo]:
        """Where each tensor lies; they follow one another without gaps, so that none overlaps another."""

        def aligned(position: int) -> int:
            return -(-position // alignment) * alignment

        start = aligned(self._position)
        found: dict[str, TensorInfo] = {}
        position = 0
        for name, dtype, shape, offset in stated:
            if name in found:
                raise self.wrong(f"the tensor {name!r} is there twice")
            if offset != position:
                fault = "overlaps the tensor before it" if offset < position else "leaves unused bytes before it"
                raise self.wrong(f"tensor {name!r} {fault}")
            block = BLOCK_SIZES[dtype]
            end = offset + math.prod(shape) // block.elements * block.size_bytes
            found[name] = TensorInfo(self._path.name, dtype, shape, start + offset, start + end)
            if start + end > self._size:
                raise self.wrong(
                    f"tensor {name!r} ends at byte {start + end}, and the file has {self._size}: cut short"
                )
            position = aligned(end)
        last = max(found.values(), key=lambda tensor: tensor.end).end if found else self._position
        if self._size > aligned(last):
            raise self.wrong(f"{self._size - last} bytes behind its last tensor belong to none")
        return found
