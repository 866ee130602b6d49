"""GPTQ, as AutoGPTQ, GPTQModel and AutoRound write it.

``qweight`` int32 ``[K * bits / 32, N]`` holds the codes of a column as a stream of bits, ``qzeros`` int32
``[groups, N * bits / 32]`` the zero points of a group, ``scales`` ``[groups, N]``, and ``g_idx`` ``[K]`` the group of
each input channel. In the first version of the format (``checkpoint_format: gptq``) 1 is subtracted from the zero
points, from all in a word at once, so that a zero borrows from its neighbour; ``gptq_v2`` holds them as they are.
Source: https://github.com/ModelCloud/GPTQModel, ``gptqmodel/utils/model.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import in_blocks, packed4, regrouped, shortest, unpacked
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, common_group_size, signed
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

BITS = (2, 3, 4, 8)
_BORROWED = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""1 in every code of a word."""


def find_gptq(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: Read) -> list[StoredWeight]:
    """Find the weights of a GPTQ checkpoint.

    Raises:
        ModelError: A setting that is not known, or a tensor that is missing or of another type or shape.
    """
    bits = setting(settings, "bits", BITS)
    version = setting(settings, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    group_size = group_size_setting(settings.get("group_size", -1))
    symmetric = settings.get("sym", True) is True
    found = []
    for module in modules_with(tensors, "qweight"):
        words, rows = require_matrix(tensors, f"{module}.qweight", ("I32",))
        if words * 32 % bits or rows * bits % 32:
            raise ModelError(
                f"{module}.qweight of {words} x {rows} words holds no whole number of {bits}-bit codes",
                where=tensors[f"{module}.qweight"].file,
                hint=ORIGINAL,
            )
        columns = words * 32 // bits
        group = columns if group_size == -1 else group_size
        num_groups = -(-columns // group)
        require_tensor(tensors, f"{module}.qzeros", ("I32",), (num_groups, rows * bits // 32))
        require_tensor(tensors, f"{module}.scales", FLOATS, (num_groups, rows))
        parts = {f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
        if f"{module}.g_idx" in tensors:
            require_tensor(tensors, f"{module}.g_idx", ("I32",), (columns,))
            parts.add(f"{module}.g_idx")
        repack = functools.partial(_repack, module, bits, group, columns, version == "gptq", f"{module}.g_idx" in parts)
        wide, signed = ("u8", "i8") if bits == 8 else ("u4", "i4")
        found.append(
            StoredWeight(
                name=f"{module}.weight",
                shape=(rows, columns),
                format=f"GPTQ {bits} bits{', act-order' if settings.get('desc_act') else ''}",
                element=signed if symmetric else wide,  # type: ignore[arg-type]
                group_size=common_group_size(columns, group, module),
                asymmetric=not symmetric,
                parts=frozenset(parts),
                repack=repack,
            )
        )
    return found


def _repack(
    module: str, bits: int, group: int, columns: int, borrowed: bool, has_index: bool, read: Read
) -> PackedWeight:
    import numpy as np

    qweight, scales = read(f"{module}.qweight"), shortest(read(f"{module}.scales").T)
    rows = qweight.shape[1]
    zero_points = zero_codes(read(f"{module}.qzeros"), bits, borrowed=borrowed).T
    order = channel_order(read(f"{module}.g_idx"), group, module) if has_index else None

    def block(part: slice) -> NDArray[Any]:
        stream = np.ascontiguousarray(qweight[:, part].T).view(np.uint8)
        if order is None and bits in (4, 8):
            # The stream is the constant already.
            return stream
        codes = unpacked(stream, bits)
        codes = codes if order is None else codes[:, order]
        return codes if bits == 8 else packed4(codes)

    common = common_group_size(columns, group, module)
    weight = PackedWeight(
        codes=in_blocks(rows, columns, np.uint8, block),
        element="u8" if bits == 8 else "u4",
        shape=(rows, columns),
        scales=regrouped(scales, group, common, columns),
        zero_points=regrouped(np.ascontiguousarray(zero_points), group, common, columns),
        columns=order,
    )
    return signed(weight, 1 << (bits - 1))


def zero_codes(qzeros: NDArray[Any], bits: int, *, borrowed: bool) -> NDArray[Any]:
    """Zero points ``[groups, N]``; ``borrowed``: 1 was subtracted from them."""
    import numpy as np

    words = np.ascontiguousarray(qzeros).view(np.uint32)
    if borrowed and bits in _BORROWED:
        words = words + np.uint32(_BORROWED[bits])
    codes = unpacked(words.view(np.uint8).reshape(words.shape[0], -1), bits)
    # A code of 3 bits lies in two words now and then, so that none can borrow.
    return (codes + np.uint8(1)) & np.uint8(7) if borrowed and bits == 3 else codes


def channel_order(index: NDArray[Any], group: int, module: str) -> NDArray[Any] | None:
    """The input channels in the order of their groups; None where they are in it.

    Raises:
        ModelError: The groups are not of one size.
    """
    import numpy as np

    num_groups = -(-index.size // group)
    in_range = bool(((index >= 0) & (index < num_groups)).all())
    sizes = np.bincount(index, minlength=num_groups) if in_range else None
    expected = np.full(num_groups, group)
    expected[-1] = index.size - group * (num_groups - 1)
    if sizes is None or not (sizes == expected).all():
        raise ModelError(
            f"g_idx of {module} does not give {group} input channels to each of {num_groups} groups",
            where="safetensors",
            hint=ORIGINAL,
        )
    return None if (np.diff(index) >= 0).all() else np.argsort(index, kind="stable")
