"""A second checkpoint of the same configuration, with other values: what of a graph it shares with the first is not
made of weights.

Its tensors are the first one's memory a little further on, so that they take no room; small ones are drawn anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcompress.compression.replay.content import Content, TensorMemory
from llmcompress.loaders.safetensors_file import BITS
from llmcompress.system.memory import same_bytes

if TYPE_CHECKING:
    import torch

_SHIFT_BYTES = 4096
_DRAWN_BYTES = 1 << 20
"""Up to so many bytes are drawn."""


def substitutes(tensors: TensorMemory, content: Content) -> dict[str, torch.Tensor]:
    """Give every tensor other values, by its name; equal ones stay equal, and those of one value stay as they are.

    Args:
        tensors: Mapped so that they may be written to.
        content: Of them.

    Raises:
        KeyError: torch has no such element type.
    """
    import torch

    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    types |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    types["BOOL"] = torch.bool
    first = {name: names[0] for names in content.equal for name in names}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.checkpoint.tensors.items():
        leader = first.get(name, name)
        if leader in found:
            found[name] = found[leader]
            continue
        dtype = types[tensor.dtype]
        if name in content.uniform or not dtype.is_floating_point:
            found[name] = _at(tensors, name, dtype, 0)
        elif tensor.end - tensor.start > _DRAWN_BYTES and (shift := _shift(tensors, name)):
            found[name] = _at(tensors, name, dtype, shift)
        else:
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            found[name] = (drawn / 32).to(dtype)
        found.setdefault(leader, found[name])
    return {name: found[name] for name in tensors.checkpoint.tensors}


def _shift(tensors: TensorMemory, name: str) -> int:
    """Bytes by which a tensor's memory can be taken further on or back within tensors of its kind; 0: it cannot."""
    tensor = tensors.checkpoint.tensors[name]
    same_kind = [
        each
        for each in tensors.checkpoint.tensors.values()
        if each.file == tensor.file and each.dtype == tensor.dtype and each is not tensor
    ]
    own = tensors.bytes_of(name)
    if same_bytes(own[:-_SHIFT_BYTES], own[_SHIFT_BYTES:]):
        return 0
    if any(each.start == tensor.end and each.end - each.start >= _SHIFT_BYTES for each in same_kind):
        return _SHIFT_BYTES
    if any(each.end == tensor.start and each.end - each.start >= _SHIFT_BYTES for each in same_kind):
        return -_SHIFT_BYTES
    return 0


def _at(tensors: TensorMemory, name: str, dtype: Any, shift: int) -> torch.Tensor:
    import torch

    tensor = tensors.checkpoint.tensors[name]
    count = (tensor.end - tensor.start) * 8 // BITS[tensor.dtype]
    memory = tensors.files[tensor.file]
    if not count:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=tensor.start + shift).reshape(tensor.shape)
