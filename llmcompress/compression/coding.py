"""A weight's codes by the kernels, straight to where they are stored, and their errors."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.kernels.floating import Floats
from llmcompress.compression.kernels.groups import Weighing, packed_zero_points, quantize, squared_error
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
    codes = layout.codes
    made, rounded = _made(_stored(values, layout), layout, packed, pool)
    is_asymmetric = isinstance(codes, Integers) and codes.is_asymmetric
    zeros = packed_zero_points(made.zero_points, codes.num_bits) if is_asymmetric else np.empty(0, np.uint8)
    return CodedParts(rounded.view(np.uint8), zeros)


def weighted_error(
    values: NDArray[np.uint8], layout: WeightLayout, factors: NDArray[np.float32], pool: ThreadPoolExecutor
) -> float | None:
    """The squared errors of a weight's codes, each times a factor, together.

    Args:
        values: Of the weight, only read.
        layout: Of them.
        factors: float32 ``[num_values]``, as the values lie.
        pool: Whose threads compute.

    Returns:
        None: groups do not lie in one piece or are no integers, or there are not as many factors as values.

    Raises:
        DoubtError: As ``write_codes``.
    """
    codes = layout.codes
    is_whole = factors.size == layout.num_groups * layout.group_size
    if layout.num_columns > 1 or not isinstance(codes, Integers) or not is_whole:
        return None
    stored = _stored(values, layout)
    made, rounded = _made(stored, layout, np.empty(layout.num_bytes, np.uint8), pool)
    return squared_error(stored, codes, made, Weighing(rounded.astype(np.float32), factors), pool)


def _stored(values: NDArray[np.uint8], layout: WeightLayout) -> StoredWeights:
    element = layout.element
    return StoredWeights(
        _as_kernels_take_it(values.view(np.uint32 if element == "f32" else np.uint16)),
        np.uint32(16 if element == "bf16" else 0),
        element == "f16",
        layout.group_size,
        layout.num_columns,
    )


def _made(
    stored: StoredWeights, layout: WeightLayout, packed: NDArray[np.uint8], pool: ThreadPoolExecutor
) -> tuple[Codes, NDArray[np.float16]]:
    """Codes, and their scales as they are stored.

    Raises:
        DoubtError: As ``write_codes``.
    """
    zero_points = np.zeros(layout.num_groups if isinstance(layout.codes, Integers) else 0, np.float32)
    made = Codes(False, np.empty(layout.num_groups, np.float32), zero_points, packed)
    if not quantize(stored, layout.codes, made, pool):
        raise DoubtError("a weight is not finite")
    rounded = made.scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise DoubtError("a scale exceeds half precision")
    return made, rounded


def _as_kernels_take_it(values: NDArray[Any]) -> NDArray[Any]:
    """The same memory, which a kernel only reads, as an array that may be written: others would be compiled apart."""
    if not values.flags.aligned:
        return values.copy()
    if values.flags.writeable:
        return values
    kind = {2: ctypes.c_uint16, 4: ctypes.c_uint32}[values.itemsize]
    return np.ctypeslib.as_array((kind * len(values)).from_address(values.ctypes.data))
