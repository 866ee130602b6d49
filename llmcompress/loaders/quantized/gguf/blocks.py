"""Blocks of GGUF's types, taken apart into codes, scales and offsets of groups.

A block is bytes: scales and offsets, then codes. ``K`` types have blocks of 256 elements, in which small integers
multiply one scale of the block; the product of both is the scale of a group. Source of the layouts:
https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-common.h`` and ``ggml-quants.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.loaders.quantized.codes import Element

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


class BlockLevels(NamedTuple):
    """What the scales and offsets of blocks of groups are products of."""

    scales: NDArray[Any]
    """``[blocks, groups]``: int8 or uint8."""
    scale_steps: NDArray[Any]
    """float32 ``[blocks, 1]``, exact in 16 bits."""
    offsets: NDArray[Any] | None = None
    offset_steps: NDArray[Any] | None = None


class BlockGroups(NamedTuple):
    """``codes * scales - offsets``, for blocks."""

    codes: NDArray[Any]
    """uint8 ``[blocks, elements]``: of 4 bits in the lower half, of signed ones the byte."""
    scales: NDArray[Any]
    """float32 ``[blocks, groups]``."""
    offsets: NDArray[Any] | None = None
    levels: BlockLevels | None = None


class BlockFormat(NamedTuple):
    """What a type of blocks becomes."""

    element: Element
    group_size: int
    parts: Callable[[NDArray[Any]], BlockGroups]
    """Takes blocks ``[blocks, bytes]`` apart."""
    asymmetric: bool = False
    """Whether there are offsets."""
    rounds: bool = False
    """Zero points become f16; else what f16 does not hold exactly is f32."""
    short_scales: bool = False
    """Whether f16 holds every scale."""
    level_groups: int = 0
    """Groups of a block whose scales are small integers times a number of the block; 0: they are no such products."""


def without_zero_scales(groups: BlockGroups) -> BlockGroups:
    """The same numbers where no scale is zero: of a group whose elements are all its offset the codes are."""
    import numpy as np

    zero = groups.scales == 0
    if groups.offsets is None or not zero.any():
        return groups
    size = groups.codes.shape[1] // zero.shape[1]
    codes = np.where(np.repeat(zero, size, axis=1), np.uint8(0), groups.codes)
    if groups.levels is None:
        return groups._replace(codes=codes, scales=np.where(zero, np.float32(1), groups.scales))
    steps = groups.levels.scale_steps
    levels = groups.levels._replace(
        scales=np.where(zero, np.uint8(1), groups.levels.scales), scale_steps=np.where(steps == 0, np.float32(1), steps)
    )
    return _of_levels(codes, levels)


def _half(blocks: NDArray[Any], start: int) -> NDArray[Any]:
    """The 16-bit float at a byte of each block, ``[blocks, 1]``."""
    import numpy as np

    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[Any]) -> NDArray[Any]:
    """The lower halves of the bytes along the last axis, then the upper ones."""
    import numpy as np

    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(blocks: NDArray[Any], start: int) -> NDArray[Any]:
    """32 single bits, each as 0 or 16."""
    import numpy as np

    return np.unpackbits(blocks[:, start : start + 4], axis=-1, bitorder="little") << 4


def _q4_0(blocks: NDArray[Any]) -> BlockGroups:
    return BlockGroups(_nibbles(blocks[:, 2:]) ^ 8, _half(blocks, 0))


def _q4_1(blocks: NDArray[Any]) -> BlockGroups:
    return BlockGroups(_nibbles(blocks[:, 4:]), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: NDArray[Any]) -> BlockGroups:
    import numpy as np

    return BlockGroups((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)) - np.uint8(16), _half(blocks, 0))


def _q5_1(blocks: NDArray[Any]) -> BlockGroups:
    return BlockGroups(_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: NDArray[Any]) -> BlockGroups:
    return BlockGroups(blocks[:, 2:], _half(blocks, 0))


def _of_levels(codes: NDArray[Any], levels: BlockLevels) -> BlockGroups:
    import numpy as np

    scales = levels.scale_steps * levels.scales.astype(np.float32)
    if levels.offsets is None or levels.offset_steps is None:
        return BlockGroups(codes, scales, levels=levels)
    return BlockGroups(codes, scales, levels.offset_steps * levels.offsets.astype(np.float32), levels)


def _two_bits(packed: NDArray[Any]) -> NDArray[Any]:
    """Codes of 2 bits of 64 bytes: each half of them holds four runs of 32, in its bytes' pairs of bits."""
    import numpy as np

    halves = packed.reshape(-1, 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    return (halves >> shifts & 3).reshape(-1, 256)


def _q2_k(blocks: NDArray[Any]) -> BlockGroups:

    small = blocks[:, :16]
    levels = BlockLevels(small & 15, _half(blocks, 80), small >> 4, _half(blocks, 82))
    return _of_levels(_two_bits(blocks[:, 16:80]), levels)


def _q3_k(blocks: NDArray[Any]) -> BlockGroups:
    import numpy as np

    # The third bit of element 32 * i + j is bit i of byte j.
    eighth = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    third = (blocks[:, None, :32] >> eighth & 1).reshape(-1, 256) << 2
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    pairs = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    small = (_nibbles(low) | pairs << 4).astype(np.int8) - np.int8(32)
    codes = (_two_bits(blocks[:, 32:96]) | third) - np.uint8(4)
    return _of_levels(codes & 15, BlockLevels(small, _half(blocks, 108)))


def _small_pairs(packed: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Eight scales and eight offsets of 6 bits in 12 bytes."""
    import numpy as np

    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=-1)
    offsets = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=-1)
    return scales, offsets


def _q4_k(blocks: NDArray[Any]) -> BlockGroups:
    scales, offsets = _small_pairs(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return _of_levels(codes, BlockLevels(scales, _half(blocks, 0), offsets, _half(blocks, 2)))


def _q5_k(blocks: NDArray[Any]) -> BlockGroups:
    import numpy as np

    scales, offsets = _small_pairs(blocks[:, 4:16])
    # As of Q3_K, the fifth bit.
    eighth = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (blocks[:, None, 16:48] >> eighth & 1).reshape(-1, 256) << 4
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 256) | fifth
    return _of_levels(codes, BlockLevels(scales, _half(blocks, 0), offsets, _half(blocks, 2)))


def _q6_k(blocks: NDArray[Any]) -> BlockGroups:
    import numpy as np

    # Each half of the block: two runs of 32 in the lower halves of 64 bytes, then two in the upper ones.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    small = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    codes = (low | _two_bits(blocks[:, 128:192]) << 4) - np.uint8(32)
    return _of_levels(codes, BlockLevels(small, _half(blocks, 208)))


def _iq4(packed: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    found: NDArray[Any] = np.array(_IQ4, np.int8).view(np.uint8)[_nibbles(packed)]
    return found


def _iq4_nl(blocks: NDArray[Any]) -> BlockGroups:
    return BlockGroups(_iq4(blocks[:, 2:]), _half(blocks, 0))


def _iq4_xs(blocks: NDArray[Any]) -> BlockGroups:
    import numpy as np

    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    upper = high >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    lower = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    small = (lower | upper << 4).astype(np.int8) - np.int8(32)
    return _of_levels(_iq4(blocks[:, 8:].reshape(-1, 8, 16)).reshape(-1, 256), BlockLevels(small, _half(blocks, 0)))


def _mxfp4(blocks: NDArray[Any]) -> BlockGroups:
    import numpy as np

    return BlockGroups(_nibbles(blocks[:, 1:]), np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 127))


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    "Q4_0": BlockFormat("i4", 32, _q4_0, short_scales=True),
    "Q4_1": BlockFormat("u4", 32, _q4_1, asymmetric=True, rounds=True, short_scales=True),
    "Q5_0": BlockFormat("i8", 32, _q5_0, short_scales=True),
    "Q5_1": BlockFormat("u8", 32, _q5_1, asymmetric=True),
    "Q8_0": BlockFormat("i8", 32, _q8_0, short_scales=True),
    "Q2_K": BlockFormat("u4", 16, _q2_k, asymmetric=True, level_groups=16),
    "Q3_K": BlockFormat("i4", 16, _q3_k, level_groups=16),
    "Q4_K": BlockFormat("u4", 32, _q4_k, asymmetric=True, level_groups=8),
    "Q5_K": BlockFormat("u8", 32, _q5_k, asymmetric=True, level_groups=8),
    "Q6_K": BlockFormat("i8", 16, _q6_k, level_groups=16),
    "IQ4_NL": BlockFormat("i8", 32, _iq4_nl, short_scales=True),
    "IQ4_XS": BlockFormat("i8", 32, _iq4_xs, level_groups=8),
    "MXFP4": BlockFormat("f4e2m1", 32, _mxfp4, short_scales=True),
}
"""The types whose codes are kept."""

DEQUANTIZED = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"))
"""The types that become 16-bit floats."""
