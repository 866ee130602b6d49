"""What a format needs of a checkpoint: tensors of a type and shape, and settings, each refused where it is another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.packed import ORIGINAL
from llmcompress.loaders.safetensors_file import TensorInfo

FLOATS = ("F16", "BF16", "F32")
"""Types of scales."""


def require_tensor(
    tensors: Mapping[str, TensorInfo], name: str, dtypes: Iterable[str], shape: tuple[int, ...] | None = None
) -> TensorInfo:
    """Give the header of a tensor that a format needs.

    Raises:
        ModelError: It is not there, or of another type or shape than the format says.
    """
    tensor = tensors.get(name)
    accepted = " or ".join(dtypes)
    if tensor is None:
        raise ModelError(f"tensor {name!r} is missing, which the format needs", where="safetensors", hint=ORIGINAL)
    if tensor.dtype not in accepted.split(" or "):
        raise ModelError(f"tensor {name!r} is {tensor.dtype}; {accepted} is needed", where=tensor.file, hint=ORIGINAL)
    if shape is not None and tensor.shape != shape:
        raise ModelError(
            f"tensor {name!r} has the shape {list(tensor.shape)}; the format needs {list(shape)}",
            where=tensor.file,
            hint="config.json and the weights do not belong together: fetch both again",
        )
    return tensor


def require_matrix(tensors: Mapping[str, TensorInfo], name: str, dtypes: Iterable[str]) -> tuple[int, int]:
    """The two sizes of a matrix that is not empty; raises as ``require_tensor``."""
    tensor = require_tensor(tensors, name, dtypes)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise ModelError(
            f"tensor {name!r} has the shape {list(tensor.shape)}; a matrix is needed", where=tensor.file, hint=ORIGINAL
        )
    return tensor.shape[0], tensor.shape[1]


def modules_with(tensors: Mapping[str, TensorInfo], part: str) -> list[str]:
    """The modules that have a tensor of this name."""
    return sorted(name.removesuffix(f".{part}") for name in tensors if name.endswith(f".{part}"))


def setting(settings: Mapping[str, Any], name: str, accepted: Iterable[Any], default: Any = None) -> Any:
    """A setting of ``quantization_config``.

    Raises:
        ModelError: It is none of the accepted ones.
    """
    value = settings.get(name, default)
    accepted = tuple(accepted)
    # A JSON true equals the number 1.
    if not any(type(each) is type(value) and each == value for each in accepted):
        raise ModelError(
            f"quantization_config.{name} is {value!r}; accepted: {', '.join(map(str, accepted))}",
            where="config.json",
            hint=ORIGINAL,
        )
    return value


def group_size_setting(value: object) -> int:
    """A group size: a positive number, or -1 for one group in a row.

    Raises:
        ModelError: Anything else.
    """
    if type(value) is not int or value == 0 or value < -1 or value > 1 << 31:
        raise ModelError(
            f"the group size in quantization_config is {value!r}; a positive number is needed, or -1",
            where="config.json",
            hint=ORIGINAL,
        )
    return value
