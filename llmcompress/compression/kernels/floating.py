"""Quantization to small floating-point formats, group by group, from stored floats to packed bytes.

The arithmetic is that of NNCF 3.4 and OpenVINO: single precision, true division by the scale, then the nearest of the
format's values. Two formats' values lie apart by their own rules: NF4's between NNCF's midpoints (QLoRA,
arXiv:2305.14314), those of FP4 E2M1 and FP8 E4M3 (OCP) by rounding half to even.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmcompress.compression.kernels.integers import BLOCK_VALUES, _widen, compiled, find_limits, pack

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_EPSILON = np.float32(np.finfo(np.float32).eps)
_ONE = np.uint32(1)


@compiled
def _nearest_level(values: Any, midpoints: Any, codes: Any) -> None:
    """The number of midpoints below each value; a value on a midpoint goes down."""
    for i in range(len(values)):
        codes[i] = np.uint8(0)
    for midpoint in midpoints:
        for i in range(len(values)):
            codes[i] += np.uint8(values[i] > midpoint)


@compiled
def _nearest_float(
    values: Any, bits: Any, mantissa_bits: int, bias: int, largest_code: Any, num_bits: int, codes: Any
) -> None:
    """Sign, exponent and mantissa as they are stored, rounded half to even; ``bits`` is a view of ``values``.

    Below the least normal number the steps are equal, and a product with a power of two finds the nearest.
    """
    drop = np.uint32(23 - mantissa_bits)
    half = (_ONE << (drop - _ONE)) - _ONE
    shift = np.uint32((127 - bias) << mantissa_bits)
    least_normal = np.uint32((127 - bias + 1) << 23)
    steps = np.float32(2.0 ** (mantissa_bits + bias - 1))
    sign_shift, sign_mask = np.uint32(32 - num_bits), np.uint32(1 << (num_bits - 1))
    if num_bits == 8:
        # OpenVINO goes by way of f16, which rounds once more.
        for i in range(len(values)):
            bits[i] = (bits[i] + np.uint32(0xFFF) + ((bits[i] >> np.uint32(13)) & _ONE)) & np.uint32(0xFFFFE000)
    for i in range(len(values)):
        magnitude = bits[i] & _MAGNITUDE
        normal = ((magnitude + half + ((magnitude >> drop) & _ONE)) >> drop) - shift
        small = np.uint32(np.int32(np.rint(abs(values[i]) * steps))) if magnitude < least_normal else np.uint32(0)
        code = small if magnitude < least_normal else min(normal, largest_code)
        codes[i] = np.uint8(code | ((bits[i] >> sign_shift) & sign_mask))


@compiled
def quantize_float_groups(
    source: Any,
    shift: Any,
    is_half: bool,
    group_size: int,
    first: int,
    last: int,
    midpoints: Any,
    mantissa_bits: int,
    bias: int,
    largest_code: Any,
    largest: Any,
    is_given: bool,
    num_bits: int,
    scales: Any,
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
        midpoints: float32, rising, between the format's values; empty for a format of exponents and mantissas.
        mantissa_bits: Of such a format.
        bias: Of its exponents.
        largest_code: Of its magnitudes, uint32.
        largest: What the largest magnitude of a group becomes, float32.
        is_given: Whether scales are read instead of written.
        num_bits: 4 or 8.
        scales: float32 ``[num_groups]``.
        packed: uint8 ``[num_groups * group_size * num_bits / 8]``, written.

    Returns:
        False where a weight, or a scale that was given, is no finite number: what then comes out is not defined.
    """
    unit = 8 // math.gcd(8, group_size)
    span = unit * max(1, BLOCK_VALUES // (unit * group_size))
    values = np.empty(span * group_size, np.float32)
    bits, own_bits = values.view(np.int32), values.view(np.uint32)
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
            scale = scales[group]
            if not is_given:
                scale = max(abs(limits[0]), abs(limits[1]))
                scale = (_EPSILON if scale < _EPSILON else scale) / largest
                scales[group] = scale
            elif not np.isfinite(scale) or scale == np.float32(0):
                return False
            for i in range(place, place + group_size):
                values[i] = values[i] / scale
        count = end - begin
        if len(midpoints):
            _nearest_level(values[:count], midpoints, codes)
        else:
            _nearest_float(values[:count], own_bits, mantissa_bits, bias, largest_code, num_bits, codes)
        pack(codes[:count], num_bits, packed[begin * num_bits // 8 : end * num_bits // 8])
    return True
