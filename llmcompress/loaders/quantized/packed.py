"""One quantized weight in the constants that the runtime keeps compressed, and the floats that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import (
    BLOCK_ELEMENTS,
    Element,
    float4_values,
    float8_values,
    in_blocks,
    normal_float4_values,
    packed4,
    unpacked,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scale = Literal["f16", "f32", "f8e4m3", "f8e8m0"]
"""OpenVINO's names of what scales are."""

FLOATS = ("f16", "bf16", "f32")
FOUR_BITS = ("u4", "i4", "f4e2m1", "nf4")


MIN_GROUP_SIZE = 8
"""Below it scales would take more room than the codes."""


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
        return weight.unrounded().reshape(weight.shape)

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


_TABLES: Mapping[str, Callable[[], NDArray[Any]]] = {
    "f8e4m3": float8_values,
    "f4e2m1": float4_values,
    "nf4": normal_float4_values,
}


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
    for start in range(0, flat.size, BLOCK_ELEMENTS):
        flat[start : start + BLOCK_ELEMENTS] = moved[flat[start : start + BLOCK_ELEMENTS]]
    return weight._replace(element="i4" if weight.element == "u4" else "i8", zero_points=None)


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


ORIGINAL = "take the model as it was before quantization; its page usually links it as the base model"
