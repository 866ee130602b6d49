"""Matrices of single precision to integer codes and back, in arrays: for searches that try many scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmcompress.compression.kernels.integers import Codes, Integers, StoredWeights, quantize_groups

BLOCK_VALUES = 1 << 16
"""Weights of one block; a search keeps three arrays of this size."""
MIN_ROWS = 48
"""Of which blocks are multiples: as many as OpenBLAS takes together with AVX-512, so that blocks change no sum."""


class NotFiniteError(Exception):
    """A weight is no finite number."""


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
        NotFiniteError: A weight is no finite number.
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
