"""The graph of an ONNX file: its nodes, and where its tensors lie; read and checked without loading the weights.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3, in the wire format of protocol buffers: fields, each
with its number, a kind and a value, whose bytes may be fields again. Tensors lie in the file, or in files next to it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders.safetensors_file import TensorInfo

MAX_NODES = 1_000_000
MAX_TENSORS = 200_000
_MAX_FIELDS = 1 << 21
_MAX_SIZES = 8
_MAX_LISTED = 1 << 20
"""Elements of a tensor whose values are numbers of the format, one by one."""
_MAX_TEXT = 65_535
_FRESH = "download the file again"
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_WIDTHS = {_EIGHT: 8, _FOUR: 4}

_TYPES = {
    1: ("F32", 32),
    2: ("U8", 8),
    3: ("I8", 8),
    6: ("I32", 32),
    7: ("I64", 64),
    10: ("F16", 16),
    16: ("BF16", 16),
    21: ("U4", 4),
    22: ("I4", 4),
}
"""Of the types of elements those that weights have: their names and bits."""
_LISTED = {"U8": "B", "I8": "B", "F16": "H", "BF16": "H", "I32": "I", "U4": "B", "I4": "B"}
"""What ``int32_data`` holds of each."""


class Node(NamedTuple):
    """One operation."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, int]
    """Attributes that are whole numbers."""


class Graph(NamedTuple):
    """What a file holds."""

    producer: str
    nodes: tuple[Node, ...]
    tensors: Mapping[str, TensorInfo]
    """Of the types that weights have; in ``file`` or next to it."""
    listed: Mapping[str, bytes]
    """The bytes of tensors that are written as numbers, one by one: they lie nowhere as they are."""


SizeOf = Callable[[str], int | None]
"""Gives the size of a file next to the graph's, None where there is none."""


def read_graph(path: Path, size_of: SizeOf | None = None) -> Graph:
    """Read a file's graph, and where its tensors lie.

    Args:
        path: Of the file.
        size_of: Of the files next to it; None: they are here.

    Raises:
        ModelError: It is no complete ONNX file; names the file and the tensor.
        SecurityError: A tensor lies outside of the file's directory.
    """
    try:
        if not path.is_file():
            raise ModelError("the file is missing", where=str(path), hint=_FRESH)
        with path.open("rb") as stream:
            start = stream.read(32)
            if not start:
                raise ModelError("the file is empty", where=str(path), hint=_FRESH)
            if start.startswith(b"version https://git-lfs"):
                raise ModelError(
                    "this is a Git LFS pointer, not the model itself",
                    where=str(path),
                    hint="run `git lfs pull` in its repository, or download it from the Hub",
                )
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content, size_of or _beside(path.parent)).graph()
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror}", where=str(path), hint=_FRESH) from error


def _beside(directory: Path) -> SizeOf:
    def size_of(name: str) -> int | None:
        path = directory / name
        return path.stat().st_size if path.is_file() else None

    return size_of


class _Field(NamedTuple):
    number: int
    kind: int
    value: int
    """Of a varint; else where its bytes begin."""
    end: int


class _Reader:
    """Reads a file's fields; every length is held against the bytes that are there."""

    def __init__(self, path: Path, content: mmap.mmap, size_of: SizeOf) -> None:
        self._path, self._content, self._size_of = path, content, size_of
        self._sizes: dict[str, int | None] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._listed: dict[str, bytes] = {}
        self._names: set[str] = set()

    def _wrong(self, what: str) -> ModelError:
        return ModelError(what, where=str(self._path), hint=_FRESH)

    def graph(self) -> Graph:
        producer, nodes, num_graphs = "", list[Node](), 0
        for field in self._fields(0, len(self._content)):
            if field.number == 2 and field.kind == _BYTES:
                producer = self._text(field)
            elif field.number == 7 and field.kind == _BYTES:
                num_graphs += 1
                nodes += self._nodes(field)
        if num_graphs != 1:
            raise self._wrong(f"it holds {num_graphs} graphs; an ONNX model has one")
        return Graph(producer, tuple(nodes), self._tensors, self._listed)

    def _nodes(self, graph: _Field) -> list[Node]:
        nodes: list[Node] = []
        for field in self._fields(graph.value, graph.end):
            if field.kind != _BYTES:
                continue
            if field.number == 1:
                nodes.append(self._node(field))
            elif field.number == 5:
                self._tensor(field)
            if len(nodes) > MAX_NODES or len(self._names) > MAX_TENSORS:
                raise self._wrong(f"it has more than {MAX_NODES:,} nodes or {MAX_TENSORS:,} tensors")
        return nodes

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for count in range(10):
            if position + count >= end:
                break
            byte = self._content[position + count]
            value |= (byte & 127) << 7 * count
            if byte < 128:
                return value & (1 << 64) - 1, position + count + 1
        raise self._wrong(f"it is no ONNX file, or damaged at byte {position}")

    def _fields(self, position: int, end: int) -> Iterator[_Field]:
        first = position
        for _ in range(_MAX_FIELDS):
            if position == end:
                return
            key, start = self._varint(position, end)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, position = self._varint(start, end)
                yield _Field(number, kind, value, position)
                continue
            length = _WIDTHS.get(kind, 0)
            if kind == _BYTES:
                length, start = self._varint(start, end)
            elif not length:
                raise self._wrong(f"it is no ONNX file, or damaged at byte {position}")
            if length > end - start:
                raise self._wrong(
                    f"it states {length} bytes at byte {position}, and {end - start} are left: cut short, or no ONNX"
                )
            position = start + length
            yield _Field(number, kind, start, position)
        raise self._wrong(f"there are more than {_MAX_FIELDS:,} fields at byte {first}")

    def _text(self, field: _Field) -> str:
        if field.kind != _BYTES or field.end - field.value > _MAX_TEXT:
            raise self._wrong(f"a name at byte {field.value} is longer than {_MAX_TEXT} bytes, or none")
        return self._content[field.value : field.end].decode(errors="replace")

    def _numbers(self, field: _Field) -> list[int]:
        """One number, or several that are packed."""
        if field.kind == _VARINT:
            return [field.value]
        found, position = list[int](), field.value
        while position < field.end:
            value, position = self._varint(position, field.end)
            found.append(value)
            if len(found) > _MAX_LISTED:
                raise self._wrong(f"it lists more than {_MAX_LISTED:,} numbers one by one")
        return found

    def _node(self, node: _Field) -> Node:
        texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
        numbers: dict[str, int] = {}
        constants: list[_Field] = []
        for field in self._fields(node.value, node.end):
            if field.number in texts:
                texts[field.number].append(self._text(field))
            elif field.number == 5 and field.kind == _BYTES:
                self._attribute(field, numbers, constants)
        kind = "".join(texts[4][-1:])
        if kind == "Constant" and constants and texts[2]:
            self._tensor(constants[-1], texts[2][0])
        return Node(kind, "".join(texts[3][-1:]), tuple(texts[1]), tuple(texts[2]), numbers)

    def _attribute(self, attribute: _Field, numbers: dict[str, int], constants: list[_Field]) -> None:
        name = ""
        for field in self._fields(attribute.value, attribute.end):
            if field.number == 1:
                name = self._text(field)
            elif field.number == 3 and field.kind == _VARINT:
                # Negative numbers fill all of 64 bits.
                numbers[name] = field.value - (field.value >> 63 << 64)
            elif field.number == 5 and field.kind == _BYTES:
                constants.append(field)

    def _tensor(self, tensor: _Field, name: str | None = None) -> None:
        """Note where a tensor lies; one of a type that weights do not have is passed over."""
        sizes: list[int] = []
        kind, stated, is_outside = 0, "", False
        values: list[_Field] = []
        outside: dict[str, str] = {}
        for field in self._fields(tensor.value, tensor.end):
            if field.number == 1:
                sizes += self._numbers(field)
            elif field.number == 2 and field.kind == _VARINT:
                kind = field.value
            elif field.number == 8:
                stated = self._text(field)
            elif field.number == 13 and field.kind == _BYTES:
                key, value = self._entry(field)
                outside[key] = value
            elif field.number == 14 and field.kind == _VARINT:
                is_outside = field.value == 1
            elif field.number in (4, 5, 9):
                values.append(field)
        name = stated if name is None else name
        if name in self._names:
            raise self._wrong(f"the tensor {name!r} is there twice")
        self._names.add(name)
        if kind not in _TYPES:
            return
        dtype, bits = _TYPES[kind]
        if len(sizes) > _MAX_SIZES or not all(size < 1 << 48 for size in sizes):
            raise self._wrong(f"tensor {name!r} has the sizes {sizes[:_MAX_SIZES]}, which cannot be")
        size_bytes = -(-math.prod(sizes) * bits // 8)
        if is_outside:
            self._tensors[name] = self._outside(name, dtype, tuple(sizes), size_bytes, outside)
        else:
            self._inside(name, TensorInfo(self._path.name, dtype, tuple(sizes), 0, size_bytes), values)

    def _entry(self, entry: _Field) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for field in self._fields(entry.value, entry.end):
            if field.number in texts:
                texts[field.number] = self._text(field)
        return texts[1], texts[2]

    def _inside(self, name: str, tensor: TensorInfo, values: list[_Field]) -> None:
        """A tensor in the file: its bytes, f32 numbers, or numbers one by one."""
        if [field.number for field in values] in ([9], [4]) and values[0].kind == _BYTES:
            start, end = values[0].value, values[0].end
            if end - start != tensor.end or (values[0].number == 4 and tensor.dtype != "F32"):
                raise self._wrong(
                    f"tensor {name!r} of {tensor.dtype} {list(tensor.shape)} needs {tensor.end} bytes, and has "
                    f"{end - start}"
                )
            self._tensors[name] = tensor._replace(start=start, end=end)
            return
        if any(field.number == 9 for field in values):
            raise self._wrong(f"tensor {name!r} gives its values twice")
        if tensor.dtype == "F32":
            content = b"".join(self._content[field.value : field.end] for field in values if field.kind == _FOUR)
        else:
            code = _LISTED.get(tensor.dtype)
            listed = [number for field in values if field.number == 5 for number in self._numbers(field)]
            if code is None:
                return
            width = struct.calcsize(code)
            mask = (1 << 8 * width) - 1
            content = struct.pack(f"<{len(listed)}{code}", *(number & mask for number in listed))
        if len(content) != tensor.end:
            raise self._wrong(
                f"tensor {name!r} of {tensor.dtype} {list(tensor.shape)} needs {tensor.end} bytes, and has "
                f"{len(content)}"
            )
        self._listed[name] = content
        self._tensors[name] = tensor._replace(start=0, end=0)

    def _outside(
        self, name: str, dtype: str, shape: tuple[int, ...], size_bytes: int, entries: Mapping[str, str]
    ) -> TensorInfo:
        """A tensor in a file next to this one."""
        file = entries.get("location", "")
        if not file or any(part in file for part in ("/", "\\", ":", "\0")) or file in (".", ".."):
            raise SecurityError(
                f"tensor {name!r} lies in {file!r}; only files in the same directory are accepted",
                where=str(self._path),
                hint="do not use this model; that file was not opened",
            )
        texts = (entries.get("offset", "0"), entries.get("length", str(size_bytes)))
        if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in texts):
            raise self._wrong(f"tensor {name!r} lies at {texts[0]!r} with {texts[1]!r} bytes, which are no numbers")
        offset, length = map(int, texts)
        if length != size_bytes:
            raise self._wrong(f"tensor {name!r} of {dtype} {list(shape)} needs {size_bytes} bytes, and has {length}")
        if file not in self._sizes:
            self._sizes[file] = self._size_of(file)
        there = self._sizes[file]
        if there is None:
            raise ModelError(
                f"tensor {name!r} lies in {file}, which is not there",
                where=str(self._path),
                hint="fetch it as well, into the same directory",
            )
        if offset + length > there:
            raise self._wrong(f"tensor {name!r} ends at byte {offset + length} of {file}, which has {there}: cut short")
        return TensorInfo(file, dtype, shape, offset, offset + length)
