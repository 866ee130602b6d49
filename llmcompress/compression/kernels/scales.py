"""NNCF's scale estimation by blocks of rows, in parallel.

Each output channel's scales depend on its own weights and on the layer's statistics alone. So NNCF's own function is
called for blocks of rows that stay in the cache, one for each thread, and only its quantization is taken over by our
kernels. BLAS sums the products with the activations, which decide between candidate scales, with one thread in blocks
of whole panels: as for NNCF alone with one BLAS thread, whatever the number of ours. With more, NNCF's own sums differ
in their last bits, so that where two candidates are all but equally good it may take the other one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from nncf.quantization.algorithms.weight_compression import scale_estimation
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorDataType
from threadpoolctl import ThreadpoolController

from llmcompress.compression.kernels.lowering import FORMATS, agrees, is_by_numpy
from llmcompress.compression.kernels.matrices import NotFiniteError, blocks, quantized, requantized
from llmcompress.patching import replaced

_TAKEN_OVER = ("process_stats", "do_integer_quantization", "integer_quantize_dequantize_weight")


class ScaleEstimation:
    """Takes over ``calculate_quantization_params`` for the time of a compression."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, initializer=self._start_thread)
        self._thread = threading.local()
        self._blas = ThreadpoolController()
        self._statistics: tuple[Tensor, Tensor] | None = None
        self._stock: dict[str, Any] = {}

    def _start_thread(self) -> None:
        self._thread.is_ours = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Have NNCF call us; where it has moved the names, nothing is changed."""
        algorithm = scale_estimation.ScaleEstimation
        found = vars(algorithm).get("calculate_quantization_params")
        if found is None or any(name not in vars(scale_estimation) for name in _TAKEN_OVER):
            yield
            return
        self._stock = {name: vars(scale_estimation)[name] for name in _TAKEN_OVER}
        self._stock[found.__name__] = found.__func__
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._pool)
            stack.enter_context(replaced(algorithm, found.__name__, staticmethod(self.calculate_quantization_params)))
            for name in _TAKEN_OVER:
                stack.enter_context(replaced(scale_estimation, name, self._dispatched(name)))
            yield

    def _dispatched(self, name: str) -> Any:
        """Ours in our threads, NNCF's everywhere else."""
        ours, stock = getattr(self, f"_{name}"), self._stock[name]
        return lambda *args, **kwargs: (ours if hasattr(self._thread, "is_ours") else stock)(*args, **kwargs)

    def calculate_quantization_params(
        self,
        statistics: Any,
        weight: Tensor,
        reduction_axes: tuple[int, ...],
        config: WeightCompressionConfig,
        act_ch_axis: int = -1,
        subset_size: int = 32,
        *steps: Any,
        **named_steps: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """NNCF's function of this name, with the same arguments and results."""
        stock = self._stock["calculate_quantization_params"]
        settings = (reduction_axes, config, act_ch_axis, subset_size, *steps)
        found: tuple[Tensor, Tensor | None] | None = None
        if _is_covered(weight, reduction_axes, config):
            self._statistics = self._stock["process_stats"](statistics, subset_size, act_ch_axis=act_ch_axis)
            values = weight.as_numpy_tensor().astype(TensorDataType.float32).data
            found = self._by_blocks(values, lambda rows: stock(statistics, Tensor(rows), *settings, **named_steps))
        return found or stock(statistics, weight, *settings, **named_steps)

    def _by_blocks(
        self, values: np.ndarray, estimated: Callable[[np.ndarray], tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None] | None:
        """None where a weight is no finite number."""
        parts = [values[rows] for rows in blocks(*values.shape)]
        try:
            with self._blas.limit(limits=1, user_api="blas"):
                found = list(self._pool.map(estimated, parts))
        except NotFiniteError:
            return None
        scales = np.concatenate([scale.data for scale, _ in found])
        zero_points = [zero_point.data for _, zero_point in found if zero_point is not None]
        return Tensor(scales), Tensor(np.concatenate(zero_points)) if zero_points else None

    def _process_stats(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Of the layer, computed once."""
        assert self._statistics is not None
        return self._statistics

    def _do_integer_quantization(
        self,
        weight: Tensor,
        config: WeightCompressionConfig,
        *,
        precomputed_scale: Tensor,
        precomputed_zero_point: Tensor | None,
    ) -> CompressedWeight:
        codes, _ = _requantized(weight, config, precomputed_scale, precomputed_zero_point, is_dequantized=False)
        return CompressedWeight(codes, precomputed_scale, precomputed_zero_point)

    def _integer_quantize_dequantize_weight(
        self,
        weight: Tensor,
        config: WeightCompressionConfig,
        reduction_axis: int | None = None,
        *,
        precomputed_scale: Tensor | None = None,
        precomputed_zero_point: Tensor | None = None,
        return_compressed_weight: bool = False,
    ) -> Any:
        if precomputed_scale is None:
            return _quantized(weight, config)
        return _requantized(weight, config, precomputed_scale, precomputed_zero_point, is_dequantized=True)[1]


def _is_covered(weight: Tensor, reduction_axes: tuple[int, ...], config: WeightCompressionConfig) -> bool:
    """A matrix of integers to be, large enough for NNCF's compiled arithmetic, with groups along its rows."""
    if config.mode not in FORMATS or len(weight.shape) != 2 or tuple(reduction_axes) != (1,):
        return False
    group_size = weight.shape[1] if config.group_size == -1 else config.group_size
    if weight.shape[1] % group_size or is_by_numpy(weight.size):
        return False
    return agrees(config.mode, ov.Type.f32, config.group_size)


def _quantized(weight: Tensor, config: WeightCompressionConfig) -> tuple[Tensor, CompressedWeight]:
    """What the codes of a matrix stand for, and the codes, in groups, by scales of their own."""
    values, compressed = quantized(weight.data, config.mode, config.group_size)
    zero_point = Tensor(compressed.zero_points.astype(np.int32)) if config.is_asym_mode else None
    return Tensor(values), CompressedWeight(Tensor(compressed.codes), Tensor(compressed.scales), zero_point)


def _requantized(
    weight: Tensor, config: WeightCompressionConfig, scale: Tensor, zero_point: Tensor | None, *, is_dequantized: bool
) -> tuple[Tensor, Tensor]:
    """The codes of a weight in groups, and what they stand for, by scales that are given."""
    scales = np.ascontiguousarray(scale.data, np.float32)
    zero_points = np.zeros_like(scales) if zero_point is None else zero_point.data.astype(np.float32)
    codes, values = requantized(weight.data, config.mode, scales, zero_points, is_dequantized=is_dequantized)
    return Tensor(codes), Tensor(values)
