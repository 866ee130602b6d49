"""GPTQ's arithmetic: the second moments of a layer's inputs, their inverse's factor, and the loop over columns.

Columns become integers one after another, each one's error taken up by those behind it. The arithmetic of this loop is
that of NNCF 3.4 (``weight_compression/gptq.py``): IEEE 754 single precision in this order. Rows are independent, so
they may be computed in any pieces.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import blas, lapack

from llmcompress.system.compiling import compiled

PIECE_ROWS = 64
"""Rows that are worked on together: 128 columns of them fit the first level of a cache."""

_ZERO = np.float32(0)

JOINED_ROWS = 2048
"""Positions that are summed by one call of BLAS; shorter windows are joined."""
_TILE = 256


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
    """float32 ``[num_columns, num_rows]``, written: the errors to spread to the columns after the block."""


class Scales(NamedTuple):
    """The scales and zero points of the whole weight."""

    groups: np.ndarray
    """int64 ``[num_columns]``: the number of each column's group."""
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
            group = given.groups[block.column + i]
            own, zeros = scales[group, start : start + width], zero_points[group, start : start + width]
            for k in range(width):
                code = np.rint(held[i, k] / own[k] + zeros[k])
                code = code if code >= low else low  # Also NaN.
                code = high if code > high else code
                value = (code - zeros[k] + _ZERO) * own[k]  # No negative zero: NNCF's code is an integer.
                values[i, start + k] = value
                error[k] = (held[i, k] - value) / diagonal
                errors[i, start + k] = error[k]
            for j in range(i + 1, num_columns):
                share = factor[i, j]
                for k in range(width):
                    held[j, k] -= error[k] * share


def second_moments(inputs: Sequence[np.ndarray], factor: float) -> np.ndarray:
    """Sum ``factor * x * x^T`` over all positions of all inputs, half of the products of a full multiplication.

    Args:
        inputs: float32 ``[..., num_columns]``, one array a window.
        factor: What each product is multiplied by.

    Returns:
        float32 ``[num_columns, num_columns]``, symmetric.
    """
    num_columns = inputs[0].shape[-1]
    total = np.zeros((num_columns, num_columns), np.float32)
    for positions in _joined(inputs):
        # A lower triangle in Fortran's order, hence the upper one here.
        summed = blas.ssyrk(factor, positions.T, beta=1, c=total.T, lower=1, overwrite_c=1)
        total = summed.T
    for start in range(0, num_columns, _TILE):
        rows = slice(start, start + _TILE)
        corner = total[rows, rows]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        for left in range(start + _TILE, num_columns, _TILE):
            columns = slice(left, left + _TILE)
            total[columns, rows] = total[rows, columns].T
    return total


def _joined(inputs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    for window in inputs:
        waiting.append(np.ascontiguousarray(window, np.float32).reshape(-1, window.shape[-1]))
        if sum(map(len, waiting)) >= JOINED_ROWS:
            yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def inverse_factor(matrix: np.ndarray, diagonal: np.ndarray) -> np.ndarray | None:
    """The upper triangular U with ``U^T U = matrix^-1``, which GPTQ defines as a Cholesky factor of the inverse.

    With the order of rows and columns reversed, the matrix itself has a Cholesky factor of which U is the inverse. So
    one factorization and one triangular inverse do, of n^3 / 3 operations each and both in place: no inverse of an
    inverse, of 16/3 n^3.

    Args:
        matrix: float32 ``[n, n]``, symmetric.
        diagonal: float32 ``[n]``, taken instead of the matrix's own.

    Returns:
        float32 ``[n, n]``, a view, of which the part below the diagonal has no meaning; None where the matrix is not
        positive definite in single precision.
    """
    reverse = matrix.reshape(-1)[::-1].copy()
    reverse[:: len(matrix) + 1] = diagonal[::-1]
    triangle, num_failed = lapack.spotrf(reverse.reshape(matrix.shape).T, lower=0, clean=0, overwrite_a=1)
    if num_failed:
        return None
    inverse, num_failed = lapack.strtri(triangle, lower=0, overwrite_c=1)
    return None if num_failed else inverse.T.reshape(-1)[::-1].reshape(matrix.shape)
