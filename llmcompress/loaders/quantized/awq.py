"""AWQ, as AutoAWQ and AutoRound write it: 4 bits, zero points as they are.

GEMM: ``qweight`` int32 ``[K, N / 8]`` and ``qzeros`` ``[groups, N / 8]`` hold eight output channels in a word, in the
order 0 2 4 6 1 3 5 7; ``scales`` ``[groups, N]``. GEMV: ``qweight`` ``[N, K / 8]``, ``qzeros`` ``[N, width]`` and
``scales`` ``[N, 8 * width]`` hold input channels and groups in order, padded.
Source: https://github.com/casper-hansen/AutoAWQ, ``awq/modules/linear``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import in_blocks, packed4, shortest, unpacked
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, signed
from llmcompress.loaders.quantized.required import (
    FLOATS,
    group_size_setting,
    modules_with,
    require_matrix,
    require_tensor,
    setting,
)
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of GEMM each of eight output channels lies."""
_PER_WORD = 8
_MIDDLE = 8
"""Zero point of symmetric codes."""


def find_awq(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of an AWQ checkpoint.

    Raises:
        ModelError: A setting that is not known, or a tensor that is missing or of another type or shape.
    """
    setting(settings, "bits", (4,), 4)
    setting(settings, "zero_point", (True, False), True)
    version = setting(settings, "version", ("gemm", "GEMM", "gemv", "GEMV"), "gemm").lower()
    group_size = group_size_setting(settings.get("group_size", 128))
    return [_stored(module, version, group_size, tensors) for module in modules_with(tensors, "qweight")]


def _stored(module: str, version: str, group_size: int, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    first, second = require_matrix(tensors, f"{module}.qweight", ("I32",))
    rows, columns = (second * _PER_WORD, first) if version == "gemm" else (first, second * _PER_WORD)
    group = columns if group_size == -1 else group_size
    if columns % group or columns % 2:
        raise ModelError(
            f"groups of {group} do not divide the {columns} columns of {module}",
            where=tensors[f"{module}.qweight"].file,
            hint=ORIGINAL,
        )
    num_groups = columns // group
    zeros, scales = (num_groups, rows // _PER_WORD), (num_groups, rows)
    if version == "gemv":
        width = _width(num_groups, group)
        zeros, scales = (rows, width), (rows, width * _PER_WORD)
    require_tensor(tensors, f"{module}.qzeros", ("I32",), zeros)
    require_tensor(tensors, f"{module}.scales", FLOATS, scales)
    return StoredWeight(
        name=f"{module}.weight",
        shape=(rows, columns),
        format=f"AWQ 4 bits, {version.upper()}",
        element="u4",
        group_size=group,
        asymmetric=True,
        parts=frozenset(f"{module}.{part}" for part in ("qweight", "qzeros", "scales")),
        repack=functools.partial(_from_gemm if version == "gemm" else _from_gemv, module, (rows, columns), num_groups),
    )


def _width(num_groups: int, group: int) -> int:
    """Words of a row of zero points, which the kernels of GEMV read several at a time."""
    words = -(-num_groups // _PER_WORD)
    multiple = max(1, 128 // group)
    return -(-words // multiple) * multiple


def _from_gemm(module: str, shape: tuple[int, int], num_groups: int, read: Read) -> PackedWeight:
    import numpy as np

    qweight = read(f"{module}.qweight")
    rows, columns = shape

    def block(part: slice) -> NDArray[Any]:
        # A word holds the same input channel of eight rows.
        words = slice(part.start // _PER_WORD, -(-part.stop // _PER_WORD))
        skipped = part.start - words.start * _PER_WORD
        return packed4(_output_channels(qweight[:, words])[skipped : skipped + part.stop - part.start])

    weight = PackedWeight(
        codes=in_blocks(rows, columns, np.uint8, block),
        element="u4",
        shape=shape,
        scales=shortest(read(f"{module}.scales").T),
        zero_points=_output_channels(read(f"{module}.qzeros")),
    )
    return signed(weight, _MIDDLE)


def _output_channels(words: NDArray[Any]) -> NDArray[Any]:
    """Codes ``[8 * words, channels]`` of ``[channels, words]``."""
    import numpy as np

    stored = np.ascontiguousarray(words.T).view(np.uint32)
    codes = np.stack([(stored >> np.uint32(4 * place)).astype(np.uint8) & 15 for place in _PLACES], axis=1)
    return codes.reshape(-1, stored.shape[1])


def _from_gemv(module: str, shape: tuple[int, int], num_groups: int, read: Read) -> PackedWeight:
    import numpy as np

    zeros = np.ascontiguousarray(read(f"{module}.qzeros")).view(np.uint8)
    weight = PackedWeight(
        codes=np.array(read(f"{module}.qweight")).view(np.uint8).reshape(shape[0], -1),
        element="u4",
        shape=shape,
        scales=shortest(read(f"{module}.scales")[:, :num_groups]),
        zero_points=np.ascontiguousarray(unpacked(zeros, 4)[:, :num_groups]),
    )
    return signed(weight, _MIDDLE)
