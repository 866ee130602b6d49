"""A whole weight by several threads, in pieces of its groups; and how its zero points are stored."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from llmcompress.compression.kernels.errors import weighted_squares
from llmcompress.compression.kernels.floating import Floats, quantize_float_groups
from llmcompress.compression.kernels.integers import (
    Codes,
    Integers,
    StoredWeights,
    pack,
    quantize_columns,
    quantize_groups,
)

CHUNK_VALUES = 1 << 20
"""What one thread takes at a time."""
MIN_COLUMNS = 512
"""Of a row, so that whole cache lines are read one after another."""


class GroupShape(NamedTuple):
    """A weight as groups: blocks of ``size`` rows and ``num_columns`` columns, of which each column is a group."""

    size: int
    num_columns: int
    """1 where a group lies in one piece."""
    shape: tuple[int, ...]
    """Of the weight with its groups apart, as NNCF stores it."""
    scale_shape: tuple[int, ...]


def quantize(weights: StoredWeights, codes: Integers | Floats, into: Codes, pool: ThreadPoolExecutor) -> bool:
    """Quantize all groups of a weight.

    Args:
        weights: Of one column where ``codes`` are floats.
        codes: The format.
        into: Written; of scales that are given only the codes.
        pool: Whose threads do it.

    Returns:
        False where a weight, or a scale that was given, is not finite: the output is undefined then.
    """

    def one(piece: tuple[int, int, tuple[int, int]]) -> bool:
        first, last, columns = piece
        if isinstance(codes, Floats):
            return bool(quantize_float_groups(weights, codes, into, first, last))
        if weights.num_columns == 1:
            return bool(quantize_groups(weights, codes, into, first, last))
        return bool(quantize_columns(weights, codes, into, first, last, *columns))

    return all(pool.map(one, _pieces(weights, len(into.scales))))


class Weighing(NamedTuple):
    """By what the errors of codes are summed."""

    scales: np.ndarray
    """float32 ``[num_groups]``, as they are stored."""
    factors: np.ndarray
    """float32, of each value's squared error."""


def squared_error(
    weights: StoredWeights, codes: Integers, made: Codes, weighing: Weighing, pool: ThreadPoolExecutor
) -> float:
    """The squared errors of a weight's codes, each times its factor, together.

    Args:
        weights: Of one column.
        codes: The format.
        made: By ``quantize``; of it only scales and zero points are read.
        weighing: Scales and factors.
        pool: Whose threads do it.
    """

    def one(piece: tuple[int, int, tuple[int, int]]) -> float:
        return float(weighted_squares(weights, codes, made, weighing, piece[:2]))

    return sum(pool.map(one, _pieces(weights, len(made.scales))))


def _pieces(weights: StoredWeights, num_groups: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Ranges of blocks and columns, each of about ``CHUNK_VALUES``, that begin and end with whole bytes."""
    size, num_columns = weights.group_size, weights.num_columns
    width = min(num_columns, max(MIN_COLUMNS, CHUNK_VALUES // size // 8 * 8))
    step = max(1, CHUNK_VALUES // (size * width))
    if num_columns == 1:
        step = -(-step // 8) * 8
    num_blocks = num_groups // num_columns
    for first in range(0, num_blocks, step):
        for left in range(0, num_columns, width):
            yield first, min(first + step, num_blocks), (left, min(left + width, num_columns))


def packed_zero_points(zero_points: np.ndarray, num_bits: int) -> np.ndarray:
    """Zero points as OpenVINO stores them, uint8: what does not fill the last byte is zero.

    Args:
        zero_points: float32 ``[num_groups]``.
        num_bits: 2, 3, 4 or 8.
    """
    padded = np.zeros(-(-zero_points.size // 8) * 8, np.uint8)
    padded[: zero_points.size] = zero_points
    packed = np.empty(padded.size * num_bits // 8, np.uint8)
    pack(padded, num_bits, packed)
    return packed[: -(-zero_points.size * num_bits // 8)]
