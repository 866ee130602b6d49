"""GPTQ's loop over blocks of columns: the errors of each are taken up by those behind it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from nncf.quantization.algorithms.weight_compression import gptq
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from scipy.linalg import blas

from llmcompress.compression.kernels.gptq import PIECE_ROWS, Block, Scales, quantize_with_feedback
from llmcompress.compression.kernels.integers import Integers
from llmcompress.compression.nncf.group_codes import FORMATS


class Feedback(NamedTuple):
    """How a weight is quantized."""

    algorithm: gptq.GPTQ
    """NNCF's, with its settings."""
    config: WeightCompressionConfig
    inputs: list[Tensor]
    """Of the layer; for scale estimation."""
    columns: np.ndarray | None = None
    """Numbers of the columns in the order in which they become integers; None: as they lie."""


def propagated(
    given: Feedback, weights: np.ndarray, factor: np.ndarray, pool: ThreadPoolExecutor, num_threads: int
) -> tuple[np.ndarray, list[Tensor], list[Tensor]]:
    """What the codes of a transposed weight stand for, and the scales and zero points of its groups.

    Blocks of columns go from first to last; what the errors of one add to all columns behind it is one product. As
    they lie, a group's limits are those of its columns as the blocks before have left them; in another order, in which
    a group is no neighbourhood, those of its columns as they were.

    Args:
        given: How.
        weights: float32 ``[num_columns, num_rows]``, changed.
        factor: float32 ``[num_columns, num_columns]``, as ``inverse_factor`` gives it, in that order.
        pool: Whose threads work.
        num_threads: How many these are.
    """
    num_columns, num_rows = weights.shape
    group_size = num_columns if given.config.group_size == -1 else given.config.group_size
    shape = (-(-num_columns // group_size), num_rows)
    groups = np.arange(num_columns) // group_size
    scales = Scales(groups, np.empty(shape, np.float32), np.zeros(shape, np.float32))
    found: tuple[list[Tensor], list[Tensor]] = ([], [])

    def set_limits(start: int, columns: np.ndarray) -> None:
        scale, zero_point = _parameters(given, Tensor(columns.T), start)
        scales.scales[start // group_size] = scale.data[:, 0]
        found[0].append(scale)
        if zero_point is not None:
            scales.zero_points[start // group_size] = zero_point.data[:, 0]
            found[1].append(zero_point)

    if given.columns is not None:
        for start in range(0, num_columns, group_size):
            set_limits(start, weights[start : start + group_size])
        weights, scales = weights[given.columns], scales._replace(groups=groups[given.columns])
    values, block_size = np.empty_like(weights), given.algorithm._block_size
    for first in range(0, num_columns, block_size):
        last = min(first + block_size, num_columns)
        if given.columns is None:
            for start in range(-(-first // group_size) * group_size, last, group_size):
                set_limits(start, weights[start - first : start - first + group_size])
        own = np.ascontiguousarray(factor[first:last, first:last])
        errors = np.empty((last - first, num_rows), np.float32)
        block = Block(weights[: last - first], own, first, values[first:last], errors)
        _quantize(block, scales, FORMATS[given.config.mode].codes, pool, num_threads)
        # Transposed, which is Fortran's order, and in place.
        spread, behind = np.ascontiguousarray(factor[first:last, last:]), weights[last - first :]
        if last < num_columns:
            weights = blas.sgemm(-1, errors.T, spread.T, beta=1, c=behind.T, trans_b=1, overwrite_c=1).T
    if given.columns is not None:
        in_order, values = values, np.empty_like(values)
        values[given.columns] = in_order
    return values, *found


def _quantize(block: Block, scales: Scales, integers: Integers, pool: ThreadPoolExecutor, num_threads: int) -> None:
    """Quantize a block of columns, rows shared out to threads."""
    num_rows = block.weights.shape[1]
    step = -(-num_rows // (num_threads * PIECE_ROWS)) * PIECE_ROWS

    def quantize(start: int) -> None:
        quantize_with_feedback(block, scales, integers, start, min(start + step, num_rows))

    list(pool.map(quantize, range(0, num_rows, step)))


def _parameters(given: Feedback, group: Tensor, start: int) -> Any:
    """The scales and zero points of a group of columns, of which ``start`` is the first, by NNCF's functions."""
    alone = WeightCompressionConfig(mode=given.config.mode)
    if not given.algorithm._scale_estimation or alone.num_bits > 4:
        return gptq.calculate_integer_quantization_params(group, (1,), alone)
    activations = [x[..., start : start + group.shape[1]] for x in given.inputs]
    statistics = given.algorithm.activations_to_wc_statistics(activations)
    return gptq.ScaleEstimation.calculate_quantization_params(statistics, group, (1,), alone)
