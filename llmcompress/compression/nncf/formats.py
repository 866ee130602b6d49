"""How the modes that our kernels cover are computed and stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.quantization.algorithms.weight_compression.constants import CENTER_OF_NF4_QUANTILES
from nncf.tensor import Tensor


class IntegerFormat(NamedTuple):
    """How an integer mode is computed and stored."""

    low: int
    high: int
    is_asymmetric: bool
    element: ov.Type
    offset: int = 0
    """Added to a code before it is stored."""

    @property
    def num_bits(self) -> int:
        """Of one code."""
        return int(self.element.get_bitwidth())


FORMATS = {
    Mode.INT8_ASYM: IntegerFormat(0, 255, True, ov.Type.u8),
    Mode.INT8_SYM: IntegerFormat(-128, 127, False, ov.Type.i8),
    Mode.INT4_ASYM: IntegerFormat(0, 15, True, ov.Type.u4),
    Mode.INT4_SYM: IntegerFormat(-8, 7, False, ov.Type.i4),
    Mode.INT3_SYM: IntegerFormat(-4, 3, False, ov.Type.u3, 4),
    Mode.INT2_SYM: IntegerFormat(-2, 1, False, ov.Type.u2, 2),
}


class FloatFormat(NamedTuple):
    """How a floating-point mode is computed and stored."""

    element: ov.Type
    largest: float
    """What the largest magnitude of a group becomes."""
    midpoints: np.ndarray = np.empty(0, np.float32)
    mantissa_bits: int = 0
    bias: int = 0
    largest_code: int = 0

    @property
    def num_bits(self) -> int:
        """Of one code."""
        return int(self.element.get_bitwidth())


# MXFP4 and MXFP8 take their scales by the plugin's logarithm, which is its own.
FLOAT_FORMATS = {
    Mode.NF4: FloatFormat(ov.Type.nf4, 1.0, np.asarray(CENTER_OF_NF4_QUANTILES, np.float32)),
    Mode.FP4: FloatFormat(ov.Type.f4e2m1, 6.0, mantissa_bits=1, bias=1, largest_code=0x7),
    Mode.FP8_E4M3: FloatFormat(ov.Type.f8e4m3, 448.0, mantissa_bits=3, bias=7, largest_code=0x7F),
}


class StoredCodes(Tensor):  # type: ignore[misc]
    """Codes with their offset added already, packed: NNCF adds it to what it gets."""

    def __add__(self, other: Any) -> Tensor:
        return Tensor(self.data)

    def as_numpy_tensor(self) -> Tensor:
        """The codes as numbers; OpenVINO converts no three bits."""
        packed = self.data.data.reshape(-1).view(np.uint8)
        if self.data.get_element_type() == ov.Type.u2:
            codes = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
        else:
            triples, shifts = packed.reshape(-1, 3, 1), np.array([6, 4, 2, 0], np.uint8)
            low = ((triples[:, :2] >> shifts) & 3).reshape(-1, 8)
            codes = low | (((triples[:, 2] >> np.arange(7, -1, -1, dtype=np.uint8)) & 1) << 2)
        offset = 1 << (self.data.get_element_type().get_bitwidth() - 1)
        return Tensor((codes.astype(np.int8) - np.int8(offset)).reshape(tuple(self.data.shape)))
