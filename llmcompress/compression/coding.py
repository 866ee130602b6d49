"""A weight's codes by the kernels, straight to where they are stored, with the scales and zero points next to them."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.kernels.floating import Floats
from llmcompress.compression.kernels.groups import packed_zero_points, quantize
from llmcompress.compression.kernels.integers import Codes, Integers, StoredWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray


class WeightLayout(NamedTuple):
    """How a weight's values lie, and the format that its codes have."""

    element: str
    """OpenVINO's name: bf16, f16 or f32."""
    group_size: int
    num_columns: int
    num_groups: int
    codes: Integers | Floats

    @property
    def num_bytes(self) -> int:
        """Of the codes; eight values always fill whole bytes."""
        return self.num_groups * self.group_size // 8 * self.codes.num_bits


class CodedParts(NamedTuple):
    """What stands next to the codes of a weight, as it is stored."""

    scales: NDArray[np.uint8]
    """In half precision."""
    zero_points: NDArray[np.uint8]


def write_codes(
    values: NDArray[np.uint8], layout: WeightLayout, packed: NDArray[np.uint8], pool: ThreadPoolExecutor
) -> CodedParts:
    """Write the codes of a weight.

    Args:
        values: Of the weight, only read.
        layout: Of them.
        packed: Where the codes go.
        pool: Whose threads compute.

    Raises:
        DoubtError: A weight is not finite, or its scale is not in half precision.
    """
    codes, element = layout.codes, layout.element
    is_integer = isinstance(codes, Integers)
    scales = np.empty(layout.num_groups, np.float32)
    zero_points = np.zeros(layout.num_groups if is_integer else 0, np.float32)
    stored = StoredWeights(
        _as_kernels_take_it(values.view(np.uint32 if element == "f32" else np.uint16)),
        np.uint32(16 if element == "bf16" else 0),
        element == "f16",
        layout.group_size,
        layout.num_columns,
    )
    if not quantize(stored, codes, Codes(False, scales, zero_points, packed), pool):
        raise DoubtError("a weight is not finite")
    rounded = scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise DoubtError("a scale exceeds half precision")
    is_asymmetric = isinstance(codes, Integers) and codes.is_asymmetric
    zeros = packed_zero_points(zero_points, codes.num_bits) if is_asymmetric else np.empty(0, np.uint8)
    return CodedParts(rounded.view(np.uint8), zeros)


def _as_kernels_take_it(values: NDArray[Any]) -> NDArray[Any]:
    """The same memory, which a kernel only reads, as an array that may be written: others would be compiled apart."""
    if not values.flags.aligned:
        return values.copy()
    if values.flags.writeable:
        return values
    kind = {2: ctypes.c_uint16, 4: ctypes.c_uint32}[values.itemsize]
    return np.ctypeslib.as_array((kind * len(values)).from_address(values.ctypes.data))
