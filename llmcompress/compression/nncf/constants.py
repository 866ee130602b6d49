"""Constants of bf16 from single precision: the binding makes a Python list of every value on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
from nncf.quantization.algorithms.weight_compression import openvino_backend
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorBackend, TensorDataType
from openvino import opset13 as opset

from llmcompress.system.patching import replaced

_NAME = "create_ov_const_from_tensor"


@contextlib.contextmanager
def bf16_constants() -> Iterator[None]:
    """Have NNCF make its bf16 constants by us; where it has moved the name, nothing is changed."""
    stock = vars(openvino_backend).get(_NAME)
    if stock is None:
        yield
        return

    def constant(tensor: Tensor, dtype: ov.Type, name: str | None = None) -> Any:
        is_ours = tensor.backend == TensorBackend.numpy and tensor.dtype == TensorDataType.float32
        if not is_ours or dtype != ov.Type.bf16 or not np.isfinite(tensor.data).all():
            return stock(tensor, dtype, name)
        return opset.constant(_to_bf16(tensor.data), name=name, shared_memory=True)

    with replaced(openvino_backend, _NAME, constant):
        yield


def _to_bf16(values: np.ndarray) -> ov.Tensor:
    """As OpenVINO does it: half of the last place is added where that place is odd, and the rest is cut off."""
    stored = ov.Tensor(ov.Type.bf16, ov.Shape(values.shape))
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits & np.uint32(0x10000)
    rounded >>= np.uint32(1)
    rounded += bits
    np.right_shift(rounded, np.uint32(16), out=stored.data.view(np.uint16), casting="unsafe")
    return stored
