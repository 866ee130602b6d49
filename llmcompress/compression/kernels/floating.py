"""Quantization to small floating-point formats, group by group, from stored floats to packed bytes.

The arithmetic is that of NNCF 3.4 and OpenVINO: single precision, true division by the scale, then the nearest of the
format's values. Two formats' values lie apart by their own rules: NF4's between NNCF's midpoints (QLoRA,
arXiv:2305.14314), those of FP4 E2M1 and FP8 E4M3 (OCP) by rounding half to even.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from llmcompress.compression.kernels.integers import BLOCK_VALUES, find_limits, pack, widen
from llmcompress.system.compiling import compiled

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_EPSILON = np.float32(np.finfo(np.float32).eps)
_ONE = np.uint32(1)


class Floats(NamedTuple):
    """The codes of a floating-point format."""

    midpoints: np.ndarray
    """float32, rising, between the format's values; empty for a format of exponents and mantissas."""
    mantissa_bits: int
    """Of such a format."""
    bias: int
    """Of its exponents."""
    largest_code: np.uint32
    """Of its magnitudes."""
    largest: np.float32
    """What the largest magnitude of a group becomes."""
    num_bits: int
    """4 or 8."""


@compiled
def _nearest_level(values: Any, midpoints: Any, codes: Any) -> None:
    """The number of midpoints below each value; a value on a midpoint goes down."""
    for i in range(len(values)):
        codes[i] = np.uint8(0)
    for midpoint in midpoints:
        for i in range(len(values)):
            codes[i] += np.uint8(values[i] > midpoint)


@compiled
def _nearest_float(values: Any, bits: Any, floats: Any, codes: Any) -> None:
    """Sign, exponent and mantissa as they are stored, rounded half to even; ``bits`` is a view of ``values``.

    Below the least normal number the steps are equal, and a product with a power of two finds the nearest.
    """
    mantissa_bits, bias, num_bits = floats.mantissa_bits, floats.bias, floats.num_bits
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
        code = small if magnitude < least_normal else min(normal, floats.largest_code)
        codes[i] = np.uint8(code | ((bits[i] >> sign_shift) & sign_mask))


@compiled
def quantize_float_groups(weights: Any, floats: Any, into: Any, first: int, last: int) -> bool:
    """Quantize groups ``first`` to ``last``; ``first`` is a multiple of 8.

    Args:
        weights: ``StoredWeights`` of one column.
        floats: ``Floats``.
        into: ``Codes`` without zero points.
        first: First group.
        last: Group before which to stop.

    Returns:
        False where a weight, or a scale that was given, is not finite: the output is undefined then.
    """
    group_size, num_bits = weights.group_size, floats.num_bits
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
        widen(weights.values[begin:end], weights.shift, weights.is_half, values, bits)
        for group in range(start, stop):
            place = (group - start) * group_size
            if not find_limits(bits[place : place + group_size], limit_bits):
                return False
            scale = into.scales[group]
            if not into.are_scales_given:
                scale = max(abs(limits[0]), abs(limits[1]))
                scale = (_EPSILON if scale < _EPSILON else scale) / floats.largest
                into.scales[group] = scale
            elif not np.isfinite(scale) or scale == np.float32(0):
                return False
            own = values[place : place + group_size]
            # From 0 on, where an index is known not to be negative: only such a loop becomes vectors.
            for i in range(group_size):
                own[i] = own[i] / scale
        count = end - begin
        if len(floats.midpoints):
            _nearest_level(values[:count], floats.midpoints, codes)
        else:
            _nearest_float(values[:count], own_bits, floats, codes)
        pack(codes[:count], num_bits, into.packed[begin * num_bits // 8 : end * num_bits // 8])
    return True
