"""What GPTQ knows of a layer's inputs: their second moments, and the factor of the inverse that spreads its errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import blas, lapack

JOINED_ROWS = 2048
"""Positions that are summed by one call of BLAS; shorter windows are joined."""
_TILE = 256


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
