"""NNCF's scale estimation by blocks of weights, in parallel.

A group's scale depends on its own weights and on the layer's statistics alone. So blocks of rows and groups that stay
in the cache go to one thread each, where our kernels do what NNCF does in some ten arrays for every candidate. BLAS
sums the products with the activations, which decide between candidate scales, with one thread in blocks of whole
panels: as for NNCF alone with one BLAS thread, whatever the number of ours. With more, NNCF's own sums differ in their
last bits, so that where two candidates are all but equally good it may take the other one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.common.tensor_statistics.statistics import WCTensorStatistic
from nncf.quantization.algorithms.weight_compression import scale_estimation
from nncf.quantization.algorithms.weight_compression.activation_stats import process_stats
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorDataType
from threadpoolctl import ThreadpoolController

from llmcompress.compression.kernels.estimation import (
    Groups,
    NotFiniteError,
    blocks,
    choose,
    measure,
    propose,
    quantized,
    weigh,
)
from llmcompress.compression.nncf.group_codes import FORMATS, is_by_numpy
from llmcompress.compression.nncf.weight_codes import agrees
from llmcompress.system.patching import replaced

_NAME = "calculate_quantization_params"
_ARGUMENTS = (
    *("statistics", "weight", "reduction_axes", "config", "act_ch_axis"),
    *("subset_size", "initial_steps", "scale_steps", "weight_penalty"),
)
_STEP = 0.05
"""By which the grid's factors fall."""
_SAMPLE = (96, 256, 128)
"""Rows, columns and group size of the matrix by which an NNCF is checked."""


class _Settings(NamedTuple):
    mode: Mode
    group_size: int
    initial_steps: int
    scale_steps: int
    penalty: np.float32


class ScaleEstimation:
    """Takes over ``calculate_quantization_params`` for the time of a compression."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads)
        self._blas = ThreadpoolController()
        self._stock: Any = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Have NNCF call us; where it has moved the name, or computes otherwise, nothing is changed."""
        algorithm = scale_estimation.ScaleEstimation
        found = vars(algorithm).get(_NAME)
        if not isinstance(found, staticmethod) or tuple(inspect.signature(found).parameters) != _ARGUMENTS:
            yield
            return
        self._stock = found.__func__
        with self._pool, replaced(algorithm, _NAME, staticmethod(self.calculate_quantization_params)):
            yield

    def calculate_quantization_params(
        self,
        statistics: WCTensorStatistic,
        weight: Tensor,
        reduction_axes: tuple[int, ...],
        config: WeightCompressionConfig,
        act_ch_axis: int = -1,
        subset_size: int = 32,
        initial_steps: int = 5,
        scale_steps: int = 10,
        weight_penalty: float = -1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """NNCF's function of this name, with the same arguments and results."""
        if _is_covered(weight, reduction_axes, config) and _estimates_agree(self._stock, config.mode):
            magnitudes, means = process_stats(statistics, subset_size, act_ch_axis=act_ch_axis)
            group_size = weight.shape[1] if config.group_size == -1 else config.group_size
            settings = _Settings(config.mode, group_size, initial_steps, scale_steps, np.float32(weight_penalty))
            values = weight.as_numpy_tensor().astype(TensorDataType.float32).data
            with contextlib.suppress(NotFiniteError), self._blas.limit(limits=1, user_api="blas"):
                scales, zero_points = _estimated(values, magnitudes.data, means.data, settings, self._pool)
                if config.group_size == -1:
                    scales, zero_points = scales[:, 0], zero_points[:, 0]
                return Tensor(scales), Tensor(zero_points) if config.is_asym_mode else None
        steps = (initial_steps, scale_steps, weight_penalty)
        found: tuple[Tensor, Tensor | None] = self._stock(
            statistics, weight, reduction_axes, config, act_ch_axis, subset_size, *steps
        )
        return found


def _is_covered(weight: Tensor, reduction_axes: tuple[int, ...], config: WeightCompressionConfig) -> bool:
    """A matrix of integers to be, large enough for NNCF's compiled arithmetic, with groups along its rows."""
    if config.mode not in FORMATS or len(weight.shape) != 2 or tuple(reduction_axes) != (1,):
        return False
    group_size = weight.shape[1] if config.group_size == -1 else config.group_size
    if weight.shape[1] % group_size or is_by_numpy(weight.size):
        return False
    return agrees(config.mode, ov.Type.f32, config.group_size)


@functools.cache
def _estimates_agree(stock: Any, mode: Mode) -> bool:
    """Whether an NNCF finds the scales and zero points that we find, on a sample."""
    num_rows, num_columns, group_size = _SAMPLE
    weight = np.sin(np.arange(num_rows * num_columns, dtype=np.float32) ** 2).reshape(num_rows, num_columns)
    weight[5, ::3] = 0
    means = np.cos(np.arange(9 * num_columns, dtype=np.float32) ** 2).reshape(9, num_columns)
    statistics = WCTensorStatistic([Tensor(mean) for mean in means], [(1, 1, num_columns)] * len(means))
    steps = (2, 3, 0.5)
    magnitudes, samples = process_stats(statistics, 8)
    settings = _Settings(mode, group_size, *steps[:2], np.float32(steps[2]))
    config = WeightCompressionConfig(mode, group_size)
    with ThreadpoolController().limit(limits=1, user_api="blas"), ThreadPoolExecutor(1) as pool:
        ours = _estimated(weight, magnitudes.data, samples.data, settings, pool)
        scales, zero_points = stock(statistics, Tensor(weight), (1,), config, -1, 8, *steps)
    same = np.array_equal(ours[0], scales.data)
    return same and (zero_points is None or np.array_equal(ours[1], zero_points.data))


def _estimated(
    values: np.ndarray, magnitudes: np.ndarray, means: np.ndarray, settings: _Settings, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """The scales and zero points of a matrix.

    Args:
        values: float32 ``[num_rows, num_columns]``.
        magnitudes: ``[num_columns]``: the largest activation of each channel.
        means: ``[num_columns, num_samples]``: mean activations.
        settings: How to search.
        pool: Whose threads do it.

    Returns:
        float32 ``[num_rows, num_groups, 1]`` each; zero points of a symmetric mode are zeros.

    Raises:
        NotFiniteError: A weight is not finite.
    """
    num_rows, size = len(values), settings.group_size
    num_groups = values.shape[1] // size
    groups = values.reshape(num_rows, num_groups, size)
    magnitudes = magnitudes.astype(np.float32).reshape(num_groups, size)
    samples = np.ascontiguousarray(means, np.float32).reshape(num_groups, size, -1)
    scales = np.empty((num_rows, num_groups, 1), np.float32)
    zero_points = np.empty_like(scales)

    def fill(piece: tuple[slice, slice]) -> None:
        rows, columns = piece
        scales[piece], zero_points[piece] = _of_block(
            np.ascontiguousarray(groups[rows, columns]), magnitudes[columns], samples[columns], settings
        )

    list(pool.map(fill, blocks(num_rows, num_groups, size)))
    return scales, zero_points


def _of_block(
    weights: np.ndarray, magnitudes: np.ndarray, samples: np.ndarray, settings: _Settings
) -> tuple[np.ndarray, np.ndarray]:
    """The scales and zero points of some groups of some rows, ``[num_rows, num_groups, group_size]``."""
    integers = FORMATS[settings.mode].codes
    values, initial = quantized(weights.reshape(len(weights), -1), integers, settings.group_size)
    scales, zero_points = initial.scales[..., 0], initial.zero_points[..., 0]
    groups = Groups(weights, np.empty_like(weights), zero_points, scales / np.abs(scales))
    weigh(initial.codes, zero_points, magnitudes, groups.importance)
    values = np.ascontiguousarray(values.swapaxes(0, 1))
    wanted = np.matmul(weights.swapaxes(0, 1), samples)
    found = np.matmul(values, samples)
    chosen, candidates = scales.copy(), np.empty_like(scales)
    least, errors = np.empty_like(scales), np.empty_like(scales)
    measure(wanted, found, weights, values, settings.penalty, least)

    def attempt(tried: np.ndarray, factor: float) -> None:
        propose(groups, integers, tried, np.float32(factor), candidates, values)
        np.matmul(values, samples, out=found)
        measure(wanted, found, weights, values, settings.penalty, errors)
        choose(errors, candidates, least, chosen)

    for _ in range(settings.initial_steps):
        attempt(chosen, 1.0)
    for step in range(settings.scale_steps):
        attempt(scales, 1.0 - _STEP * step)
    return chosen[..., None], initial.zero_points
