"""torchao, as transformers writes its tensors into safetensors: 8-bit integers, such that hold fewer bits, and 4 bits.

``_weight_qdata`` int8 ``[N, K]``, ``_weight_scale`` ``[N, groups]`` and, of ``IntxUnpackedToInt8Tensor``,
``_weight_zero_point`` int8. ``Int4Tensor``: ``_weight_qdata`` int8 ``[N, K / 2]``, two signed codes in a byte, the low
half first; ``_weight_scale`` and ``_weight_zero_point`` ``[groups, N]`` in floats, of which the second is added:
``code * scale + zero_point``. Layouts that are made for one kind of device (tiles, words of 32 bits) are not read.
What a checkpoint says of its activations is left out: the runtime quantizes them in its own way.
Source: https://github.com/pytorch/ao, ``torchao/quantization/quantize_/workflows``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import in_blocks, packed4, rounded, shortest
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, signed
from llmcompress.loaders.quantized.required import FLOATS, modules_with, require_matrix, require_tensor
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QDATA, _SCALE, _ZERO_POINT = "_weight_qdata", "_weight_scale", "_weight_zero_point"
_TILES, _OF_ACTIVATIONS = "_weight_scale_and_zero", "_weight_act_pre_scale"
_INT4_CONFIGS = ("Int4WeightOnlyConfig", "Float8DynamicActivationInt4WeightConfig")
_PLAIN_FORMAT = (
    "quantize the original again with IntxWeightOnlyConfig, or with Int4WeightOnlyConfig and "
    "int4_packing_format='plain'; or take another format of the model"
)
_FEW_BITS = ("int1", "int2", "int3", "int4")


def find_torchao(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of a torchao checkpoint; the tensors say how each is stored.

    Raises:
        ModelError: A layout that is not read, or a tensor that is missing or of another type or shape.
    """
    said = set(_strings(settings.get("quant_type"), 0))
    few_bits, has_int4 = bool(said & set(_FEW_BITS)), bool(said & set(_INT4_CONFIGS))
    found = []
    for module in modules_with(tensors, _QDATA):
        _refuse_other_layouts(module, tensors)
        zero_point = tensors.get(f"{module}.{_ZERO_POINT}")
        is_int4 = has_int4 and zero_point is not None and zero_point.dtype in FLOATS
        found.append(_int4(module, tensors) if is_int4 else _integers(module, few_bits, tensors))
    return found


def _refuse_other_layouts(module: str, tensors: Mapping[str, TensorInfo]) -> None:
    qdata, problem, hint = tensors[f"{module}.{_QDATA}"], "", _PLAIN_FORMAT
    if f"{module}.{_TILES}" in tensors:
        problem = "an Int4TilePackedTo4dTensor, whose tiles are those of CUDA's kernels"
    elif qdata.dtype == "I32":
        problem = "an Int4PlainInt32Tensor, whose words are those of Intel GPUs or Ascend NPUs"
    elif f"{module}.{_OF_ACTIVATIONS}" in tensors:
        problem, hint = f"multiplied with {_OF_ACTIVATIONS}, which scales activations", ORIGINAL
    if problem:
        raise ModelError(f"the weight of {module} is {problem}; that is not read", where=qdata.file, hint=hint)


def _strings(value: object, depth: int) -> Iterator[str]:
    """Every string in a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list) and depth < 20:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part, depth + 1)


def _integers(module: str, few_bits: bool, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    rows, columns = require_matrix(tensors, f"{module}.{_QDATA}", ("I8",))
    scale = require_tensor(tensors, f"{module}.{_SCALE}", FLOATS)
    shape = (rows, 1) if scale.shape in ((), (1,), (1, 1), (rows,)) else scale.shape
    if len(shape) != 2 or shape[0] != rows or not shape[1] or columns % shape[1] or (few_bits and columns % 2):
        raise ModelError(
            f"tensor {module}.{_SCALE} has the shape {list(scale.shape)}; [{rows}, groups that divide {columns}] is "
            "needed",
            where=scale.file,
            hint=ORIGINAL,
        )
    parts = {f"{module}.{_QDATA}", f"{module}.{_SCALE}"}
    if f"{module}.{_ZERO_POINT}" in tensors:
        require_tensor(tensors, f"{module}.{_ZERO_POINT}", ("I8",), scale.shape)
        parts.add(f"{module}.{_ZERO_POINT}")
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, columns),
        format=f"torchao {'4' if few_bits else '8'} bits",
        element="i4" if few_bits else "i8",
        group_size=columns // shape[1],
        parts=frozenset(parts),
        repack=functools.partial(
            _repack, module, (rows, columns), shape[1], few_bits, f"{module}.{_ZERO_POINT}" in parts
        ),
    )


def _repack(
    module: str, shape: tuple[int, int], num_groups: int, few_bits: bool, asymmetric: bool, read: Read
) -> PackedWeight:
    import numpy as np

    rows, columns = shape
    stored, middle = read(f"{module}.{_QDATA}").view(np.uint8), np.uint8(8 if few_bits else 128)

    def block(part: slice) -> NDArray[Any]:
        # Without sign a code is that much more, as its zero point.
        codes = stored[part] + middle
        if few_bits and codes.max() > 15:
            raise ModelError(f"codes of {module} are no 4 bits", where="safetensors", hint=ORIGINAL)
        return packed4(codes) if few_bits else codes

    def by_row(values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(values.reshape(-1, num_groups), (rows, num_groups))

    zeros = np.full((rows, num_groups), middle)
    if asymmetric:
        zeros = by_row(read(f"{module}.{_ZERO_POINT}").view(np.uint8)) + middle
        if few_bits and zeros.max() > 15:
            raise ModelError(f"zero points of {module} are no 4 bits", where="safetensors", hint=ORIGINAL)
    weight = PackedWeight(
        codes=in_blocks(rows, columns, np.uint8, block),
        element="u4" if few_bits else "u8",
        shape=shape,
        scales=shortest(by_row(read(f"{module}.{_SCALE}"))),
        zero_points=zeros,
    )
    return signed(weight, int(middle))


def _int4(module: str, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    rows, half = require_matrix(tensors, f"{module}.{_QDATA}", ("I8", "U8"))
    groups, of_rows = require_matrix(tensors, f"{module}.{_SCALE}", FLOATS)
    require_tensor(tensors, f"{module}.{_ZERO_POINT}", FLOATS, (groups, of_rows))
    if of_rows != rows or 2 * half % groups:
        raise ModelError(
            f"tensor {module}.{_SCALE} has the shape {[groups, of_rows]}; [groups that divide {2 * half}, {rows}] is "
            "needed",
            where=tensors[f"{module}.{_SCALE}"].file,
            hint=ORIGINAL,
        )
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, 2 * half),
        format="torchao Int4Tensor",
        element="u4",
        group_size=2 * half // groups,
        parts=frozenset(f"{module}.{part}" for part in (_QDATA, _SCALE, _ZERO_POINT)),
        repack=functools.partial(_repack_int4, module, (rows, 2 * half)),
        asymmetric=True,
        scale="f32",
        zero_point="f32",
    )


def _repack_int4(module: str, shape: tuple[int, int], read: Read) -> PackedWeight:
    import numpy as np

    stored = read(f"{module}.{_QDATA}").view(np.uint8)
    scales, added = (read(f"{module}.{part}").T for part in (_SCALE, _ZERO_POINT))
    if not added.any():
        return PackedWeight(stored, "i4", shape, shortest(scales))
    if (scales == 0).any():
        raise ModelError(
            f"a scale of {module} is 0, by which what is added is divided", where="safetensors", hint=ORIGINAL
        )
    # Without sign a code is 8 more.
    exact = 8 - added.astype(np.float64) / scales
    zeros = np.ascontiguousarray(exact, np.float32)
    return PackedWeight(
        codes=in_blocks(shape[0], shape[1], np.uint8, lambda part: stored[part] ^ np.uint8(0x88)),
        element="u4",
        shape=shape,
        scales=np.ascontiguousarray(scales, np.float32),
        zero_points=zeros,
        rounding=rounded(zeros, exact),
    )
