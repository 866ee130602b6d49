"""8-bit floats E4M3 with scales of blocks, rows or the whole weight, as DeepSeek, Qwen and FBGEMM write them.

``weight`` float8 ``[N, K]``; ``weight_scale_inv`` ``[ceil(N / rows), ceil(K / columns)]`` of blocks, or one number:
what the weight is multiplied by; FBGEMM: ``weight_scale`` ``[N, 1]``.
Source: https://github.com/deepseek-ai/DeepSeek-V3, ``inference/kernel.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import regrouped, shortest
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, common_group_size
from llmcompress.loaders.quantized.required import FLOATS, modules_with, require_matrix, require_tensor, setting
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo


def find_float8(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of an FP8 checkpoint.

    Raises:
        ModelError: A setting that is not known, or a tensor that is missing or of another type or shape.
    """
    setting(settings, "fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    blocks = settings.get("weight_block_size")
    return [
        float8_weight(module, scale, blocks, tensors, "FP8")
        for scale in ("weight_scale_inv", "weight_scale")
        for module in modules_with(tensors, scale)
    ]


def float8_weight(
    module: str, scale: str, blocks: object, tensors: Mapping[str, TensorInfo], name: str
) -> StoredWeight:
    """Describe one weight.

    Args:
        module: Whose weight it is.
        scale: The name of the tensor of scales in it.
        blocks: Rows and columns of a block, or None.
        tensors: All headers.
        name: The format, for people.

    Raises:
        ModelError: A tensor is missing or of another type, or scales and blocks do not fit the weight.
    """
    rows, columns = require_matrix(tensors, f"{module}.weight", ("F8_E4M3",))
    scales = require_tensor(tensors, f"{module}.{scale}", FLOATS)
    height, width = _block(blocks)
    if scales.shape in ((), (1,), (1, 1)):
        height, width = rows, columns
    elif scales.shape in ((rows,), (rows, 1)):
        height, width = 1, columns
    elif scales.shape != (-(-rows // height), -(-columns // width)):
        raise ModelError(
            f"tensor {module}.{scale} has the shape {list(scales.shape)}; for {rows} x {columns} in blocks of "
            f"{height} x {width} it would be [{-(-rows // height)}, {-(-columns // width)}]",
            where=scales.file,
            hint=ORIGINAL,
        )
    common = common_group_size(columns, width, module)
    parts = {f"{module}.weight", f"{module}.{scale}"}
    of_activations = ("input_scale", "activation_scale", "input_scale_ub")
    unused = {f"{module}.{part}" for part in of_activations} & set(tensors)
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, columns),
        format=f"{name} E4M3, blocks of {height} x {width}",
        element="f8e4m3",
        group_size=common,
        parts=frozenset(parts | unused),
        repack=functools.partial(_repack, module, scale, (rows, columns), (height, width)),
        scale="f32",
    )


def _block(blocks: object) -> tuple[int, int]:
    sizes = [128, 128] if blocks is None else blocks
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ModelError(
            f"the block size in quantization_config is {blocks!r}; two positive numbers are needed",
            where="config.json",
            hint=ORIGINAL,
        )
    return sizes[0], sizes[1]


def _repack(module: str, scale: str, shape: tuple[int, int], block: tuple[int, int], read: Read) -> PackedWeight:
    import numpy as np

    rows, columns = shape
    height, width = block
    scales = read(f"{module}.{scale}").reshape(-(-rows // height), -1)
    common = common_group_size(columns, width, module)
    each_row = np.repeat(shortest(scales), height, axis=0)[:rows]
    return PackedWeight(
        codes=read(f"{module}.weight"),
        element="f8e4m3",
        shape=shape,
        scales=np.ascontiguousarray(regrouped(each_row, width, common, columns)),
    )
