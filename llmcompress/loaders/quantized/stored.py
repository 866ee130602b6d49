"""A quantized weight as its checkpoint's files hold it, known by headers; its tensors are read as they are mapped."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import Element
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, Scale
from llmcompress.loaders.safetensors_file import TensorInfo
from llmcompress.loaders.tensors import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Read = Callable[[str], "NDArray[Any]"]
"""Gives a tensor by its name, as mapped; bf16 as f32, 8-bit floats as their bytes."""

_ELEMENTS = {
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
}


class StoredWeight(NamedTuple):
    """One quantized weight, which stands for a floating-point tensor of the model."""

    name: str
    """Of the tensor that it stands for."""
    shape: tuple[int, ...]
    """Output and input channels; of a stack of experts their number before them."""
    format: str
    """For people: GPTQ 4 bits."""
    element: Element
    """Of the constant that it becomes; for an asymmetric one that turns out to be symmetric i4 or i8."""
    group_size: int
    """Of the constant."""
    parts: frozenset[str]
    """Names of the tensors that it is stored in."""
    repack: Callable[[Read], PackedWeight]
    asymmetric: bool = False
    """Whether the configuration says that there are zero points."""
    scale: Scale = "f16"
    """What its scales are most likely."""
    zero_point: Scale | None = None
    """What its zero points are, where they are numbers; None: codes."""
    level_groups: int = 0
    """Groups of a block, where scales and zero points are bytes times numbers in f16 of blocks; 0: they are not."""
    transposed: bool = False
    """Whether the model's class has input channels before output channels."""
    rounding: str = ""
    """What is rounded, in words; empty: nothing, or scales in f32."""
    is_quantized: bool = True
    """False where the files hold it in floats, as GGUF may."""

    @property
    def columns(self) -> int:
        """Input channels."""
        return self.shape[-1]

    @property
    def parameter(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the tensor in the model's class."""
        return self.name, (*self.shape[:-2], *reversed(self.shape[-2:])) if self.transposed else self.shape


Find = Callable[[Mapping[str, Any], Mapping[str, TensorInfo], Read], list[StoredWeight]]
"""Finds a format's weights by its settings and by headers; small tensors are read where a header does not say all."""


class MappedTensors(NamedTuple):
    """A checkpoint's tensors, its files mapped each when it is first asked for."""

    read: Read
    release: Callable[[str], None]
    """Lets the pages of a tensor leave memory; what is read of it again comes from the file."""


def mapped_bytes(checkpoint: Checkpoint, mode: Literal["r", "c"] = "r") -> MappedTensors:
    """Map a checkpoint's files; tensors are bytes, in ``mode`` ``c`` memory of this process's own."""
    import numpy as np

    @functools.cache
    def mapped(file: str) -> NDArray[np.uint8]:
        return np.memmap(checkpoint.path / file, np.uint8, mode)

    def release(name: str) -> None:
        tensor = checkpoint.tensors[name]
        pages: Any = getattr(mapped(tensor.file), "_mmap")  # noqa: B009 - numpy gives it no other name
        start = -(-tensor.start // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and start < tensor.end:
            pages.madvise(mmap.MADV_DONTNEED, start, tensor.end - start)

    def read(name: str) -> NDArray[Any]:
        tensor = checkpoint.tensors[name]
        return mapped(tensor.file)[tensor.start : tensor.end].view(np.ndarray)

    return MappedTensors(read, release)


def mapped_tensors(checkpoint: Checkpoint) -> MappedTensors:
    """Map a checkpoint's files, of safetensors."""
    import numpy as np

    mapped = mapped_bytes(checkpoint)

    def read(name: str) -> NDArray[Any]:
        tensor = checkpoint.tensors[name]
        if tensor.dtype not in _ELEMENTS:
            raise ModelError(f"tensor {name!r} is {tensor.dtype}, which is not read", where=tensor.file, hint=ORIGINAL)
        values = mapped.read(name).view(_ELEMENTS[tensor.dtype]).reshape(tensor.shape)
        return (values.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else values

    return mapped._replace(read=read)


def plain_tensors(checkpoint: Checkpoint, weights: Iterable[StoredWeight], dtype: str) -> Checkpoint:
    """The headers that the model would have if it were not quantized: each weight as one tensor of ``dtype``."""
    weights = tuple(weights)
    parts = frozenset[str]().union(*(weight.parts for weight in weights))
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in parts}
    for weight in weights:
        name, shape = weight.parameter
        tensors[name] = TensorInfo("", dtype, shape, 0, 0)
    return checkpoint._replace(tensors=tensors)
