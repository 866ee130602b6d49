"""Quantization to integers, group by group, in blocks that stay in the cache: from stored floats to packed bytes.

The arithmetic is that of NNCF 3.4 (``nncf/openvino/optimized_functions/models.py``, and the NumPy path beside it for
symmetric modes): IEEE 754 single precision in this order, true division, rounding half to even. A group is what shares
a scale; groups lie one after another in memory. Compiled by Numba, without its licence to reorder or contract.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from llmcompress.system.cache import cache_dir
from llmcompress.system.patching import replaced

BLOCK_VALUES = 1 << 12
"""Values that are quantized before they are packed; with their floats they fit the first two levels of a cache."""

_EXPONENT = np.uint32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LEAST_FINITE = np.int32(0x80800000 - (1 << 32))
_LARGEST_FINITE = np.int32(0x7F7FFFFF)
_EPSILON = np.float32(np.finfo(np.float32).eps)
_ZERO = np.float32(0)
_LEAST_HALF = np.float32(2**-24)


def compiled(function: Any) -> Any:
    """Compile at the first call, in machine code that is kept for the next process.

    The division by zero of Numba's NumPy model is IEEE's; Python's would be checked for, value by value.
    """
    with replaced(numba.config, "CACHE_DIR", str(cache_dir() / "kernels")):
        try:
            return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError:  # The cache's folder cannot be written.
            return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def _widen(source: Any, shift: Any, is_half: bool, values: Any, bits: Any) -> None:
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
    """Store the bits of the least and the largest of a group; False where a value is no finite number."""
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


@compiled
def parameters(least: Any, largest: Any, low: Any, high: Any, is_asymmetric: bool) -> Any:
    """The scale and zero point of a group by its limits."""
    if is_asymmetric:
        least, largest = min(_ZERO, least), max(_ZERO, largest)
        scale = (largest - least) / high
        scale = _EPSILON if abs(scale) < _EPSILON else scale
        return scale, min(max(low - np.rint(least / scale), low), high)
    least = abs(least)
    scale = (least if least >= largest else -largest) / -low
    return (_EPSILON if abs(scale) < _EPSILON else scale), _ZERO


@compiled
def quantize_groups(
    source: Any,
    shift: Any,
    is_half: bool,
    group_size: int,
    first: int,
    last: int,
    low: Any,
    high: Any,
    is_asymmetric: bool,
    is_given: bool,
    offset: Any,
    num_bits: int,
    scales: Any,
    zero_points: Any,
    packed: Any,
) -> bool:
    """Quantize groups ``first`` to ``last``; ``first`` is a multiple of 8.

    Args:
        source: bf16 or f16 as uint16, or f32 as uint32, ``[num_groups * group_size]``.
        shift: Bits by which a bf16 is to be shifted to become an f32: 16, or 0 for f32. uint32.
        is_half: Whether ``source`` is f16.
        group_size: Values that share a scale.
        first: First group.
        last: Group before which to stop.
        low: Least code, float32.
        high: Largest code, float32.
        is_asymmetric: With a zero point.
        is_given: Whether scales and zero points are read instead of written.
        offset: What is added to a code before it is stored, int32.
        num_bits: 2, 3, 4 or 8.
        scales: float32 ``[num_groups]``.
        zero_points: float32 ``[num_groups]``; zeros for a symmetric mode.
        packed: uint8 ``[num_groups * group_size * num_bits / 8]``, written.

    Returns:
        False where a weight, or a scale that was given, is no finite number: what then comes out is not defined.
    """
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
        _widen(source[begin:end], shift, is_half, values, bits)
        for group in range(start, stop):
            place = (group - start) * group_size
            if not find_limits(bits[place : place + group_size], limit_bits):
                return False
            scale, zero_point = scales[group], zero_points[group]
            if not is_given:
                scale, zero_point = parameters(limits[0], limits[1], low, high, is_asymmetric)
                scales[group], zero_points[group] = scale, zero_point
            elif not np.isfinite(scale) or scale == _ZERO:
                return False
            for i in range(place, place + group_size):
                code = np.rint(values[i] / scale + zero_point)
                code = low if code < low else code
                values[i] = high if code > high else code
        # Apart, since a loop that ends in bytes is unrolled beyond the length of a small group.
        for i in range(end - begin):
            codes[i] = np.uint8(np.int32(values[i]) + offset)
        pack(codes[: end - begin], num_bits, packed[begin * num_bits // 8 : end * num_bits // 8])
    return True


@compiled
def quantize_columns(
    source: Any,
    shift: Any,
    is_half: bool,
    group_size: int,
    first: int,
    last: int,
    num_columns: int,
    left: int,
    right: int,
    low: Any,
    high: Any,
    is_asymmetric: bool,
    is_given: bool,
    offset: Any,
    num_bits: int,
    scales: Any,
    zero_points: Any,
    packed: Any,
) -> bool:
    """Quantize groups that stand upright: ``group_size`` rows, of which each column is a group.

    Args:
        source: As for ``quantize_groups``, ``[num_blocks * group_size * num_columns]``.
        shift: As for ``quantize_groups``.
        is_half: As for ``quantize_groups``.
        group_size: Rows of a block.
        first: First block.
        last: Block before which to stop.
        num_columns: Length of a row, a multiple of 8.
        left: First column, a multiple of 8.
        right: Column before which to stop, a multiple of 8.
        low: As for ``quantize_groups``, like all below.
        high: Largest code.
        is_asymmetric: With a zero point.
        is_given: Whether scales and zero points are read.
        offset: What is added to a code.
        num_bits: 2, 3, 4 or 8.
        scales: float32 ``[num_blocks * num_columns]``.
        zero_points: float32 ``[num_blocks * num_columns]``.
        packed: uint8, written.

    Returns:
        False where a weight, or a scale that was given, is no finite number.
    """
    width = right - left
    values = np.empty(width, np.float32)
    bits = values.view(np.int32)
    codes = np.empty(width, np.uint8)
    least, largest = np.empty(width, np.float32), np.empty(width, np.float32)
    least_key, largest_key = np.empty(width, np.int32), np.empty(width, np.int32)
    for block in range(first, last):
        own = slice(block * num_columns + left, block * num_columns + right)
        scale, zero_point = scales[own], zero_points[own]
        least_key[:], largest_key[:] = _MAGNITUDE, -_MAGNITUDE
        for row in range(block * group_size, (block + 1) * group_size):
            _widen(source[row * num_columns + left : row * num_columns + right], shift, is_half, values, bits)
            for i in range(width):
                key = bits[i] ^ ((bits[i] >> np.int32(31)) & _MAGNITUDE)
                least_key[i] = min(least_key[i], key)
                largest_key[i] = max(largest_key[i], key)
        for i in range(width):
            if least_key[i] < _LEAST_FINITE or largest_key[i] > _LARGEST_FINITE:
                return False
            if is_given and (not np.isfinite(scale[i]) or scale[i] == _ZERO):
                return False
            least.view(np.int32)[i] = least_key[i] ^ ((least_key[i] >> np.int32(31)) & _MAGNITUDE)
            largest.view(np.int32)[i] = largest_key[i] ^ ((largest_key[i] >> np.int32(31)) & _MAGNITUDE)
            if not is_given:
                scale[i], zero_point[i] = parameters(least[i], largest[i], low, high, is_asymmetric)
        for row in range(block * group_size, (block + 1) * group_size):
            begin, end = row * num_columns + left, row * num_columns + right
            _widen(source[begin:end], shift, is_half, values, bits)
            for i in range(width):
                code = np.rint(values[i] / scale[i] + zero_point[i])
                code = low if code < low else code
                values[i] = high if code > high else code
            for i in range(width):
                codes[i] = np.uint8(np.int32(values[i]) + offset)
            pack(codes, num_bits, packed[begin * num_bits // 8 : end * num_bits // 8])
    return True
