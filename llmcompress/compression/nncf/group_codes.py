"""How the modes that our kernels cover are stored; and the weight of one layer in them: codes, scales, zero points."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.constants import CENTER_OF_NF4_QUANTILES
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorBackend

from llmcompress.compression.kernels.floating import Floats
from llmcompress.compression.kernels.groups import GroupShape, packed_zero_points, quantize
from llmcompress.compression.kernels.integers import Codes, Integers, StoredWeights
from llmcompress.graph.integer_weights import unpacked
from llmcompress.system.file_memory import FileMemory

_MIDPOINTS = np.asarray(CENTER_OF_NF4_QUANTILES, np.float32)
_NONE = np.empty(0, np.float32)
_LEAST_SIZE = 10_000
"""Of fewer values NNCF computes 4 and 8 bits by NumPy, whose asymmetric arithmetic is another."""
_SHIFTS = {ov.Type.bf16: 16, ov.Type.f16: 0, ov.Type.f32: 0}


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
        shape, num_bits = tuple(self.data.shape), self.data.get_element_type().get_bitwidth()
        codes = unpacked(self.data.data.reshape(-1).view(np.uint8), num_bits, math.prod(shape))
        return Tensor((codes.astype(np.int8) - np.int8(1 << (num_bits - 1))).reshape(shape))


def group_shape(
    weight: Tensor, reduction_axes: int | tuple[int, ...], config: WeightCompressionConfig
) -> GroupShape | None:
    """How a weight is grouped; None where the kernels do not cover it."""
    is_float = config.mode in FLOAT_FORMATS
    if not (is_float or config.mode in FORMATS) or weight.backend != TensorBackend.ov or reduction_axes is None:
        return None
    shape = tuple(weight.shape)
    if weight.data.get_element_type() not in _SHIFTS:
        return None
    # The last byte of what does not fill it is not ours to guess. Two and three bits are always computed by NumPy.
    is_always_by_numpy = not is_float and FORMATS[config.mode].codes.offset != 0
    if (is_by_numpy(weight.size) and not is_always_by_numpy) or weight.size == 0 or weight.size % 8:
        return None
    given = (reduction_axes,) if isinstance(reduction_axes, int) else reduction_axes
    axes = sorted(given)
    if not axes or axes[0] < 0 or axes != list(range(axes[0], axes[-1] + 1)):
        return None
    before, length, after = shape[: axes[0]], math.prod(shape[axis] for axis in axes), shape[axes[-1] + 1 :]
    num_columns = math.prod(after)
    if num_columns != 1 and (is_float or num_columns % 8):
        return None
    if config.group_size == -1:
        return GroupShape(length, num_columns, shape, (*before, *(1 for _ in axes), *after))
    if len(axes) > 1 or length % config.group_size:
        return None
    num_groups, size = length // config.group_size, config.group_size
    return GroupShape(size, num_columns, (*before, num_groups, size, *after), (*before, num_groups, 1, *after))


def is_by_numpy(size: int) -> bool:
    """Whether NNCF computes a weight of this size by NumPy, where it has a choice."""
    return size < _LEAST_SIZE or "NNCF_DISABLE_OPTIMIZED_COMPRESSION" in os.environ


class Work(NamedTuple):
    """A weight to be compressed, and what with."""

    weight: Tensor
    groups: GroupShape
    config: WeightCompressionConfig
    precomputed: CompressedWeight | None
    pool: ThreadPoolExecutor
    file_memory: FileMemory | None = None

    @property
    def num_groups(self) -> int:
        """How many scales there are."""
        return int(self.weight.size) // self.groups.size


def compressed(work: Work) -> CompressedWeight | None:
    """The codes and scales; None where a value is not finite, or scales are given in another form."""
    return _to_integers(work) if work.config.mode in FORMATS else _to_floats(work)


def _to_integers(work: Work) -> CompressedWeight | None:
    groups, form = work.groups, FORMATS[work.config.mode]
    scales, zero_points = np.empty(work.num_groups, np.float32), np.zeros(work.num_groups, np.float32)
    given = work.precomputed if work.precomputed is not None and work.precomputed.scale is not None else None
    if given is not None:
        of_numpy = all(part is None or part.backend == TensorBackend.numpy for part in (given.scale, given.zero_point))
        if not of_numpy or tuple(given.scale.shape) != groups.scale_shape:
            return None
        if (given.zero_point is None) == form.codes.is_asymmetric:
            return None
        scales[:] = given.scale.data.reshape(-1)
        if form.codes.is_asymmetric:
            zero_points[:] = given.zero_point.data.reshape(-1)
    stored = _new_tensor(form.element, work)
    weights = _stored_weights(work)
    into = Codes(given is not None, scales, zero_points, stored.data.reshape(-1).view(np.uint8))

    if not quantize(weights, form.codes, into, work.pool):
        return None
    tensor = (StoredCodes if form.codes.offset else Tensor)(stored)
    if given is not None:
        return CompressedWeight(tensor, given.scale, zero_point=given.zero_point)
    zero_point = _stored_zero_points(zero_points, groups, form) if form.codes.is_asymmetric else None
    return CompressedWeight(tensor, Tensor(scales.reshape(groups.scale_shape)), zero_point=zero_point)


def _to_floats(work: Work) -> CompressedWeight | None:
    form, scale_shape = FLOAT_FORMATS[work.config.mode], work.groups.scale_shape
    given = work.precomputed.scale if work.precomputed is not None else None
    scales = np.empty(work.num_groups, np.float32)
    if given is not None:
        if given.backend != TensorBackend.numpy or tuple(given.shape) != scale_shape:
            return None
        scales[:] = given.data.reshape(-1)
    stored = _new_tensor(form.element, work)
    weights = _stored_weights(work)
    into = Codes(given is not None, scales, np.empty(0, np.float32), stored.data.reshape(-1).view(np.uint8))

    if not quantize(weights, form.codes, into, work.pool):
        return None
    return CompressedWeight(Tensor(stored), given if given is not None else Tensor(scales.reshape(scale_shape)))


def _stored_weights(work: Work) -> StoredWeights:
    element = work.weight.data.get_element_type()
    values = work.weight.data.data.reshape(-1).view(np.uint32 if element == ov.Type.f32 else np.uint16)
    is_half, groups = element == ov.Type.f16, work.groups
    return StoredWeights(values, np.uint32(_SHIFTS[element]), is_half, groups.size, groups.num_columns)


def _new_tensor(element: ov.Type, work: Work) -> ov.Tensor:
    """Eight values always fill whole bytes."""
    shape, memory = ov.Shape(work.groups.shape), work.file_memory
    block = memory.block(math.prod(shape) // 8 * element.get_bitwidth()) if memory else None
    return ov.Tensor(element, shape) if block is None else ov.Tensor(block, shape, element)


def _stored_zero_points(zero_points: np.ndarray, groups: GroupShape, form: IntegerFormat) -> Tensor:
    stored = ov.Tensor(form.element, ov.Shape(groups.scale_shape))
    stored.data.reshape(-1)[:] = packed_zero_points(zero_points, form.codes.num_bits)
    return Tensor(stored)
