"""compressed-tensors, as llm-compressor and AutoRound write it: integers and floats of 4 and 8 bits.

Packed: ``weight_packed`` int32 ``[N, ceil(K * bits / 32)]`` of codes along a row, ``weight_shape`` ``[2]``,
``weight_scale`` ``[N, groups]`` and, where it is asymmetric, ``weight_zero_point`` int32
``[ceil(N * bits / 32), groups]``; both kinds of codes are stored without sign. ``weight_g_idx`` ``[K]``: the group of
each input channel. Plain: ``weight`` int8 or float8 ``[N, K]`` with ``weight_scale`` and ``weight_zero_point`` int8.
4-bit floats E2M1: ``weight_packed`` uint8 ``[N, K / 2]``; of NVFP4 ``weight_scale`` float8 ``[N, K / 16]``, which is
divided by ``weight_global_scale`` ``[1]``; of MXFP4 ``weight_scale`` uint8 ``[N, K / 32]``, the exponent plus 127.
What a checkpoint says of its activations is left out: the runtime quantizes them in its own way.
Source: https://github.com/vllm-project/compressed-tensors, ``src/compressed_tensors/compressors``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import in_blocks, packed4, rounded, shortest, unpacked
from llmcompress.loaders.quantized.float8 import float8_weight
from llmcompress.loaders.quantized.gptq import channel_order
from llmcompress.loaders.quantized.mxfp4 import with_exponents
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, signed
from llmcompress.loaders.quantized.required import FLOATS, modules_with, require_matrix, require_tensor
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OF_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")


def find_compressed_tensors(
    settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read
) -> list[StoredWeight]:
    """Find the weights of a compressed-tensors checkpoint; the tensors say how each is stored.

    Raises:
        ModelError: A part of the format that is not read, or a tensor that is missing or of another type or shape.
    """
    for name in ("sparsity_config", "transform_config"):
        declared = settings.get(name)
        if declared and not (isinstance(declared, Mapping) and declared.get("format") == "dense"):
            raise ModelError(
                f"quantization_config.{name} is given, which is not read", where="config.json", hint=ORIGINAL
            )
    found = [
        _float4(module, tensors) if tensors[f"{module}.weight_packed"].dtype == "U8" else _packed(module, tensors, read)
        for module in modules_with(tensors, "weight_packed")
    ]
    for module in modules_with(tensors, "weight_scale"):
        weight = tensors.get(f"{module}.weight")
        if weight is None:
            continue
        found.append(_float8(module, settings, tensors) if weight.dtype == "F8_E4M3" else _integers(module, tensors))
    return [
        weight._replace(
            parts=weight.parts | {name for part in _OF_ACTIVATIONS if (name := _part(weight, part)) in tensors}
        )
        for weight in found
    ]


def _part(weight: StoredWeight, part: str) -> str:
    return f"{weight.name.removesuffix('.weight')}.{part}"


def _packed(module: str, tensors: Mapping[str, TensorInfo], read: Read) -> StoredWeight:
    rows, words = require_matrix(tensors, f"{module}.weight_packed", ("I32",))
    require_tensor(tensors, f"{module}.weight_shape", ("I64", "I32"), (2,))
    stated = [int(size) for size in read(f"{module}.weight_shape")]
    columns = stated[1]
    bits = next((bits for bits in (4, 8) if columns > 0 and words == -(-columns * bits // 32)), 0)
    if stated[0] != rows or not bits or columns % 2:
        raise ModelError(
            f"{module}.weight_packed of {rows} x {words} words holds no codes of 4 or 8 bits in the shape {stated}",
            where=tensors[f"{module}.weight_packed"].file,
            hint=ORIGINAL,
        )
    num_groups = _num_groups(module, rows, columns, tensors)
    parts = {f"{module}.{part}" for part in ("weight_packed", "weight_shape", "weight_scale")}
    asymmetric = f"{module}.weight_zero_point" in tensors
    if asymmetric:
        shape = (-(-rows * bits // 32), num_groups)
        require_tensor(tensors, f"{module}.weight_zero_point", ("I32",), shape)
        parts.add(f"{module}.weight_zero_point")
    sorted_ = f"{module}.weight_g_idx" in tensors
    if sorted_:
        require_tensor(tensors, f"{module}.weight_g_idx", ("I32",), (columns,))
        parts.add(f"{module}.weight_g_idx")
    group = columns // num_groups
    signs = ("u4", "i4") if bits == 4 else ("u8", "i8")
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, columns),
        format=f"compressed-tensors {bits} bits{', act-order' if sorted_ else ''}",
        element=signs[not asymmetric],  # type: ignore[arg-type]
        group_size=group,
        asymmetric=asymmetric,
        parts=frozenset(parts),
        repack=functools.partial(_repack, module, bits, (rows, columns), num_groups, asymmetric, sorted_),
    )


def _num_groups(module: str, rows: int, columns: int, tensors: Mapping[str, TensorInfo]) -> int:
    """Groups in a row, by the shape of the scales."""
    name = f"{module}.weight_scale"
    scale = require_tensor(tensors, name, FLOATS)
    shape = scale.shape if len(scale.shape) == 2 else (*scale.shape, 1)
    if len(shape) != 2 or shape[0] != rows or not shape[1] or columns % shape[1]:
        raise ModelError(
            f"tensor {name!r} has the shape {list(scale.shape)}; [{rows}, groups that divide {columns}] is needed",
            where=scale.file,
            hint=ORIGINAL,
        )
    return shape[1]


def _repack(
    module: str, bits: int, shape: tuple[int, int], num_groups: int, asymmetric: bool, sorted_: bool, read: Read
) -> PackedWeight:
    import numpy as np

    rows, columns = shape
    stored, middle = read(f"{module}.weight_packed"), 1 << (bits - 1)
    order = channel_order(read(f"{module}.weight_g_idx"), columns // num_groups, module) if sorted_ else None

    def block(part: slice) -> NDArray[Any]:
        stream = np.ascontiguousarray(stored[part]).view(np.uint8)[:, : columns * bits // 8]
        if order is None:
            return stream
        codes = unpacked(stream, bits)[:, order]
        return codes if bits == 8 else packed4(codes)

    zeros = np.full((rows, num_groups), middle, np.uint8)
    if asymmetric:
        words = np.ascontiguousarray(read(f"{module}.weight_zero_point").T).view(np.uint8)
        zeros = np.ascontiguousarray(unpacked(words, bits)[:, :rows].T)
    weight = PackedWeight(
        codes=in_blocks(rows, columns, np.uint8, block),
        element="u4" if bits == 4 else "u8",
        shape=shape,
        scales=shortest(read(f"{module}.weight_scale").reshape(rows, num_groups)),
        zero_points=zeros,
        columns=order,
    )
    return signed(weight, middle)


def _integers(module: str, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    rows, columns = require_matrix(tensors, f"{module}.weight", ("I8",))
    num_groups = _num_groups(module, rows, columns, tensors)
    asymmetric = f"{module}.weight_zero_point" in tensors
    parts = {f"{module}.weight", f"{module}.weight_scale"}
    if asymmetric:
        require_tensor(tensors, f"{module}.weight_zero_point", ("I8",), tensors[f"{module}.weight_scale"].shape)
        parts.add(f"{module}.weight_zero_point")
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, columns),
        format="compressed-tensors int8",
        element="u8" if asymmetric else "i8",
        group_size=columns // num_groups,
        asymmetric=asymmetric,
        parts=frozenset(parts),
        repack=functools.partial(_repack_integers, module, (rows, columns), num_groups, asymmetric),
    )


def _repack_integers(
    module: str, shape: tuple[int, int], num_groups: int, asymmetric: bool, read: Read
) -> PackedWeight:
    import numpy as np

    codes, scales = read(f"{module}.weight"), shortest(read(f"{module}.weight_scale").reshape(shape[0], num_groups))
    if not asymmetric:
        return PackedWeight(codes, "i8", shape, scales)
    # Without sign a code is 128 more, as its zero point.
    zeros = read(f"{module}.weight_zero_point").reshape(shape[0], num_groups).view(np.uint8) ^ np.uint8(128)
    return signed(PackedWeight(codes.view(np.uint8) ^ np.uint8(128), "u8", shape, scales, zeros), 128)


def _float4(module: str, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    rows, half = require_matrix(tensors, f"{module}.weight_packed", ("U8",))
    parts = {f"{module}.weight_packed", f"{module}.weight_scale"}
    is_nvfp4 = f"{module}.weight_global_scale" in tensors
    group = 16 if is_nvfp4 else 32
    if half * 2 % group:
        raise ModelError(
            f"groups of {group} do not divide the {half * 2} columns of {module}",
            where=tensors[f"{module}.weight_packed"].file,
            hint=ORIGINAL,
        )
    num_groups = half * 2 // group
    require_tensor(tensors, f"{module}.weight_scale", ("F8_E4M3",) if is_nvfp4 else ("U8",), (rows, num_groups))
    if is_nvfp4:
        require_tensor(tensors, f"{module}.weight_global_scale", ("F32",), (1,))
        parts.add(f"{module}.weight_global_scale")
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, half * 2),
        format=f"compressed-tensors {'NVFP4' if is_nvfp4 else 'MXFP4'}",
        element="f4e2m1",
        group_size=group,
        parts=frozenset(parts),
        repack=functools.partial(_repack_float4, module, (rows, half * 2), is_nvfp4),
        scale="f8e4m3" if is_nvfp4 else "f8e8m0",
    )


def _repack_float4(module: str, shape: tuple[int, int], is_nvfp4: bool, read: Read) -> PackedWeight:
    import numpy as np

    codes, scales = read(f"{module}.weight_packed"), f"{module}.weight_scale"
    if not is_nvfp4:
        return with_exponents(scales, codes, shape, read(scales))
    divisor = read(f"{module}.weight_global_scale").astype(np.float64)
    if not divisor.all():
        raise ModelError(f"weight_global_scale of {module} is 0", where="safetensors", hint=ORIGINAL)
    factor = (1 / divisor).astype(np.float32)
    rounding = rounded(factor, 1 / divisor)
    return PackedWeight(codes, "f4e2m1", shape, read(scales), scale="f8e4m3", factors=factor, rounding=rounding)


def _float8(module: str, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    groups = settings.get("config_groups")
    declared = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [group.get("weights") for group in declared if isinstance(group, Mapping)]
    blocks = [found for each in weights if isinstance(each, Mapping) and (found := each.get("block_structure"))]
    return float8_weight(module, "weight_scale", blocks[0] if blocks else None, tensors, "compressed-tensors FP8")
