"""bitsandbytes: NF4 and FP4 in blocks, with scales that may be quantized themselves, and int8.

4 bits: ``weight`` uint8 ``[N * K / 2, 1]``, two codes in a byte, the high half first, in blocks that run through the
whole weight; ``weight.absmax`` of each block, float32, or uint8 with ``weight.nested_absmax``,
``weight.nested_quant_map`` and an offset; ``weight.quant_map`` ``[16]``, the value of each code; and
``weight.quant_state.bitsandbytes__nf4`` or ``__fp4``, JSON in bytes. 8 bits: ``weight`` int8 ``[N, K]`` and ``SCB``
``[N]``, 127 times the scale of each row.
Source: https://github.com/bitsandbytes-foundation/bitsandbytes, ``bitsandbytes/functional.py``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import NF4, Element, float_bytes, in_blocks, rounded, shortest, unpacked
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight
from llmcompress.loaders.quantized.required import modules_with, require_matrix, require_tensor
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STATE = "weight.quant_state.bitsandbytes__"
_DTYPES: Mapping[str, Element] = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
_MAX_STATE_BYTES = 10_000
_LARGEST_CODE = 127


class _State(NamedTuple):
    """What is written of a weight of 4 bits."""

    kind: str
    shape: tuple[int, int]
    block_size: int
    nested_block_size: int | None
    """Blocks whose scales have a scale in common; None: scales are not quantized."""
    offset: float
    """Added to scales that were quantized."""
    element: Element
    """Of the weight where it is computed."""


def find_bitsandbytes(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of a bitsandbytes checkpoint; the tensors say how each is stored.

    Raises:
        ModelError: A tensor is missing or of another type or shape, or says something else than the format.
    """
    found = [_integers(module, tensors) for module in modules_with(tensors, "SCB")]
    for kind in ("nf4", "fp4"):
        found += [_floats(module, kind, tensors, read) for module in modules_with(tensors, _STATE + kind)]
    return found


def _integers(module: str, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    rows, columns = require_matrix(tensors, f"{module}.weight", ("I8",))
    require_tensor(tensors, f"{module}.SCB", ("F32",), (rows,))
    parts = {f"{module}.{part}" for part in ("weight", "SCB", "weight_format")} & set(tensors)
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, columns),
        format="bitsandbytes int8",
        element="i8",
        group_size=columns,
        parts=frozenset(parts),
        repack=functools.partial(_repack_integers, module, (rows, columns)),
        scale="f32",
    )


def _repack_integers(module: str, shape: tuple[int, int], read: Read) -> PackedWeight:
    import numpy as np

    exact = read(f"{module}.SCB").astype(np.float64)[:, None] / _LARGEST_CODE
    scales = shortest(exact.astype(np.float32))
    return PackedWeight(read(f"{module}.weight"), "i8", shape, scales, rounding=rounded(scales, exact))


def _floats(module: str, kind: str, tensors: Mapping[str, TensorInfo], read: Read) -> StoredWeight:
    name = f"{module}.weight"
    state = _state(module, kind, tensors, read)
    rows, columns = state.shape
    num_blocks = -(-rows * columns // state.block_size)
    stored = require_tensor(tensors, name, ("U8",))
    if math.prod(stored.shape) * 2 != rows * columns + rows * columns % 2:
        raise ModelError(
            f"tensor {name!r} has the shape {list(stored.shape)}; its quant_state says {rows} x {columns} codes of "
            "4 bits",
            where=stored.file,
            hint=ORIGINAL,
        )
    nested = state.nested_block_size
    require_tensor(tensors, f"{name}.absmax", ("F32",) if nested is None else ("U8",), (num_blocks,))
    require_tensor(tensors, f"{name}.quant_map", ("F32",), (16,))
    parts = {name, f"{name}.absmax", f"{name}.quant_map", f"{module}.{_STATE}{kind}"}
    if nested is not None:
        require_tensor(tensors, f"{name}.nested_absmax", ("F32",), (-(-num_blocks // nested),))
        require_tensor(tensors, f"{name}.nested_quant_map", ("F32",), (256,))
        parts |= {f"{name}.nested_absmax", f"{name}.nested_quant_map"}
    in_rows = columns % state.block_size == 0 and columns % 2 == 0
    keeps = in_rows and tuple(read(f"{name}.quant_map").tolist()) == NF4
    reason = (
        ""
        if keeps
        else ", dequantized: its blocks cross rows"
        if not in_rows
        else ", dequantized: OpenVINO has no such codes"
    )
    return StoredWeight(
        name=name,
        shape=(rows, columns),
        format=f"bitsandbytes {kind.upper()}, blocks of {state.block_size}{reason}",
        element="nf4" if keeps else state.element,
        group_size=state.block_size if keeps else columns,
        parts=frozenset(parts),
        repack=functools.partial(_repack_floats if keeps else _dequantize, name, state),
        scale="f32",
    )


def _state(module: str, kind: str, tensors: Mapping[str, TensorInfo], read: Read) -> _State:
    name = f"{module}.{_STATE}{kind}"
    tensor = require_tensor(tensors, name, ("U8",))
    try:
        if tensor.end - tensor.start > _MAX_STATE_BYTES:
            raise ValueError
        said = json.loads(read(name).tobytes())
        (rows, columns), block_size, nested = said["shape"], said["blocksize"], said.get("nested_blocksize")
        offset = said["nested_offset"] if nested is not None else 0.0
        sizes = [rows, columns, block_size, *([] if nested is None else [nested])]
        fits = all(type(size) is int and 0 < size < 1 << 31 for size in sizes) and math.isfinite(offset)
        if said["quant_type"] != kind or not fits:
            raise ValueError
        return _State(kind, (rows, columns), block_size, nested, float(offset), _DTYPES[said["dtype"]])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"tensor {name!r} does not say quant_type, shape, blocksize and dtype as the format does",
            where=tensor.file,
            hint=ORIGINAL,
        ) from error


def _absmax(name: str, state: _State, read: Read) -> NDArray[Any]:
    """The scale of each block, in f32."""
    import numpy as np

    stored = read(f"{name}.absmax")
    if state.nested_block_size is None:
        return stored
    largest = np.repeat(read(f"{name}.nested_absmax"), state.nested_block_size)[: stored.size]
    found: NDArray[Any] = read(f"{name}.nested_quant_map")[stored] * largest + np.float32(state.offset)
    return found


def _repack_floats(name: str, state: _State, read: Read) -> PackedWeight:
    import numpy as np

    rows, columns = state.shape
    stored = read(name).reshape(rows, -1)

    def block(part: slice) -> NDArray[Any]:
        swapped: NDArray[Any] = stored[part] >> 4 | stored[part] << 4
        return swapped

    codes = in_blocks(rows, columns, np.uint8, block)
    return PackedWeight(codes, "nf4", state.shape, shortest(_absmax(name, state, read).reshape(rows, -1)))


def _dequantize(name: str, state: _State, read: Read) -> PackedWeight:
    """The weight as bitsandbytes computes it, in the type that it gives."""
    import numpy as np

    stored, absmax = read(name).reshape(-1), _absmax(name, state, read)
    values = read(f"{name}.quant_map")
    rows, columns = state.shape

    def block(part: slice) -> NDArray[Any]:
        first, last = part.start * columns, part.stop * columns
        pairs = stored[first // 2 : -(-last // 2), None]
        codes = unpacked(pairs >> 4 | pairs << 4, 4).reshape(-1)[first % 2 :][: last - first]
        floats = values[codes] * absmax[np.arange(first, last) // state.block_size]
        return float_bytes(floats.reshape(-1, columns), state.element)

    codes = in_blocks(rows, columns, np.uint8, block)
    return PackedWeight(codes, state.element, state.shape, np.empty((rows, 1), np.float32))
