"""ONNX files, written field by field in the wire format of protocol buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FLOAT, UINT8, INT8, INT64, FLOAT16, BFLOAT16, UINT4, INT4 = 1, 2, 3, 7, 10, 16, 21, 22
_KINDS = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int64": INT64, "float16": FLOAT16}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, values: Array, kind: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    """With its bytes in the file; ``kind`` and ``shape`` where they are not those of the array."""
    sizes = b"".join(field(1, size) for size in (values.shape if shape is None else shape))
    stored = field(9, np.ascontiguousarray(values).tobytes())
    return sizes + field(2, kind or _KINDS[str(values.dtype)]) + field(8, name) + stored


def outside(name: str, kind: int, shape: tuple[int, ...], **entries: object) -> bytes:
    """With its bytes in another file."""
    sizes = b"".join(field(1, size) for size in shape)
    said = b"".join(field(13, field(1, key) + field(2, str(value))) for key, value in entries.items())
    return sizes + field(2, kind) + field(8, name) + said + field(14, 1)


def node(kind: str, name: str, inputs: Iterable[str], outputs: Iterable[str], **numbers: int) -> bytes:
    attributes = b"".join(field(5, field(1, key) + field(3, value) + field(20, 2)) for key, value in numbers.items())
    names = b"".join(field(1, each) for each in inputs) + b"".join(field(2, each) for each in outputs)
    return names + field(3, name) + field(4, kind) + attributes


def write_onnx(path: Path, nodes: Iterable[bytes], tensors: Iterable[bytes]) -> Path:
    graph = b"".join(field(1, each) for each in nodes) + b"".join(field(5, each) for each in tensors)
    path.write_bytes(field(1, 9) + field(2, "test") + field(7, graph))
    return path


def one_layer(path: Path, kind: str, inputs: Mapping[str, bytes | None], **numbers: int) -> Path:
    """A single operation, named as an exporter does; inputs by name, None: no constant."""
    made = node(kind, f"/model/layers.0/mlp/down_proj/{kind}", inputs, ["y"], **numbers)
    return write_onnx(path, [made], [each for each in inputs.values() if each is not None])
