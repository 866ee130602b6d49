"""MXFP4 of gpt-oss: stacks of experts as 4-bit floats E2M1, 32 of which have a power of two as their scale.

``gate_up_proj_blocks`` and ``down_proj_blocks`` uint8 ``[experts, N, K / 32, 16]``, two codes in a byte, the low half
first; ``_scales`` uint8 ``[experts, N, K / 32]``, the exponent plus 127. The model's class has ``[experts, K, N]``.
Source: https://github.com/openai/gpt-oss, ``gpt_oss/torch/weights.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight
from llmcompress.loaders.quantized.required import require_tensor
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCKS, _SCALES = "_blocks", "_scales"
GROUP_SIZE = 32
_NAN = 255


def find_mxfp4(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of an MXFP4 checkpoint.

    Raises:
        ModelError: A tensor is missing or of another type or shape.
    """
    found = []
    for name in sorted(name.removesuffix(_BLOCKS) for name in tensors if name.endswith(_BLOCKS)):
        blocks = require_tensor(tensors, name + _BLOCKS, ("U8",))
        if len(blocks.shape) != 4 or 0 in blocks.shape or blocks.shape[3] != GROUP_SIZE // 2:
            raise ModelError(
                f"tensor {name + _BLOCKS!r} has the shape {list(blocks.shape)}; experts, rows, groups and "
                f"{GROUP_SIZE // 2} bytes are needed",
                where=blocks.file,
                hint=ORIGINAL,
            )
        require_tensor(tensors, name + _SCALES, ("U8",), blocks.shape[:3])
        num_experts, rows, num_groups, _ = blocks.shape
        shape = (num_experts, rows, num_groups * GROUP_SIZE)
        found.append(
            StoredWeight(
                name=name,
                shape=shape,
                format="MXFP4",
                element="f4e2m1",
                group_size=GROUP_SIZE,
                parts=frozenset({name + _BLOCKS, name + _SCALES}),
                repack=functools.partial(_repack, name, shape),
                scale="f8e8m0",
                transposed=True,
            )
        )
    return found


def with_exponents(name: str, codes: NDArray[Any], shape: tuple[int, ...], scales: NDArray[Any]) -> PackedWeight:
    """A weight whose scales are powers of two.

    Args:
        name: Of the tensor of scales, for people.
        codes: As of ``PackedWeight``.
        shape: The same.
        scales: ``[rows, groups]``, a byte each.
    """
    problem = f"tensor {name!r} has scales that are NaN" if (scales == _NAN).any() else ""
    return PackedWeight(codes, "f4e2m1", shape, scales, scale="f8e8m0", nonfinite=problem)


def _repack(name: str, shape: tuple[int, int, int], read: Read) -> PackedWeight:
    scales = read(name + _SCALES).reshape(shape[0] * shape[1], -1)
    return with_exponents(name + _SCALES, read(name + _BLOCKS), shape, scales)
