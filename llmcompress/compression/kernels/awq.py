"""The quantization inside NNCF's AWQ search, by our kernels: it is tried for every step of every group of channels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from nncf.quantization.algorithms.weight_compression import awq
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorBackend, TensorDataType

from llmcompress.compression.kernels.lowering import FORMATS, agrees, is_by_numpy
from llmcompress.compression.kernels.matrices import NotFiniteError, blocks, quantized
from llmcompress.patching import replaced

_NAME = "integer_quantize_dequantize_weight"


@contextlib.contextmanager
def awq_search(num_threads: int) -> Iterator[None]:
    """Have NNCF's AWQ quantize by our kernels; where it has moved the name, nothing is changed."""
    stock = vars(awq).get(_NAME)
    if stock is None:
        yield
        return

    def dequantized(weight: Tensor, config: WeightCompressionConfig, axis: Any, *args: Any, **kwargs: Any) -> Any:
        found = None if args or kwargs else _dequantized(weight, config, axis, pool)
        return stock(weight, config, axis, *args, **kwargs) if found is None else found

    with ThreadPoolExecutor(num_threads) as pool, replaced(awq, _NAME, dequantized):
        yield


def _dequantized(weight: Tensor, config: WeightCompressionConfig, axis: Any, pool: ThreadPoolExecutor) -> Tensor | None:
    """What the codes of a matrix's rows stand for; None where the kernels do not cover it."""
    if config.mode not in FORMATS or config.group_size != -1 or len(weight.shape) != 2 or axis not in (-1, 1):
        return None
    if weight.backend != TensorBackend.numpy or weight.dtype != TensorDataType.float32 or is_by_numpy(weight.size):
        return None
    if not agrees(config.mode, ov.Type.f32, -1):
        return None
    values = np.empty(tuple(weight.shape), np.float32)

    def fill(rows: slice) -> None:
        found, _ = quantized(weight.data[rows], config.mode, weight.shape[1])
        values[rows] = found.reshape(-1, weight.shape[1])

    try:
        list(pool.map(fill, blocks(*weight.shape)))
    except NotFiniteError:
        return None
    return Tensor(values)
