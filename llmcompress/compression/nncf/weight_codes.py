"""NNCF's ``compress_weight`` by our kernels: the weight of one layer to codes, scales and zero points.

Only this one call is taken over. What surrounds it (which layers, which settings, the graph, names and metadata) stays
NNCF's, and so does every weight that the kernels do not cover.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.openvino.graph.node_utils import create_ov_const_from_tensor
from nncf.quantization.algorithms.weight_compression import openvino_backend
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight as stock_compress_weight
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorBackend, TensorDataType
from openvino import opset13 as opset

from llmcompress.compression.nncf.group_codes import FLOAT_FORMATS, FORMATS, Work, compressed, group_shape
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.memory import forget_file_pages
from llmcompress.system.patching import replaced

_CONSTANT_MAKER = "create_ov_const_from_tensor"


class Lowering:
    """Takes over ``compress_weight`` for the time of a compression, and remembers for which weights."""

    def __init__(self, num_threads: int, file_memory: FileMemory | None = None) -> None:
        """Codes go to ``file_memory``, where it is given; who holds the model must hold it."""
        self.names: set[str] = set()
        """Friendly names of the constants that our kernels have made."""
        self._file_memory = file_memory
        self._pool = ThreadPoolExecutor(num_threads)
        self.is_ours = False
        """Whether our kernels made the last weight."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Have NNCF call us; where it has moved the names, nothing is changed."""
        backend = openvino_backend.OVWeightCompressionAlgoBackend
        create = vars(backend).get("_create_compression_subgraph")
        if create is None:
            yield
            return

        def noted(*args: Any, const_node_name: str, **kwargs: Any) -> Any:
            result = create(*args, const_node_name=const_node_name, **kwargs)
            (self.names.add if self.is_ours else self.names.discard)(const_node_name)
            return result

        with (
            self._pool,
            replaced(openvino_backend, "compress_weight", self.compress_weight),
            replaced(backend, "_create_compression_subgraph", noted),
        ):
            yield

    def compress_weight(
        self,
        weight: Tensor,
        reduction_axes: int | tuple[int, ...],
        config: WeightCompressionConfig,
        precomputed: CompressedWeight | None = None,
    ) -> CompressedWeight:
        """NNCF's function of this name, with the same arguments and, byte for byte, the same constants to come."""
        self.is_ours = False
        groups = group_shape(weight, reduction_axes, config)
        found = None
        if groups is not None and agrees(config.mode, weight.data.get_element_type(), config.group_size):
            found = compressed(Work(weight, groups, config, precomputed, self._pool, self._file_memory))
            self.is_ours = found is not None
        if found is None:
            found = stock_compress_weight(weight, reduction_axes, config, precomputed)
        if weight.backend == TensorBackend.ov:
            # Read once; the pages of the whole checkpoint would otherwise add up.
            forget_file_pages(weight.data.data.ctypes.data, weight.data.get_byte_size())
        return found


@functools.cache
def agrees(mode: Mode, element: ov.Type, group_size: int) -> bool:
    """Whether the installed NNCF and OpenVINO compute as the kernels do, on a sample of ordinary and odd values."""
    config = WeightCompressionConfig(mode, group_size)
    weight = Tensor(_sample(element, 1024 if group_size == -1 else group_size * max(1, 1024 // group_size)))
    groups = group_shape(weight, (1,), config)
    assert groups is not None
    with ThreadPoolExecutor(1) as pool:
        ours = compressed(Work(weight, groups, config, None, pool))
    assert ours is not None
    return constants(ours, config) == constants(stock_compress_weight(weight, (1,), config), config)


def _sample(element: ov.Type, num_columns: int) -> ov.Tensor:
    """Sixteen rows, of which each scales the same values to another size; the last three are equal, zero and tiny."""
    values = np.sin(np.arange(16 * num_columns, dtype=np.float32) ** 2).reshape(16, num_columns)
    values *= np.logspace(-9, 4, 16, dtype=np.float32)[:, None]
    # Quotients half way between two codes: of integers, of FP8, of FP4, and of NF4 with their neighbours.
    values[1] = np.resize(np.arange(-16, 15, dtype=np.float32) / 2, num_columns)
    values[2] = np.resize(np.arange(-448, 449, 7, dtype=np.float32), num_columns)
    values[3] = np.resize(np.arange(-24, 25, dtype=np.float32) / 4, num_columns)
    midpoints = FLOAT_FORMATS[Mode.NF4].codes.midpoints
    around = [np.nextafter(midpoints, np.float32(end)) for end in (-1, 1)]
    values[4] = np.resize(np.concatenate([np.ones(1, np.float32), midpoints, *around]), num_columns)
    values[13:] = np.array([-3, 0, 1e-40], np.float32)[:, None]
    stored = values.astype(np.float16) if element == ov.Type.f16 else values
    if element == ov.Type.bf16:
        stored = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.float16)
    return ov.Tensor(stored, ov.Shape(stored.shape), element)


def constants(weight: CompressedWeight, config: WeightCompressionConfig) -> list[bytes]:
    """The bytes of the codes, scales and zero points as NNCF makes constants of them."""
    if config.mode in FLOAT_FORMATS:
        return [weight.tensor.data.data.reshape(-1).view(np.uint8).tobytes(), weight.scale.data.tobytes()]
    form = FORMATS[config.mode]
    codes = weight.tensor + int(form.codes.offset) if form.codes.offset else weight.tensor
    found = [(codes, form.element), (weight.scale, ov.Type.f32)]
    if weight.zero_point is not None:
        found.append((weight.zero_point, form.element))
    return [create_ov_const_from_tensor(tensor, element).data.tobytes() for tensor, element in found]


@contextlib.contextmanager
def own_constants(file_memory: FileMemory | None = None) -> Iterator[None]:
    """Have NNCF make its floating-point constants by us; where it has moved the name, nothing is changed.

    Args:
        file_memory: Where they are kept, so that the weights that AWQ scales need no memory of their own; who holds the
            model must hold it.
    """
    stock = vars(openvino_backend).get(_CONSTANT_MAKER)
    if stock is None:
        yield
        return

    def constant(tensor: Tensor, dtype: ov.Type, name: str | None = None) -> Any:
        is_ours = tensor.backend == TensorBackend.numpy and tensor.dtype == TensorDataType.float32
        if is_ours and dtype == ov.Type.bf16 and np.isfinite(tensor.data).all():
            return opset.constant(to_bf16(tensor.data, file_memory), name=name, shared_memory=True)
        made = stock(tensor, dtype, name)
        if not is_ours or file_memory is None or dtype not in (ov.Type.f16, ov.Type.f32):
            return made
        stored = _room(dtype, made.data.shape, file_memory)
        stored.data[...] = made.data
        return opset.constant(stored, name=name, shared_memory=True)

    with replaced(openvino_backend, _CONSTANT_MAKER, constant):
        yield


def to_bf16(values: np.ndarray, file_memory: FileMemory | None = None) -> ov.Tensor:
    """Round finite f32 as OpenVINO does: half of the last place is added where that place is odd, the rest cut off."""
    stored = _room(ov.Type.bf16, values.shape, file_memory)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits & np.uint32(0x10000)
    rounded >>= np.uint32(1)
    rounded += bits
    np.right_shift(rounded, np.uint32(16), out=stored.data.view(np.uint16), casting="unsafe")
    return stored


def _room(element: ov.Type, shape: tuple[int, ...], file_memory: FileMemory | None) -> ov.Tensor:
    """A tensor to be written to; in ordinary memory where there is no other."""
    block = None if file_memory is None else file_memory.block(math.prod(shape) * element.size)
    if block is None:
        return ov.Tensor(element, ov.Shape(shape))
    as_stored = block.view({2: np.float16, 4: np.float32}[element.size]).reshape(shape)
    return ov.Tensor(as_stored, ov.Shape(shape), element)
