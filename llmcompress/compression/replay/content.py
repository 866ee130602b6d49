"""A checkpoint's bytes, mapped, and what of them decides the shape of the graph.

The converter makes one constant of two that are equal, and leaves out a multiplication by ones: where tensors are
equal, or hold one value only, the graph depends on them.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.loaders.safetensors_file import BITS
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.system.memory import same_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PREFIX_BYTES = 256


class TensorMemory(NamedTuple):
    """The bytes of a checkpoint's tensors, in memory that is its files."""

    checkpoint: Checkpoint
    files: Mapping[str, mmap.mmap]

    def bytes_of(self, name: str) -> NDArray[np.uint8]:
        """All bytes of a tensor."""
        import numpy as np

        tensor = self.checkpoint.tensors[name]
        return np.frombuffer(self.files[tensor.file], np.uint8, tensor.end - tensor.start, tensor.start)


def mapped(checkpoint: Checkpoint, *, private: bool = False) -> TensorMemory:
    """Map the files of a checkpoint.

    Args:
        checkpoint: Its headers.
        private: May be written to; what is written stays in this process.

    Raises:
        OSError: A file cannot be opened.
    """
    access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
    files = {}
    for name in checkpoint.files:
        with (checkpoint.path / name).open("rb") as file:
            files[name] = mmap.mmap(file.fileno(), 0, access=access)
    return TensorMemory(checkpoint, files)


class Content(NamedTuple):
    """What of the values decides the graph."""

    uniform: dict[str, str]
    """Tensors that hold one value only, as hexadecimal digits of its bytes."""
    equal: tuple[tuple[str, ...], ...]
    """Tensors that are equal, their names sorted; others are not."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"uniform": self.uniform, "equal": [list(names) for names in self.equal]}


def content(tensors: TensorMemory) -> Content:
    """Look at as much of every tensor as tells it from the others: of most a few bytes."""
    uniform: dict[str, str] = {}
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, tensor in sorted(tensors.checkpoint.tensors.items()):
        values = tensors.bytes_of(name)
        value = _only_value(values, max(BITS[tensor.dtype] // 8, 1))
        if value is None:
            alike[tensor.dtype, tensor.shape, values[:_PREFIX_BYTES].tobytes()].append(name)
        else:
            uniform[name] = value.hex()
    classes = [each for names in alike.values() if len(names) > 1 for each in _classes(tensors, names)]
    return Content(uniform, tuple(sorted(classes)))


def _only_value(values: NDArray[np.uint8], size: int) -> bytes | None:
    first = values[:size].tobytes()
    start = values[:_PREFIX_BYTES].tobytes()
    if not len(values) or len(values) % size or start != first * (len(start) // size):
        return None
    return first if len(values) == size or same_bytes(values[size:], values[:-size]) else None


def _classes(tensors: TensorMemory, names: list[str]) -> list[tuple[str, ...]]:
    classes: list[list[str]] = []
    for name in names:
        values = tensors.bytes_of(name)
        for found in classes:
            if same_bytes(values, tensors.bytes_of(found[0])):
                found.append(name)
                break
        else:
            classes.append([name])
    return [tuple(found) for found in classes if len(found) > 1]
