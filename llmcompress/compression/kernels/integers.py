"""Quantization to integers, group by group, in blocks that stay in the cache: from stored floats to packed bytes.

The arithmetic is that of NNCF 3.4 (``nncf/openvino/optimized_functions/models.py``, and the NumPy path next to it for
symmetric modes): IEEE 754 single precision in this order, true division, rounding half to even. A group is what shares
a scale; groups lie one after another in memory.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from llmcompress.system.compiling import compiled

BLOCK_VALUES = 1 << 12
"""Values that are quantized before they are packed; with their floats they fit the first two levels of a cache."""

_EXPONENT = np.uint32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LEAST_FINITE = np.int32(0x80800000 - (1 << 32))
_LARGEST_FINITE = np.int32(0x7F7FFFFF)
_EPSILON = np.float32(np.finfo(np.float32).eps)
_ZERO = np.float32(0)
_LEAST_HALF = np.float32(2**-24)


@compiled
def widen(source: Any, shift: Any, is_half: bool, values: Any, bits: Any) -> None:
    """Store floats as single precision in ``values``, of which ``bits`` is a view."""
    for i in range(len(source)):
        bits[i] = np.int32(np.uint32(source[i]) << shift)
    if not is_half:
        return
    for i in range(len(source)):
        stored = np.uint32(source[i])
        magnitude = stored & np.uint32(0x7FFF)
        wide = (magnitude << np.uint32(13)) + np.uint32((127 - 15) << 23)
        wide = wide | _EXPONENT if magnitude >= np.uint32(0x7C00) else wide
        bits[i] = np.int32(wide | ((stored & np.uint32(0x8000)) << np.uint32(16)))
    for i in range(len(source)):
        stored = np.uint32(source[i])
        if stored & np.uint32(0x7C00) == 0:
            # Below the normal numbers; by a product of normal ones, whatever the processor does with the others.
            small = np.float32(stored & np.uint32(0x3FF)) * _LEAST_HALF
            values[i] = -small if stored & np.uint32(0x8000) else small


@compiled
def find_limits(bits: Any, limits: Any) -> bool:
    """Store the bits of the least and the largest of a group; False where a value is not finite."""
    # As integers, with the magnitude of negative ones turned round, floats keep their order.
    least, largest = _MAGNITUDE, -_MAGNITUDE
    for i in range(len(bits)):
        key = bits[i] ^ ((bits[i] >> np.int32(31)) & _MAGNITUDE)
        least = min(least, key)
        largest = max(largest, key)
    limits[0] = least ^ ((least >> np.int32(31)) & _MAGNITUDE)
    limits[1] = largest ^ ((largest >> np.int32(31)) & _MAGNITUDE)
    return bool(least >= _LEAST_FINITE and largest <= _LARGEST_FINITE)


@compiled
def pack(codes: Any, num_bits: int, packed: Any) -> None:
    """Pack codes, of which the low bits count, as OpenVINO stores u2, u3, u4, i4, u8 and i8.

    Args:
        codes: uint8 ``[num_values]``, a multiple of 8 / num_bits (of 8 for 3 bits).
        num_bits: 2, 3, 4 or 8.
        packed: uint8 ``[num_values * num_bits / 8]``, written.
    """
    if num_bits == 8:
        for i in range(len(codes)):
            packed[i] = codes[i]
    elif num_bits == 4:
        for i in range(len(packed)):
            packed[i] = (codes[2 * i] & np.uint8(15)) | (codes[2 * i + 1] << np.uint8(4))
    elif num_bits == 2:
        for i in range(len(packed)):
            low = codes[4 * i] | (codes[4 * i + 1] << np.uint8(2))
            packed[i] = low | (codes[4 * i + 2] << np.uint8(4)) | (codes[4 * i + 3] << np.uint8(6))
    else:
        # Eight values in three bytes: the low two bits of four, of the other four, then the high bit of each.
        for i in range(len(packed) // 3):
            first, second, high = np.uint8(0), np.uint8(0), np.uint8(0)
            for k in range(4):
                one, other = codes[8 * i + k], codes[8 * i + 4 + k]
                first |= (one & np.uint8(3)) << np.uint8(6 - 2 * k)
                second |= (other & np.uint8(3)) << np.uint8(6 - 2 * k)
                high |= ((one >> np.uint8(2)) << np.uint8(7 - k)) | ((other >> np.uint8(2)) << np.uint8(3 - k))
            packed[3 * i], packed[3 * i + 1], packed[3 * i + 2] = first, second, high


class StoredWeights(NamedTuple):
    """Weights as a checkpoint stores them, in groups that share a scale."""

    values: np.ndarray
    """bf16 or f16 as uint16, or f32 as uint32, in one dimension."""
    shift: np.uint32
    """Bits to shift a bf16 by to get an f32: 16; 0 for others."""
    is_half: bool
    """Whether the values are f16."""
    group_size: int
    num_columns: int = 1
    """Groups lie one after another where it is 1; else they stand upright in blocks of ``group_size`` rows of this
    length, a multiple of 8, of which each column is a group."""


class Integers(NamedTuple):
    """The codes of an integer format."""

    low: np.float32
    """Least code."""
    high: np.float32
    """Largest code."""
    is_asymmetric: bool
    """With a zero point."""
    offset: np.int32
    """Added to a code before it is stored."""
    num_bits: int
    """2, 3, 4 or 8."""


class Codes(NamedTuple):
    """What groups become."""

    are_scales_given: bool
    """Whether scales and zero points are read instead of written."""
    scales: np.ndarray
    """float32 ``[num_groups]``."""
    zero_points: np.ndarray
    """float32 ``[num_groups]``; zeros for a symmetric format, empty for floats."""
    packed: np.ndarray
    """uint8 ``[num_groups * group_size * num_bits / 8]``, written."""


@compiled
def parameters(least: Any, largest: Any, integers: Any) -> Any:
    """The scale and zero point of a group by its limits."""
    if integers.is_asymmetric:
        least, largest = min(_ZERO, least), max(_ZERO, largest)
        scale = (largest - least) / integers.high
        scale = _EPSILON if abs(scale) < _EPSILON else scale
        return scale, min(max(integers.low - np.rint(least / scale), integers.low), integers.high)
    least = abs(least)
    scale = (least if least >= largest else -largest) / -integers.low
    return (_EPSILON if abs(scale) < _EPSILON else scale), _ZERO


@compiled
def round_values(values: Any, scale: Any, zero_point: Any, integers: Any) -> None:
    """Replace the values of a group by their codes.

    A function of its own: from 0 on an index is known not to be negative, and only such a loop becomes vectors.
    """
    low, high = integers.low, integers.high
    for i in range(len(values)):
        code = np.rint(values[i] / scale + zero_point)
        code = low if code < low else code
        values[i] = high if code > high else code


@compiled
def quantize_groups(weights: Any, integers: Any, into: Any, first: int, last: int) -> bool:
    """Quantize groups ``first`` to ``last``; ``first`` is a multiple of 8.

    Args:
        weights: ``StoredWeights`` of one column.
        integers: ``Integers``.
        into: ``Codes``.
        first: First group.
        last: Group before which to stop.

    Returns:
        False where a weight, or a scale that was given, is not finite: the output is undefined then.
    """
    group_size = weights.group_size
    scales, zero_points, is_given = into.scales, into.zero_points, into.are_scales_given
    unit = 8 // math.gcd(8, group_size)  # Groups that end on a whole byte, whatever the number of bits.
    span = unit * max(1, BLOCK_VALUES // (unit * group_size))
    values = np.empty(span * group_size, np.float32)
    bits = values.view(np.int32)
    codes = np.empty(span * group_size, np.uint8)
    limits = np.empty(2, np.float32)
    limit_bits = limits.view(np.int32)
    for start in range(first, last, span):
        stop = min(start + span, last)
        begin, end = start * group_size, stop * group_size
        widen(weights.values[begin:end], weights.shift, weights.is_half, values, bits)
        for group in range(start, stop):
            place = (group - start) * group_size
            if not find_limits(bits[place : place + group_size], limit_bits):
                return False
            scale, zero_point = scales[group], zero_points[group]
            if not is_given:
                scale, zero_point = parameters(limits[0], limits[1], integers)
                scales[group], zero_points[group] = scale, zero_point
            elif not np.isfinite(scale) or scale == _ZERO:
                return False
            round_values(values[place : place + group_size], scale, zero_point, integers)
        # Apart, since a loop that ends in bytes is unrolled beyond the length of a small group.
        for i in range(end - begin):
            codes[i] = np.uint8(np.int32(values[i]) + integers.offset)
        num_bits = integers.num_bits
        pack(codes[: end - begin], num_bits, into.packed[begin * num_bits // 8 : end * num_bits // 8])
    return True


@compiled
def _find_column_limits(weights: Any, block: int, left: int, values: Any, bits: Any, least: Any, largest: Any) -> bool:
    """As ``find_limits`` of each column of a block; ``values``, of which ``bits`` is a view, is changed."""
    width = len(values)
    least[:], largest[:] = _MAGNITUDE, -_MAGNITUDE
    for row in range(block * weights.group_size, (block + 1) * weights.group_size):
        begin = row * weights.num_columns + left
        widen(weights.values[begin : begin + width], weights.shift, weights.is_half, values, bits)
        for i in range(width):
            key = bits[i] ^ ((bits[i] >> np.int32(31)) & _MAGNITUDE)
            least[i] = min(least[i], key)
            largest[i] = max(largest[i], key)
    for i in range(width):
        if least[i] < _LEAST_FINITE or largest[i] > _LARGEST_FINITE:
            return False
        least[i] ^= (least[i] >> np.int32(31)) & _MAGNITUDE
        largest[i] ^= (largest[i] >> np.int32(31)) & _MAGNITUDE
    return True


@compiled
def quantize_columns(weights: Any, integers: Any, into: Any, first: int, last: int, left: int, right: int) -> bool:
    """Quantize groups that stand upright, those of some blocks of rows and some columns.

    Args:
        weights: ``StoredWeights`` of many columns.
        integers: ``Integers``.
        into: ``Codes``; scales and zero points by block, then by column.
        first: First block.
        last: Block before which to stop.
        left: First column, a multiple of 8.
        right: Column before which to stop, a multiple of 8.

    Returns:
        False where a weight, or a scale that was given, is not finite.
    """
    group_size, num_columns, low, high = weights.group_size, weights.num_columns, integers.low, integers.high
    is_given, num_bits = into.are_scales_given, integers.num_bits
    width = right - left
    values = np.empty(width, np.float32)
    bits = values.view(np.int32)
    codes = np.empty(width, np.uint8)
    least, largest = np.empty(width, np.float32), np.empty(width, np.float32)
    for block in range(first, last):
        own = slice(block * num_columns + left, block * num_columns + right)
        scale, zero_point = into.scales[own], into.zero_points[own]
        if not _find_column_limits(weights, block, left, values, bits, least.view(np.int32), largest.view(np.int32)):
            return False
        for i in range(width):
            if is_given and (not np.isfinite(scale[i]) or scale[i] == _ZERO):
                return False
            if not is_given:
                scale[i], zero_point[i] = parameters(least[i], largest[i], integers)
        for row in range(block * group_size, (block + 1) * group_size):
            begin, end = row * num_columns + left, row * num_columns + right
            widen(weights.values[begin:end], weights.shift, weights.is_half, values, bits)
            for i in range(width):
                code = np.rint(values[i] / scale[i] + zero_point[i])
                code = low if code < low else code
                values[i] = high if code > high else code
            for i in range(width):
                codes[i] = np.uint8(np.int32(values[i]) + integers.offset)
            pack(codes, num_bits, into.packed[begin * num_bits // 8 : end * num_bits // 8])
    return True
