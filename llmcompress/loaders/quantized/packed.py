"""One quantized weight in the constants that the runtime keeps compressed, and the arithmetic of packed codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Element = Literal["u4", "i4", "u8", "i8", "f8e4m3", "f4e2m1", "nf4", "f16", "bf16", "f32"]
"""OpenVINO's names of what codes are; floats are no codes but the weight itself."""
Scale = Literal["f16", "f32", "f8e4m3", "f8e8m0"]
"""OpenVINO's names of what scales are."""

FLOATS = ("f16", "bf16", "f32")
FOUR_BITS = ("u4", "i4", "f4e2m1", "nf4")

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

MIN_GROUP_SIZE = 8
"""Below it scales would take more room than the codes."""

_BLOCK_ELEMENTS = 1 << 22


class Levels(NamedTuple):
    """Scales, and zero points, as small integers of a group times numbers of the blocks that groups make.

    The runtime multiplies them when it compiles, and has the same numbers; a file has a byte for each.
    """

    scales: NDArray[Any]
    """``[rows, groups]``: bytes, with sign or without."""
    scale_steps: NDArray[Any]
    """``[rows, blocks]`` in f16: what a scale is times its byte."""
    offsets: NDArray[Any] | None = None
    """``[rows, groups]``: bytes; None: there are no zero points."""
    offset_steps: NDArray[Any] | None = None
    """``[rows, blocks]`` in f16: a zero point is the byte times it, divided by the scale."""

    def first(self, rows: int) -> Levels:
        """Those of the first rows."""
        return Levels(
            self.scales[:rows],
            self.scale_steps[:rows],
            None if self.offsets is None else self.offsets[:rows],
            None if self.offset_steps is None else self.offset_steps[:rows],
        )


class PackedWeight(NamedTuple):
    """``(codes - zero points) * scales``, a zero point and a scale for each group of columns in a row."""

    codes: NDArray[Any]
    """Bytes, row by row; of 4 bits two in a byte, the low half first."""
    element: Element
    shape: tuple[int, ...]
    """Output and input channels; of a stack of experts their number before them. Rows are all but the last."""
    scales: NDArray[Any]
    """``[rows, groups]``: numbers in f16 where that holds every one exactly, else in f32; or bytes. None for floats."""
    zero_points: NDArray[Any] | None = None
    """``[rows, groups]``: a byte for each, or numbers in f16 or f32 that lie between codes; None: zero."""
    columns: NDArray[Any] | None = None
    """The input channel of each stored column, where columns were sorted so that groups lie together."""
    scale: Scale = "f16"
    """What the scales' bytes are; of numbers their type says it."""
    factors: NDArray[Any] | None = None
    """What scales that are bytes are multiplied by in f32: one number, or one for each row; None: nothing."""
    rounding: float = 0.0
    """The largest relative difference between a scale or zero point and what the source says; 0: there is none.

    Of a zero point below 1: the difference, in steps.
    """
    unrounded: Callable[[], NDArray[Any]] | None = None
    """Gives the weight in f32 as the source has it; None: as the codes say."""

    levels: Levels | None = None
    """What the scales and zero points, in f32, are products of."""
    nonfinite: str = ""
    """What of it is NaN or infinite, for people; empty: nothing."""

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.shape[-1] // int(self.scales.shape[1])

    @property
    def num_rows(self) -> int:
        """Of the whole stack."""
        return math.prod(self.shape[:-1])

    @property
    def scale_element(self) -> Scale:
        """OpenVINO's name of what the scales are."""
        return self.scale if self.scales.itemsize == 1 else "f16" if self.scales.itemsize == 2 else "f32"


def dequantized(weight: PackedWeight) -> NDArray[Any]:
    """The weight in f32, columns as they are stored; products are rounded to f32 and no more.

    It is the source's: zero points and values that were rounded to f16 to keep them are not rounded here.
    """
    import numpy as np

    if weight.unrounded is not None:
        return weight.unrounded()

    columns = weight.shape[-1]

    def block(part: slice) -> NDArray[Any]:
        values = _values(weight, part)
        if weight.element in FLOATS:
            return values
        values = values.reshape(part.stop - part.start, -1, weight.group_size)
        if weight.zero_points is not None:
            values = values - weight.zero_points[part, :, None].astype(np.float32)
        floats: NDArray[Any] = values * _scales(weight, part)[..., None]
        return floats.reshape(-1, columns)

    return in_blocks(weight.num_rows, columns, np.float32, block).reshape(weight.shape)


def _scales(weight: PackedWeight, part: slice) -> NDArray[Any]:
    """The scales of some rows, as numbers."""
    import numpy as np

    scales: NDArray[Any] = weight.scales[part]
    if weight.scale_element == "f8e8m0":
        # The last byte is the format's NaN.
        scales = np.exp2(np.where(scales == 255, np.float32(np.nan), scales.astype(np.float32) - 127))
    elif weight.scale_element == "f8e4m3":
        scales = float8_values()[scales]
    if weight.factors is not None:
        scales = scales * (weight.factors if weight.factors.size == 1 else weight.factors[part, None])
    return scales.astype(np.float32)


def _values(weight: PackedWeight, part: slice) -> NDArray[Any]:
    """The codes of some rows, as numbers."""
    import numpy as np

    codes = weight.codes.reshape(weight.num_rows, -1)[part]
    if weight.element in FOUR_BITS:
        codes = unpacked(codes, 4)
    if weight.element == "bf16":
        return (codes.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if weight.element in FLOATS:
        return codes.view("<f2" if weight.element == "f16" else "<f4").astype(np.float32)
    if weight.element in _TABLES:
        floats: NDArray[Any] = _TABLES[weight.element]()[codes]
        return floats
    if weight.element == "i4":
        # The upper half of a signed code's range is negative.
        return (codes ^ 8).astype(np.float32) - 8
    return codes.view(np.int8).astype(np.float32) if weight.element == "i8" else codes.astype(np.float32)


def float8_values() -> NDArray[Any]:
    """The value of every byte in the format E4M3 (finite; NaN at 127 and 255)."""
    import numpy as np

    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    value[byte & 127 == 127] = math.nan
    return np.where(byte > 127, -value, value).astype(np.float32)


def float4_values() -> NDArray[Any]:
    """The value of every code in the format E2M1."""
    import numpy as np

    positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return np.concatenate([positive, -positive])


def normal_float4_values() -> NDArray[Any]:
    """The value of every code in the format NF4. Source: https://arxiv.org/abs/2305.14314, appendix E."""
    import numpy as np

    return np.array(NF4, np.float32)


_TABLES: Mapping[str, Callable[[], NDArray[Any]]] = {
    "f8e4m3": float8_values,
    "f4e2m1": float4_values,
    "nf4": normal_float4_values,
}


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


def rounded(scales: NDArray[Any], exact: NDArray[Any]) -> float:
    """The largest relative difference between scales and what they should be."""
    import numpy as np

    return float(np.max(np.abs(scales - exact) / np.where(exact == 0, 1, np.abs(exact)), initial=0))


def float_bytes(values: NDArray[Any], element: Element) -> NDArray[Any]:
    """f32 as rows of bytes of another float type, rounded to the nearest, ties to even."""
    import numpy as np

    if element == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)
    return np.ascontiguousarray(values.astype("<f2" if element == "f16" else "<f4")).view(np.uint8)


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
