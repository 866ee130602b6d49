"""NNCF's ``compress_weight`` by our kernels: the weight of one layer to codes, scales and zero points.

Only this one call is taken over. What surrounds it (which layers, which settings, the graph, names and metadata) stays
NNCF's, and so does every weight that the kernels do not cover.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.openvino.graph.node_utils import create_ov_const_from_tensor
from nncf.quantization.algorithms.weight_compression import openvino_backend
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight as stock_compress_weight
from nncf.tensor import Tensor
from nncf.tensor.definitions import TensorBackend

from llmcompress.compression.kernels.floating import quantize_float_groups
from llmcompress.compression.kernels.integers import pack, quantize_columns, quantize_groups
from llmcompress.compression.nncf.formats import FLOAT_FORMATS, FORMATS, IntegerFormat, StoredCodes
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.memory import forget_file_pages
from llmcompress.system.patching import replaced

CHUNK_VALUES = 1 << 20
"""What one thread takes at a time."""
MIN_COLUMNS = 512
"""Of a row, so that whole cache lines are read one after another."""
_LEAST_SIZE = 10_000
"""Of fewer values NNCF computes 4 and 8 bits by NumPy, whose asymmetric arithmetic is another."""
_SHIFTS = {ov.Type.bf16: 16, ov.Type.f16: 0, ov.Type.f32: 0}


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
        groups = _groups(weight, reduction_axes, config)
        found = None
        if groups is not None and agrees(config.mode, weight.data.get_element_type(), config.group_size):
            found = _compressed(_Work(weight, groups, config, precomputed, self._pool, self._file_memory))
            self.is_ours = found is not None
        if found is None:
            found = stock_compress_weight(weight, reduction_axes, config, precomputed)
        if weight.backend == TensorBackend.ov:
            # Read once; the pages of the whole checkpoint would otherwise add up.
            forget_file_pages(weight.data.data.ctypes.data, weight.data.get_byte_size())
        return found


class _Groups(NamedTuple):
    """A weight as groups: blocks of ``size`` rows and ``num_columns`` columns, of which each column is a group."""

    size: int
    num_columns: int
    """1 where a group lies in one piece."""
    shape: tuple[int, ...]
    """Of the weight with its groups apart, as NNCF stores it."""
    scale_shape: tuple[int, ...]


def _groups(weight: Tensor, reduction_axes: int | tuple[int, ...], config: WeightCompressionConfig) -> _Groups | None:
    """None where the kernels do not cover it."""
    is_float = config.mode in FLOAT_FORMATS
    if not (is_float or config.mode in FORMATS) or weight.backend != TensorBackend.ov or reduction_axes is None:
        return None
    shape = tuple(weight.shape)
    if weight.data.get_element_type() not in _SHIFTS:
        return None
    # The last byte of what does not fill it is not ours to guess. Two and three bits are always computed by NumPy.
    is_always_by_numpy = not is_float and FORMATS[config.mode].offset != 0
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
        return _Groups(length, num_columns, shape, (*before, *(1 for _ in axes), *after))
    if len(axes) > 1 or length % config.group_size:
        return None
    num_groups, size = length // config.group_size, config.group_size
    return _Groups(size, num_columns, (*before, num_groups, size, *after), (*before, num_groups, 1, *after))


def is_by_numpy(size: int) -> bool:
    """Whether NNCF computes a weight of so many values by NumPy, where it has a choice."""
    return size < _LEAST_SIZE or "NNCF_DISABLE_OPTIMIZED_COMPRESSION" in os.environ


class _Work(NamedTuple):
    """A weight to be compressed, and what with."""

    weight: Tensor
    groups: _Groups
    config: WeightCompressionConfig
    precomputed: CompressedWeight | None
    pool: ThreadPoolExecutor
    file_memory: FileMemory | None = None


def _compressed(work: _Work) -> CompressedWeight | None:
    """None where a value is no finite number."""
    return _quantized(work) if work.config.mode in FORMATS else _quantized_to_floats(work)


def _quantized(work: _Work) -> CompressedWeight | None:
    weight, groups, config, precomputed, pool, file_memory = work
    form = FORMATS[config.mode]
    num_groups = weight.size // groups.size
    scales, zero_points = np.empty(num_groups, np.float32), np.zeros(num_groups, np.float32)
    given = precomputed if precomputed is not None and precomputed.scale is not None else None
    if given is not None:
        of_numpy = all(part is None or part.backend == TensorBackend.numpy for part in (given.scale, given.zero_point))
        if not of_numpy or tuple(given.scale.shape) != groups.scale_shape:
            return None
        if (given.zero_point is None) == form.is_asymmetric:
            return None
        scales[:] = given.scale.data.reshape(-1)
        if form.is_asymmetric:
            zero_points[:] = given.zero_point.data.reshape(-1)
    codes = _new_tensor(form.element, ov.Shape(groups.shape), file_memory)
    numbers = (np.float32(form.low), np.float32(form.high), form.is_asymmetric, given is not None)
    stored = (np.int32(form.offset), form.num_bits, scales, zero_points, codes.data.reshape(-1).view(np.uint8))
    weights = _stored_values(weight, groups)

    def quantize(first: int, last: int, columns: tuple[int, int]) -> bool:
        if groups.num_columns == 1:
            return bool(quantize_groups(*weights, first, last, *numbers, *stored))
        return bool(quantize_columns(*weights, first, last, groups.num_columns, *columns, *numbers, *stored))

    if not all(pool.map(lambda piece: quantize(*piece), _pieces(num_groups, groups))):
        return None
    tensor = (StoredCodes if form.offset else Tensor)(codes)
    if given is not None:
        return CompressedWeight(tensor, given.scale, zero_point=given.zero_point)
    zero_point = _stored_zero_points(zero_points, groups, form) if form.is_asymmetric else None
    return CompressedWeight(tensor, Tensor(scales.reshape(groups.scale_shape)), zero_point=zero_point)


def _quantized_to_floats(work: _Work) -> CompressedWeight | None:
    weight, groups, config, precomputed, pool, file_memory = work
    form = FLOAT_FORMATS[config.mode]
    num_groups = weight.size // groups.size
    given = precomputed.scale if precomputed is not None else None
    scales = np.empty(num_groups, np.float32)
    if given is not None:
        if given.backend != TensorBackend.numpy or tuple(given.shape) != groups.scale_shape:
            return None
        scales[:] = given.data.reshape(-1)
    codes = _new_tensor(form.element, ov.Shape(groups.shape), file_memory)
    packed = codes.data.reshape(-1).view(np.uint8)
    weights = _stored_values(weight, groups)
    rules = (form.midpoints, form.mantissa_bits, form.bias, np.uint32(form.largest_code), np.float32(form.largest))

    def quantize(first: int, last: int) -> bool:
        return bool(
            quantize_float_groups(*weights, first, last, *rules, given is not None, form.num_bits, scales, packed)
        )

    if not all(pool.map(lambda piece: quantize(*piece[:2]), _pieces(num_groups, groups))):
        return None
    return CompressedWeight(Tensor(codes), given if given is not None else Tensor(scales.reshape(groups.scale_shape)))


def _stored_values(weight: Tensor, groups: _Groups) -> tuple[np.ndarray, np.uint32, bool, int]:
    """What every kernel is told of a weight: its values as stored, how they are widened, the size of its groups."""
    element = weight.data.get_element_type()
    source = weight.data.data.reshape(-1).view(np.uint32 if element == ov.Type.f32 else np.uint16)
    return source, np.uint32(_SHIFTS[element]), element == ov.Type.f16, groups.size


def _new_tensor(element: ov.Type, shape: ov.Shape, file_memory: FileMemory | None) -> ov.Tensor:
    """Eight values always fill whole bytes."""
    block = file_memory.block(math.prod(shape) // 8 * element.get_bitwidth()) if file_memory else None
    return ov.Tensor(element, shape) if block is None else ov.Tensor(block, shape, element)


def _pieces(num_groups: int, groups: _Groups) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Ranges of blocks and columns, each of about ``CHUNK_VALUES``, that begin and end with whole bytes."""
    width = min(groups.num_columns, max(MIN_COLUMNS, CHUNK_VALUES // groups.size // 8 * 8))
    step = max(1, CHUNK_VALUES // (groups.size * width))
    if groups.num_columns == 1:
        step = -(-step // 8) * 8
    num_blocks = num_groups // groups.num_columns
    for first in range(0, num_blocks, step):
        for left in range(0, groups.num_columns, width):
            yield first, min(first + step, num_blocks), (left, min(left + width, groups.num_columns))


def _stored_zero_points(zero_points: np.ndarray, groups: _Groups, form: IntegerFormat) -> Tensor:
    stored = ov.Tensor(form.element, ov.Shape(groups.scale_shape))
    padded = np.zeros(-(-zero_points.size // 8) * 8, np.uint8)
    padded[: zero_points.size] = zero_points
    packed = np.empty(padded.size * form.num_bits // 8, np.uint8)
    pack(padded, form.num_bits, packed)
    stored.data.reshape(-1)[:] = packed[: stored.byte_size]
    return Tensor(stored)


@functools.cache
def agrees(mode: Mode, element: ov.Type, group_size: int) -> bool:
    """Whether the installed NNCF and OpenVINO compute as the kernels do, on a sample of ordinary and odd values."""
    config = WeightCompressionConfig(mode, group_size)
    weight = Tensor(_sample(element, 1024 if group_size == -1 else group_size * max(1, 1024 // group_size)))
    groups = _groups(weight, (1,), config)
    assert groups is not None
    with ThreadPoolExecutor(1) as pool:
        ours = _compressed(_Work(weight, groups, config, None, pool))
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
    midpoints = FLOAT_FORMATS[Mode.NF4].midpoints
    around = [np.nextafter(midpoints, np.float32(end)) for end in (-1, 1)]
    values[4] = np.resize(np.concatenate([np.ones(1, np.float32), midpoints, *around]), num_columns)
    values[13:] = np.array([-3, 0, 1e-40], np.float32)[:, None]
    stored = values.astype(np.float16) if element == ov.Type.f16 else values
    if element == ov.Type.bf16:
        stored = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.float16)
    return ov.Tensor(stored, ov.Shape(stored.shape), element)


def constants(compressed: CompressedWeight, config: WeightCompressionConfig) -> list[bytes]:
    """The bytes of the codes, scales and zero points as NNCF makes constants of them."""
    if config.mode in FLOAT_FORMATS:
        return [compressed.tensor.data.data.reshape(-1).view(np.uint8).tobytes(), compressed.scale.data.tobytes()]
    form = FORMATS[config.mode]
    codes = compressed.tensor + form.offset if form.offset else compressed.tensor
    found = [(codes, form.element), (compressed.scale, ov.Type.f32)]
    if compressed.zero_point is not None:
        found.append((compressed.zero_point, form.element))
    return [create_ov_const_from_tensor(tensor, element).data.tobytes() for tensor, element in found]
