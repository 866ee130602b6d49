"""One quantized weight in the constants that the runtime keeps compressed, and the arithmetic of packed codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Element = Literal["u4", "i4", "u8", "i8", "f8e4m3", "f4e2m1", "f16", "bf16"]
"""OpenVINO's names of what codes are; of 16-bit floats the bytes, which no scale multiplies."""

FLOATS = ("f16", "bf16")

MIN_GROUP_SIZE = 8
"""Below it scales would take more room than the codes."""

_BLOCK_ELEMENTS = 1 << 22


class PackedWeight(NamedTuple):
    """``(codes - zero points) * scales``, a zero point and a scale for each group of columns in a row."""

    codes: NDArray[Any]
    """Bytes, row by row; of 4 bits two in a byte, the low half first."""
    element: Element
    shape: tuple[int, int]
    """Output and input channels."""
    scales: NDArray[Any]
    """``[rows, groups]``: f16 where that holds every one exactly, else f32."""
    zero_points: NDArray[Any] | None = None
    """``[rows, groups]``, a byte for each, or in floats of the scales' precision; None: zero."""
    columns: NDArray[Any] | None = None
    """The input channel of each stored column, where columns were sorted so that groups lie together."""
    rounding: float = 0.0
    """The largest relative rounding of a scale or zero point of the source; of a zero point below 1, of a step."""
    unrounded: Callable[[], NDArray[Any]] | None = None
    """Gives the weight in f32 as the source has it; None where nothing is rounded."""

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // int(self.scales.shape[1])


def dequantized(weight: PackedWeight) -> NDArray[Any]:
    """The weight in f32, ``[rows, columns]``, columns as they are stored; products are rounded to f32 and no more.

    It is the source's: what was rounded to keep it is not rounded here.
    """
    import numpy as np

    if weight.unrounded is not None:
        return weight.unrounded()
    rows, columns = weight.shape

    def block(part: slice) -> NDArray[Any]:
        values = _values(weight, part).reshape(part.stop - part.start, -1, weight.group_size)
        if weight.zero_points is not None:
            values = values - weight.zero_points[part, :, None].astype(np.float32)
        floats: NDArray[Any] = values * weight.scales[part, :, None].astype(np.float32)
        return floats.reshape(-1, columns)

    return in_blocks(rows, columns, np.float32, block)


def _values(weight: PackedWeight, part: slice) -> NDArray[Any]:
    """The codes of some rows, as numbers."""
    import numpy as np

    codes = weight.codes.reshape(weight.shape[0], -1)[part]
    if weight.element in ("u4", "i4"):
        codes = unpacked(codes, 4)
        # The upper half of a signed code's range is negative.
        return codes.astype(np.float32) if weight.element == "u4" else ((codes ^ 8).astype(np.float32) - 8)
    if weight.element in ("f4e2m1", "f8e4m3"):
        short = weight.element == "f4e2m1"
        floats: NDArray[Any] = float4_values()[unpacked(codes, 4)] if short else float8_values()[codes]
        return floats
    if weight.element == "bf16":
        return (codes.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if weight.element == "f16":
        return codes.view("<f2").astype(np.float32)
    return codes.astype(np.float32) if weight.element == "u8" else codes.view(np.int8).astype(np.float32)


def float4_values() -> NDArray[Any]:
    """The value of every code in the format E2M1."""
    import numpy as np

    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return np.concatenate([values, -values])


def float8_values() -> NDArray[Any]:
    """The value of every byte in the format E4M3 (finite; NaN at 127 and 255)."""
    import numpy as np

    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    value[byte & 127 == 127] = math.nan
    return np.where(byte > 127, -value, value).astype(np.float32)


def in_blocks(rows: int, columns: int, dtype: type, block: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    """Put an array of ``rows`` together from blocks of rows; a block has about 4 million elements of ``columns``."""
    import numpy as np

    step = max(1, _BLOCK_ELEMENTS // max(columns, 1))
    result: NDArray[Any] | None = None
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        made = block(part)
        if result is None:
            result = np.empty((rows, made.shape[1]), dtype)
        result[part] = made
    return np.empty((0, 0), dtype) if result is None else result


def unpacked(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """Codes of 2, 3, 4 or 8 bits from rows of bytes: a stream of bits in each row, the lowest first."""
    import numpy as np

    if bits == 8:
        return packed
    stream: NDArray[Any] = packed
    if bits == 3:
        words = packed.reshape(packed.shape[0], -1, 3).astype(np.uint32)
        stream = words[..., 0] | words[..., 1] << 8 | words[..., 2] << 16
    codes = np.stack([(stream >> shift) & (2**bits - 1) for shift in range(0, 24 if bits == 3 else 8, bits)], axis=-1)
    return codes.astype(np.uint8).reshape(packed.shape[0], -1)


def packed4(codes: NDArray[Any]) -> NDArray[Any]:
    """Two codes of 4 bits in a byte, the low half first; a row has an even number of them."""
    pairs: NDArray[Any] = codes[..., 0::2] | codes[..., 1::2] << 4
    return pairs


def signed(weight: PackedWeight, zero_point: int) -> PackedWeight:
    """The same in signed codes without zero points, where all of them are ``zero_point``; else as it is."""
    import numpy as np

    if weight.zero_points is None or not (weight.zero_points == zero_point).all():
        return weight
    byte = np.arange(256, dtype=np.uint8)
    moved: NDArray[Any] = byte - np.uint8(zero_point)
    if weight.element == "u4":
        moved = packed4((unpacked(byte[:, None], 4) - np.uint8(zero_point)) & 15)[:, 0]
    flat = weight.codes.reshape(-1)
    for start in range(0, flat.size, _BLOCK_ELEMENTS):
        flat[start : start + _BLOCK_ELEMENTS] = moved[flat[start : start + _BLOCK_ELEMENTS]]
    return weight._replace(element="i4" if weight.element == "u4" else "i8", zero_points=None)


def shortest(scales: NDArray[Any]) -> NDArray[Any]:
    """The scales in f16 where that holds every one exactly, else in f32."""
    import numpy as np

    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    exact = bool((half.astype(np.float32) == scales.astype(np.float32)).all())
    return np.ascontiguousarray(half if exact else scales.astype(np.float32))


def common_group_size(columns: int, group_size: int, where: str) -> int:
    """The largest group size that divides the columns and the given groups, so that groups of one size hold them all.

    Raises:
        ModelError: It is so small that nothing would be gained.
    """
    common = math.gcd(columns, group_size)
    if common < min(MIN_GROUP_SIZE, columns):
        raise ModelError(
            f"groups of {group_size} do not divide {columns} columns, and only groups of {common} would",
            where=where,
            hint=ORIGINAL,
        )
    return common


def regrouped(values: NDArray[Any], group_size: int, common: int, columns: int) -> NDArray[Any]:
    """Repeat what each group of ``group_size`` columns has for the groups of ``common`` columns in it."""
    import numpy as np

    return values if common == group_size else np.repeat(values, group_size // common, axis=1)[:, : columns // common]


ORIGINAL = "take the model as it was before quantization; its page usually links it as the base model"
