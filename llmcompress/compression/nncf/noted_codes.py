"""What our kernels would make of each weight of a graph, noted instead of made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor
from numpy.typing import NDArray

from llmcompress.compression.coding import WeightLayout
from llmcompress.compression.kernels.floating import Floats
from llmcompress.compression.kernels.groups import GroupShape
from llmcompress.compression.kernels.integers import Integers
from llmcompress.compression.nncf.group_codes import FLOAT_FORMATS, FORMATS, StoredCodes, group_shape
from llmcompress.compression.nncf.weight_codes import Lowering, agrees
from llmcompress.system.patching import replaced


class NotCoveredError(Exception):
    """NNCF computes a weight of the graph itself."""


class NotedWeight(NamedTuple):
    """A weight that NNCF had compressed."""

    values: NDArray[np.uint8]
    """Its bytes, in the graph's own memory."""
    layout: WeightLayout

    @property
    def address(self) -> int:
        """Where its values are."""
        return int(self.values.ctypes.data)


@contextlib.contextmanager
def codes_noted(noted: list[NotedWeight], *, alone: bool = True) -> Iterator[None]:
    """Have a compression note its weights, with room in place of their codes.

    Args:
        noted: What is added to.
        alone: NotCoveredError where our kernels do not make the codes of a weight; otherwise NNCF computes it at once.
    """
    compress_now = Lowering.compress_weight

    def note(
        lowering: Lowering,
        weight: Tensor,
        reduction_axes: int | tuple[int, ...],
        config: WeightCompressionConfig,
        precomputed: CompressedWeight | None = None,
    ) -> CompressedWeight:
        groups = group_shape(weight, reduction_axes, config)
        is_ours = groups is not None and agrees(config.mode, weight.data.get_element_type(), config.group_size)
        if groups is None or not is_ours or precomputed is not None:
            if not alone:
                return compress_now(lowering, weight, reduction_axes, config, precomputed)
            raise NotCoveredError(f"a weight of shape {tuple(weight.shape)} by mode {config.mode.value}")
        lowering.is_ours = True
        form = FLOAT_FORMATS[config.mode] if config.mode in FLOAT_FORMATS else FORMATS[config.mode]
        element, num_groups = weight.data.get_element_type().get_type_name(), int(weight.size) // groups.size
        layout = WeightLayout(element, groups.size, groups.num_columns, num_groups, form.codes)
        noted.append(NotedWeight(weight.data.data.reshape(-1).view(np.uint8), layout))
        return _room(groups, form.element, form.codes)

    with replaced(Lowering, "compress_weight", note):
        yield


def _room(groups: GroupShape, element: ov.Type, codes: Integers | Floats) -> CompressedWeight:
    def stored(shape: tuple[int, ...]) -> ov.Tensor:
        return ov.Tensor(element, ov.Shape(shape))

    integers = codes if isinstance(codes, Integers) else None
    tensor: Any = (StoredCodes if integers and integers.offset else Tensor)(stored(groups.shape))
    zero_point = Tensor(stored(groups.scale_shape)) if integers and integers.is_asymmetric else None
    return CompressedWeight(tensor, Tensor(np.ones(groups.scale_shape, np.float32)), zero_point=zero_point)
