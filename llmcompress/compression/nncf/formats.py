"""How the modes that our kernels cover are computed and stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.quantization.algorithms.weight_compression.constants import CENTER_OF_NF4_QUANTILES
from nncf.tensor import Tensor

from llmcompress.compression.kernels.floating import Floats
from llmcompress.compression.kernels.integers import Integers


class IntegerFormat(NamedTuple):
    """How an integer mode is computed and stored."""

    element: ov.Type
    codes: Integers


def _integers(element: ov.Type, low: int, high: int, *, is_asymmetric: bool = False, offset: int = 0) -> IntegerFormat:
    num_bits = int(element.get_bitwidth())
    codes = Integers(np.float32(low), np.float32(high), is_asymmetric, np.int32(offset), num_bits)
    return IntegerFormat(element, codes)


FORMATS = {
    Mode.INT8_ASYM: _integers(ov.Type.u8, 0, 255, is_asymmetric=True),
    Mode.INT8_SYM: _integers(ov.Type.i8, -128, 127),
    Mode.INT4_ASYM: _integers(ov.Type.u4, 0, 15, is_asymmetric=True),
    Mode.INT4_SYM: _integers(ov.Type.i4, -8, 7),
    Mode.INT3_SYM: _integers(ov.Type.u3, -4, 3, offset=4),
    Mode.INT2_SYM: _integers(ov.Type.u2, -2, 1, offset=2),
}


class FloatFormat(NamedTuple):
    """How a floating-point mode is computed and stored."""

    element: ov.Type
    codes: Floats


_MIDPOINTS = np.asarray(CENTER_OF_NF4_QUANTILES, np.float32)
_NONE = np.empty(0, np.float32)
# MXFP4 and MXFP8 take their scales by the plugin's logarithm, which is its own.
FLOAT_FORMATS = {
    Mode.NF4: FloatFormat(ov.Type.nf4, Floats(_MIDPOINTS, 0, 0, np.uint32(0), np.float32(1), 4)),
    Mode.FP4: FloatFormat(ov.Type.f4e2m1, Floats(_NONE, 1, 1, np.uint32(0x7), np.float32(6), 4)),
    Mode.FP8_E4M3: FloatFormat(ov.Type.f8e4m3, Floats(_NONE, 3, 7, np.uint32(0x7F), np.float32(448), 8)),
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
