"""Columns to integers one after another, each one's error taken up by those behind it: the inner loop of GPTQ.

The arithmetic is that of NNCF 3.4 (``weight_compression/gptq.py``) for one column after another: IEEE 754 single
precision in this order. Rows are independent, so they may be computed in any pieces.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from llmcompress.compression.kernels.integers import compiled

PIECE_ROWS = 64
"""Rows that are worked on together: 128 columns of them fit the first level of a cache."""

_ZERO = np.float32(0)


class Block(NamedTuple):
    """Neighbouring columns of a transposed weight, and what becomes of them."""

    weights: np.ndarray
    """float32 ``[num_columns, num_rows]``, read only."""
    factor: np.ndarray
    """float32 ``[num_columns, num_columns]``, the block's part of the inverse Hessian's upper factor."""
    column: int
    """Number of the block's first column in the whole weight."""
    values: np.ndarray
    """float32 ``[num_columns, num_rows]``, written: what the codes stand for."""
    errors: np.ndarray
    """float32 ``[num_columns, num_rows]``, written: what is to be spread to the columns behind the block."""


class Scales(NamedTuple):
    """The scales and zero points of the whole weight."""

    group_size: int
    """Columns that share a scale."""
    scales: np.ndarray
    """float32 ``[num_groups, num_rows]``."""
    zero_points: np.ndarray
    """float32 ``[num_groups, num_rows]``; zeros for a symmetric format."""


@compiled
def quantize_with_feedback(block: Any, given: Any, integers: Any, first: int, last: int) -> None:
    """Quantize a block of columns in rows ``first`` to ``last``.

    Args:
        block: ``Block``.
        given: ``Scales``.
        integers: ``Integers``.
        first: First row.
        last: Row before which to stop.
    """
    weights, factor, values, errors = block.weights, block.factor, block.values, block.errors
    scales, zero_points, low, high = given.scales, given.zero_points, integers.low, integers.high
    num_columns = weights.shape[0]
    held = np.empty((num_columns, PIECE_ROWS), np.float32)
    error = np.empty(PIECE_ROWS, np.float32)
    for start in range(first, last, PIECE_ROWS):
        width = min(PIECE_ROWS, last - start)
        for i in range(num_columns):
            for k in range(width):
                held[i, k] = weights[i, start + k]
        for i in range(num_columns):
            diagonal = factor[i, i]
            group = (block.column + i) // given.group_size
            own, zeros = scales[group, start : start + width], zero_points[group, start : start + width]
            for k in range(width):
                code = np.rint(held[i, k] / own[k] + zeros[k])
                code = code if code >= low else low  # Also what is no number.
                code = high if code > high else code
                value = (code - zeros[k] + _ZERO) * own[k]  # No negative zero: NNCF's code is an integer.
                values[i, start + k] = value
                error[k] = (held[i, k] - value) / diagonal
                errors[i, start + k] = error[k]
            for j in range(i + 1, num_columns):
                share = factor[i, j]
                for k in range(width):
                    held[j, k] -= error[k] * share
