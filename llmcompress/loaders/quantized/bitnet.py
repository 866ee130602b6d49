"""BitNet: ternary weights with one scale, as transformers writes them.

``weight`` uint8 ``[N / 4, K]``: 2 bits of each of four rows, N / 4 apart, in a byte, the first row lowest, 1 more than
the weight; ``weight_scale`` ``[1]``, by which ``BitLinear`` divides and ``AutoBitLinear`` multiplies.
Source: https://github.com/huggingface/transformers, ``src/transformers/integrations/bitnet.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import in_blocks, packed4, rounded, shortest
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight
from llmcompress.loaders.quantized.required import FLOATS, modules_with, require_matrix, require_tensor, setting
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS_IN_BYTE = 4


def find_bitnet(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of a BitNet checkpoint.

    Raises:
        ModelError: A setting that is not known, or a tensor that is missing or of another type or shape.
    """
    divided = setting(settings, "linear_class", ("bitlinear", "autobitlinear"), "bitlinear") == "bitlinear"
    setting(settings, "use_rms_norm", (False,), False)
    found = []
    for module in modules_with(tensors, "weight_scale"):
        quarter, columns = require_matrix(tensors, f"{module}.weight", ("U8",))
        require_tensor(tensors, f"{module}.weight_scale", FLOATS, (1,))
        if columns % 2:
            raise ModelError(
                f"the {columns} columns of {module} are no whole bytes of 4 bits",
                where=tensors[f"{module}.weight"].file,
                hint=ORIGINAL,
            )
        shape = (quarter * _ROWS_IN_BYTE, columns)
        found.append(
            StoredWeight(
                name=f"{module}.weight",
                shape=shape,
                format="BitNet, ternary",
                element="i4",
                group_size=columns,
                parts=frozenset({f"{module}.weight", f"{module}.weight_scale"}),
                repack=functools.partial(_repack, module, shape, divided),
            )
        )
    return found


def _repack(module: str, shape: tuple[int, int], divided: bool, read: Read) -> PackedWeight:
    import numpy as np

    stored, stated = read(f"{module}.weight"), read(f"{module}.weight_scale").astype(np.float64)
    quarter = stored.shape[0]
    if divided and not stated.all():
        raise ModelError(f"the scale of {module} is 0, by which it divides", where="safetensors", hint=ORIGINAL)

    def block(part: slice) -> NDArray[Any]:
        rows = np.arange(part.start, part.stop)
        places = (2 * (rows // quarter)).astype(np.uint8)
        return packed4((((stored[rows % quarter] >> places[:, None]) & 3) - np.uint8(1)) & 15)

    exact = np.repeat(1 / stated if divided else stated, shape[0])[:, None]
    scales = shortest(exact.astype(np.float32))
    codes = in_blocks(*shape, np.uint8, block)
    return PackedWeight(codes, "i4", shape, scales, rounding=rounded(scales, exact))
