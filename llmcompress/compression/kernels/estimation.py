"""What searches for scales compute of every weight, in passes over one group at a time.

The arithmetic is that of NNCF 3.4 (``scale_estimation.py`` and ``awq.py`` in its weight compression) on NumPy arrays
of single precision, each operation and each sum in its order: NumPy adds up a row in eight lanes, and halves what is
longer than 128 (``pairwise_sum`` in its ``loops_utils.h.src``). Products with activations are BLAS's, outside.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from llmcompress.compression.kernels.integers import (
    Codes,
    Integers,
    StoredWeights,
    find_limits,
    parameters,
    quantize_groups,
)
from llmcompress.system.compiling import compiled

_EPSILON = np.float32(np.finfo(np.float32).eps)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_ZERO_SCALE = np.float32(0.001)
"""What NNCF adds to a code of zero before it divides by it."""
_LANES = 8
_HALVED = 128

BLOCK_VALUES = 1 << 16
"""Weights of one block; a search keeps three arrays of this size."""
MIN_ROWS = 48
"""Of which blocks are multiples: as many as OpenBLAS takes together with AVX-512, so that blocks change no sum."""


class Groups(NamedTuple):
    """Groups of weights whose scales are searched for; what stays the same whatever is tried."""

    weights: np.ndarray
    """float32 ``[num_rows, num_groups, group_size]``."""
    importance: np.ndarray
    """float32, as ``weights``."""
    zero_points: np.ndarray
    """float32 ``[num_rows, num_groups]``; zeros for a symmetric format."""
    signs: np.ndarray
    """float32, as ``zero_points``: 1 or -1, of the scales."""


@compiled
def pairwise_sum(values: Any) -> Any:
    """The sum of a float32 array as NumPy computes it."""
    length = len(values)
    if length < _LANES:
        total = _ZERO
        for i in range(length):
            total += values[i]
        return total
    if length <= _HALVED:
        a, b, c, d = values[0], values[1], values[2], values[3]
        e, f, g, h = values[4], values[5], values[6], values[7]
        whole = length - length % _LANES
        for i in range(_LANES, whole, _LANES):
            a += values[i]
            b += values[i + 1]
            c += values[i + 2]
            d += values[i + 3]
            e += values[i + 4]
            f += values[i + 5]
            g += values[i + 6]
            h += values[i + 7]
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
        for i in range(whole, length):
            total += values[i]
        return total
    half = length // 2
    half -= half % _LANES
    return pairwise_sum(values[:half]) + pairwise_sum(values[half:])


@compiled
def weigh(codes: Any, zero_points: Any, magnitudes: Any, importance: Any) -> None:
    """Weigh the weights of each group by their activations; those whose code stands for zero do not count.

    Args:
        codes: uint8 or int8 ``[num_rows, num_groups, group_size]``.
        zero_points: float32 ``[num_rows, num_groups]``.
        magnitudes: float32 ``[num_groups, group_size]``: the largest of each channel.
        importance: float32 ``[num_rows, num_groups, group_size]``, written; adds up to 1 in each group.
    """
    for row in range(codes.shape[0]):
        for group in range(codes.shape[1]):
            zero_point, own = zero_points[row, group], importance[row, group]
            for i in range(codes.shape[2]):
                is_zero = np.float32(codes[row, group, i]) == zero_point
                own[i] = _ZERO if is_zero else magnitudes[group, i]
            total = pairwise_sum(own) + _EPSILON
            for i in range(codes.shape[2]):
                own[i] = own[i] / total


@compiled
def propose(groups: Any, integers: Any, scales: Any, factor: Any, candidates: Any, values: Any) -> None:
    """Find the scale that suits the codes which another scale gives, and what the weights become by it.

    Args:
        groups: ``Groups``.
        integers: ``Integers``.
        scales: float32 ``[num_rows, num_groups]``, by which the codes are made.
        factor: By which the scales are multiplied first, float32.
        candidates: float32, as ``scales``, written. Where one is 0, all that its codes stand for is 0.
        values: float32 ``[num_groups, num_rows, group_size]``, written: what the codes by the candidates stand for.
    """
    low, high = integers.low, integers.high
    size = groups.weights.shape[2]
    parts = np.empty(size, np.float32)
    for group in range(groups.weights.shape[1]):
        for row in range(groups.weights.shape[0]):
            own, weighed, found = groups.weights[row, group], groups.importance[row, group], values[group, row]
            scale, zero_point = factor * scales[row, group], groups.zero_points[row, group]
            for i in range(size):
                code = np.rint(own[i] / scale + zero_point)
                code = code if code >= low else low  # Also NaN.
                code = high if code > high else code
                target = abs(code - zero_point)
                parts[i] = abs(own[i]) / (target + (_ZERO_SCALE if target == _ZERO else _ZERO)) * weighed[i]
            candidate = pairwise_sum(parts) * groups.signs[row, group]
            candidates[row, group] = candidate
            for i in range(size):
                code = np.rint(own[i] / candidate + zero_point)
                code = code if code >= low else low
                code = high if code > high else code
                found[i] = (code - zero_point) * candidate


@compiled
def measure(wanted: Any, found: Any, weights: Any, values: Any, penalty: Any, errors: Any) -> None:
    """The mean squared error of what each group adds to a layer's output.

    Args:
        wanted: float32 ``[num_groups, num_rows, num_samples]``, by the weights.
        found: float32, as ``wanted``, by what their codes stand for.
        weights: float32 ``[num_rows, num_groups, group_size]``.
        values: float32 ``[num_groups, num_rows, group_size]``: what their codes stand for.
        penalty: Weight of the mean squared error of the weights themselves, float32; off where it is not positive.
        errors: float32 ``[num_rows, num_groups]``, written.
    """
    num_samples, size = np.float32(wanted.shape[2]), np.float32(weights.shape[2])
    squares, parts = np.empty(wanted.shape[2], np.float32), np.empty(weights.shape[2], np.float32)
    for group in range(wanted.shape[0]):
        for row in range(wanted.shape[1]):
            for i in range(len(squares)):
                difference = wanted[group, row, i] - found[group, row, i]
                squares[i] = difference * difference
            error = pairwise_sum(squares) / num_samples
            if penalty > _ZERO:
                for i in range(len(parts)):
                    difference = values[group, row, i] - weights[row, group, i]
                    parts[i] = difference * difference
                error += penalty * (pairwise_sum(parts) / size)
            errors[row, group] = error


@compiled
def choose(errors: Any, candidates: Any, least: Any, chosen: Any) -> None:
    """Take the candidates that are not worse; all float32 ``[num_rows, num_groups]``, the last two changed."""
    for row in range(errors.shape[0]):
        for group in range(errors.shape[1]):
            # As NNCF mixes them, so that NaN stays NaN.
            kept = _ONE if errors[row, group] > least[row, group] else _ZERO
            taken = _ONE - kept
            least[row, group] = kept * least[row, group] + taken * errors[row, group]
            chosen[row, group] = kept * chosen[row, group] + taken * candidates[row, group]


@compiled
def requantize_scaled(weights: Any, factors: Any, integers: Any, values: Any) -> bool:
    """What the codes of rows stand for whose columns are scaled first; each row has a scale of its own.

    Args:
        weights: float32 ``[num_rows, num_columns]``.
        factors: float32 ``[num_columns]``.
        integers: ``Integers``.
        values: float32, as ``weights``, written.

    Returns:
        False where a scaled weight is not finite.
    """
    low, high = integers.low, integers.high
    limits = np.empty(2, np.float32)
    for row in range(weights.shape[0]):
        own = values[row]
        for i in range(len(own)):
            own[i] = weights[row, i] * factors[i]
        if not find_limits(own.view(np.int32), limits.view(np.int32)):
            return False
        scale, zero_point = parameters(limits[0], limits[1], integers)
        for i in range(len(own)):
            code = np.rint(own[i] / scale + zero_point)
            code = low if code < low else code
            own[i] = ((high if code > high else code) - zero_point) * scale
    return True


class NotFiniteError(Exception):
    """A weight is not finite."""


class Quantized(NamedTuple):
    """A matrix in codes."""

    codes: np.ndarray
    """uint8 or int8 ``[num_rows, num_groups, group_size]``."""
    scales: np.ndarray
    """float32 ``[num_rows, num_groups, 1]``."""
    zero_points: np.ndarray
    """float32 ``[num_rows, num_groups, 1]``; zeros for a symmetric mode."""


def blocks(num_rows: int, num_groups: int, group_size: int) -> list[tuple[slice, slice]]:
    """Rows and groups of a matrix in pieces that stay in the cache."""
    at_once = max(1, min(num_groups, BLOCK_VALUES // (MIN_ROWS * group_size)))
    step = max(MIN_ROWS, BLOCK_VALUES // (at_once * group_size) // MIN_ROWS * MIN_ROWS)
    starts = list(range(0, num_rows, step))
    if len(starts) > 1 and num_rows - starts[-1] < MIN_ROWS:
        starts.pop()
    rows = [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_rows], strict=True)]
    groups = [slice(first, min(first + at_once, num_groups)) for first in range(0, num_groups, at_once)]
    return [(own, columns) for own in rows for columns in groups]


def quantized(matrix: np.ndarray, integers: Integers, group_size: int) -> tuple[np.ndarray, Quantized]:
    """Quantize a float32 matrix in groups along its rows by their own limits; also return what the codes stand for.

    Raises:
        NotFiniteError: A weight is not finite.
    """
    num_rows, num_columns = matrix.shape
    shape = (num_rows, num_columns // group_size, group_size)
    scales, zero_points = np.empty((*shape[:2], 1), np.float32), np.zeros((*shape[:2], 1), np.float32)
    codes = np.empty(matrix.size, np.uint8)
    stored = np.ascontiguousarray(matrix).reshape(-1).view(np.uint32)
    is_finite = quantize_groups(
        StoredWeights(stored, np.uint32(0), False, group_size),
        integers._replace(offset=np.int32(0), num_bits=8),
        Codes(False, scales.reshape(-1), zero_points.reshape(-1), codes),
        0,
        num_rows * shape[1],
    )
    if not is_finite:
        raise NotFiniteError
    found = (codes if integers.is_asymmetric else codes.view(np.int8)).reshape(shape)
    values = found.astype(np.float32)
    values -= zero_points
    values *= scales
    return values, Quantized(found, scales, zero_points)
