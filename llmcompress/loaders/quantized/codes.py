"""The arithmetic of packed codes: bits, blocks of rows, scales without rounding, and what codes of floats stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

Element = Literal["u4", "i4", "u8", "i8", "f8e4m3", "f4e2m1", "nf4", "f16", "bf16", "f32"]
"""OpenVINO's names of what codes are; floats are no codes but the weight itself."""
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

BLOCK_ELEMENTS = 1 << 22
"""As many are computed at once."""


def in_blocks(rows: int, columns: int, dtype: type, block: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    """Put an array of ``rows`` together from blocks of rows; a block has about 4 million elements of ``columns``."""
    import numpy as np

    step = max(1, BLOCK_ELEMENTS // max(columns, 1))
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


def regrouped(values: NDArray[Any], group_size: int, common: int, columns: int) -> NDArray[Any]:
    """Repeat what each group of ``group_size`` columns has for the groups of ``common`` columns in it."""
    import numpy as np

    return values if common == group_size else np.repeat(values, group_size // common, axis=1)[:, : columns // common]


def float_bytes(values: NDArray[Any], element: Element) -> NDArray[Any]:
    """f32 as rows of bytes of another float type, rounded to the nearest, ties to even."""
    import numpy as np

    if element == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)
    return np.ascontiguousarray(values.astype("<f2" if element == "f16" else "<f4")).view(np.uint8)


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
