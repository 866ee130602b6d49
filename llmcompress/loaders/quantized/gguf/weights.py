"""The weights of a GGUF model, as ``llama.cpp`` writes it: where each goes, and its blocks repacked.

Rows of blocks are whole, so that what llama.cpp reorders, rows of queries and keys, is put back without a block being
opened.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import Element, in_blocks, packed4, shortest
from llmcompress.loaders.quantized.experts import with_whole_stacks
from llmcompress.loaders.quantized.gguf.architectures import Mapped, named_tensors
from llmcompress.loaders.quantized.gguf.blocks import (
    BLOCK_FORMATS,
    DEQUANTIZED,
    BlockFormat,
    BlockLevels,
    without_zero_scales,
)
from llmcompress.loaders.quantized.gguf.file import BLOCK_SIZES
from llmcompress.loaders.quantized.packed import ORIGINAL, Levels, PackedWeight, Scale, dequantized
from llmcompress.loaders.quantized.slim_stacks import stack_parameters
from llmcompress.loaders.quantized.stored import MappedTensors, Read, StoredWeight, mapped_bytes
from llmcompress.loaders.safetensors_file import TensorInfo
from llmcompress.loaders.tensors import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOATS: Mapping[str, Element] = {"F16": "f16", "BF16": "bf16"}
_MOST_STEPS = 2048
"""Zero points up to it are rounded by less than a step when they become f16."""


class GgufWeights(NamedTuple):
    """The weights of a model. By headers alone."""

    weights: tuple[StoredWeight, ...]
    """The matrices that are not f32."""
    plain: Checkpoint
    """The headers that the model would have in f32."""
    mapped: MappedTensors
    """Gives a tensor's bytes by GGUF's name, a row each."""
    floats: Callable[[], dict[str, NDArray[Any]]]
    """The values of the other tensors, by the names that transformers gives them, mapped where they can be."""


def gguf_weights(config: Mapping[str, Any], checkpoint: Checkpoint) -> GgufWeights:
    """Find the weights of a GGUF model.

    Args:
        config: Made by ``gguf_config``, with the quantization that it declares.
        checkpoint: The headers of its files, with GGUF's names and types.

    Raises:
        ModelError: A tensor that the architecture does not have, or of a type that is not read.
    """
    places = named_tensors(config["quantization_config"]["architecture"], config, checkpoint.tensors)
    mapped = _mapped(checkpoint)
    weights: list[StoredWeight] = []
    others: dict[str, tuple[TensorInfo, Mapped]] = {}
    for name, place in places.items():
        tensor = checkpoint.tensors[name]
        kept = (*BLOCK_FORMATS, *DEQUANTIZED, *_FLOATS, *(("F32",) if place.is_stack else ()))
        if len(tensor.shape) == (3 if place.is_stack else 2) and tensor.dtype in kept and not place.less:
            weights.append(_stored(name, tensor, place, checkpoint.path))
        elif tensor.dtype in ("F32", *_FLOATS) and not place.is_stack:
            others[name] = tensor, place
        else:
            raise ModelError(
                f"tensor {name!r} is {tensor.dtype} of shape {list(tensor.shape)}, which is not read",
                where=tensor.file,
                hint=ORIGINAL,
            )
    weights = with_whole_stacks(weights)
    matrices = [weight.parameter for weight in weights if len(weight.shape) == 2]
    plain = {name: TensorInfo("", "F32", shape, 0, 0) for name, shape in matrices}
    plain |= {stack.name: TensorInfo("", "F32", stack.shape, 0, 0) for stack in stack_parameters(weights)}
    for tensor, place in others.values():
        shape = (1, *tensor.shape) if place.is_row else tensor.shape[::-1] if place.transposed else tensor.shape
        plain[place.name] = tensor._replace(dtype="F32", shape=shape)
    return GgufWeights(
        weights=tuple(weights),
        plain=checkpoint._replace(tensors=plain),
        mapped=mapped,
        floats=lambda: {
            place.name: _values(mapped.read(name), tensor, place) for name, (tensor, place) in others.items()
        },
    )


def _mapped(checkpoint: Checkpoint) -> MappedTensors:
    # Torch takes no memory that cannot be written.
    mapped = mapped_bytes(checkpoint, "c")

    def read(name: str) -> NDArray[Any]:
        shape = checkpoint.tensors[name].shape
        return mapped.read(name).reshape(math.prod(shape[:-1]), -1) if len(shape) > 1 else mapped.read(name)

    return mapped._replace(read=read)


def _values(stored: NDArray[Any], tensor: TensorInfo, place: Mapped) -> NDArray[np.float32]:
    import numpy as np

    values: NDArray[Any] = _floats(stored, tensor.dtype)
    if place.order is not None:
        values = values[place.order.places(values.shape[0])]
    if place.transposed:
        values = np.ascontiguousarray(values.T)
    if place.is_row:
        values = values[None]
    return values - np.float32(place.less) if place.less else values


def _floats(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    import numpy as np

    if dtype == "BF16":
        return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
    values: NDArray[np.float32] = stored.view({"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32, copy=False)
    return values


def _stored(name: str, tensor: TensorInfo, place: Mapped, directory: Path) -> StoredWeight:
    columns = tensor.shape[-1]
    made = functools.partial(
        StoredWeight, name=place.name, shape=tensor.shape, parts=frozenset((name,)), transposed=place.transposed
    )
    if tensor.dtype in ("F32", *_FLOATS):
        return made(
            format=f"GGUF {tensor.dtype}",
            element=_FLOATS.get(tensor.dtype, "f32"),
            group_size=columns,
            repack=functools.partial(_as_it_is, name, tensor, place),
            is_quantized=False,
        )
    if tensor.dtype in DEQUANTIZED:
        return made(
            format=f"GGUF {tensor.dtype}, dequantized",
            element="f16",
            group_size=columns,
            repack=functools.partial(_dequantized, name, tensor, place, directory),
            rounding="their values become f16",
        )
    form = BLOCK_FORMATS[tensor.dtype]
    numbers: Scale = "f16" if form.short_scales else "f32"
    return made(
        format=f"GGUF {tensor.dtype}",
        element=form.element,
        group_size=form.group_size,
        asymmetric=form.asymmetric,
        repack=functools.partial(_repacked, name, tensor, place, directory, form),
        scale=numbers,
        zero_point=numbers,
        level_groups=form.level_groups if len(tensor.shape) == 2 else 0,
        rounding="their zero points become f16" if form.rounds else "",
    )


def _as_it_is(name: str, tensor: TensorInfo, place: Mapped, read: Read) -> PackedWeight:
    stored = read(name)
    codes = stored if place.order is None else stored[place.order.places(tensor.shape[0])]
    return _float_weight(codes, _FLOATS.get(tensor.dtype, "f32"), tensor)


def _float_weight(codes: NDArray[Any], element: Element, tensor: TensorInfo) -> PackedWeight:
    import numpy as np

    return PackedWeight(codes, element, tensor.shape, np.ones((len(codes), 1), np.float16))


def _dequantized(name: str, tensor: TensorInfo, place: Mapped, directory: Path, read: Read) -> PackedWeight:
    import numpy as np

    rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    values = _dequantizer(name, tensor, place, read)
    rounding, nonfinite = 0.0, ""

    def block(part: slice) -> NDArray[Any]:
        nonlocal rounding, nonfinite
        exact = values(part)
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        if found := _nonfinite(half, name, tensor):
            nonfinite = found
            return half.view(np.uint8)
        rounding = max(rounding, _relative_rounding(half, exact, float(np.finfo(np.float16).smallest_normal)))
        return half.view(np.uint8)

    codes = in_blocks(rows, columns, np.uint8, block)
    unrounded = functools.partial(_read_again, name, tensor, place, directory)
    return _float_weight(codes, "f16", tensor)._replace(rounding=rounding, unrounded=unrounded, nonfinite=nonfinite)


def _read_again(
    name: str, tensor: TensorInfo, place: Mapped, directory: Path, form: BlockFormat | None = None
) -> NDArray[Any]:
    """A weight in f32 as its file has it, which a process opens for itself: weights are handed to others."""
    import numpy as np

    read = _mapped(Checkpoint(directory, (tensor.file,), None, {name: tensor})).read
    if form is not None:
        return dequantized(_unrounded(name, tensor, place, form, read))
    rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    return in_blocks(rows, columns, np.float32, _dequantizer(name, tensor, place, read))


def _dequantizer(name: str, tensor: TensorInfo, place: Mapped, read: Read) -> Callable[[slice], NDArray[Any]]:
    """Gives rows of a weight in f32, by the package gguf."""
    from gguf import GGMLQuantizationType, dequantize

    rows_at = _rows(name, tensor, place, read)
    kind = GGMLQuantizationType[tensor.dtype]

    def values(part: slice) -> NDArray[Any]:
        found: NDArray[Any] = dequantize(rows_at(part), kind)
        return found

    return values


def _rows(name: str, tensor: TensorInfo, place: Mapped, read: Read) -> Callable[[slice], NDArray[Any]]:
    """Gives the bytes of rows, in the order of transformers."""
    import numpy as np

    stored = read(name)
    order = None if place.order is None else place.order.places(tensor.shape[0])
    return lambda part: np.ascontiguousarray(stored[part] if order is None else stored[order[part]])


def _relative_rounding(rounded: NDArray[Any], exact: NDArray[Any], least: float) -> float:
    """The largest difference to the exact numbers, each relative to the number, or to ``least`` where that is more."""
    import numpy as np

    difference = np.abs(rounded.astype(np.float32) - exact)
    return float((difference / np.maximum(np.abs(exact), np.float32(least))).max(initial=0.0))


def _nonfinite(values: NDArray[Any], name: str, tensor: TensorInfo) -> str:
    """What is wrong with numbers that are not all finite; empty: nothing."""
    import numpy as np

    problem = f"{tensor.file}: the blocks of tensor {name!r} have scales that are NaN, infinite or too large"
    return "" if np.isfinite(values).all() else problem


def _repacked(
    name: str, tensor: TensorInfo, place: Mapped, directory: Path, form: BlockFormat, read: Read
) -> PackedWeight:
    import numpy as np

    exact = _unrounded(name, tensor, place, form, read)
    if exact.nonfinite or exact.levels is not None:
        return exact
    zeros, scales = exact.zero_points, shortest(exact.scales)
    if zeros is None:
        return exact._replace(scales=scales)
    if not form.rounds or np.abs(zeros).max() > _MOST_STEPS or scales.dtype != np.float16:
        return exact
    half = zeros.astype(np.float16)
    return exact._replace(
        scales=scales,
        zero_points=half,
        rounding=_relative_rounding(half, zeros, 1.0),
        unrounded=functools.partial(_read_again, name, tensor, place, directory, form),
    )


def _levels(found: list[BlockLevels] | None, rows: int) -> Levels | None:
    """Those of all blocks, row by row."""
    import numpy as np

    if not found:
        return None
    scales, steps, offsets, offset_steps = (
        None if parts[0] is None else np.concatenate(parts).reshape(rows, -1) for parts in zip(*found, strict=True)
    )
    assert scales is not None and steps is not None  # noqa: PT018
    return Levels(
        scales, steps.astype(np.float16), offsets, None if offset_steps is None else offset_steps.astype(np.float16)
    )


def _unrounded(name: str, tensor: TensorInfo, place: Mapped, form: BlockFormat, read: Read) -> PackedWeight:
    """A weight with scales and zero points in f32."""
    import numpy as np

    rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    rows_at, num_groups = _rows(name, tensor, place, read), columns // form.group_size
    scales = np.empty((rows, num_groups), np.float32)
    offsets = np.empty((rows, num_groups), np.float32) if form.asymmetric else None
    # The operation that the CPU makes of a stack and its routing reads scales as they are.
    levels: list[BlockLevels] | None = [] if form.level_groups and len(tensor.shape) == 2 else None

    def block(part: slice) -> NDArray[Any]:
        groups = form.parts(rows_at(part).reshape(-1, BLOCK_SIZES[tensor.dtype].size_bytes))
        if offsets is not None:
            groups = without_zero_scales(groups)
        if levels is not None and groups.levels is not None:
            levels.append(groups.levels)
        scales[part] = groups.scales.reshape(-1, num_groups)
        codes = groups.codes.reshape(-1, num_groups, form.group_size)
        if offsets is not None and groups.offsets is not None:
            offsets[part] = groups.offsets.reshape(-1, num_groups)
        of_rows = codes.reshape(-1, columns)
        return packed4(of_rows) if form.element in ("u4", "i4", "f4e2m1") else of_rows

    codes = in_blocks(rows, columns, np.uint8, block)
    problem = _nonfinite(scales, name, tensor)
    if offsets is None:
        return PackedWeight(codes, form.element, tensor.shape, scales, levels=_levels(levels, rows), nonfinite=problem)
    with np.errstate(over="ignore", invalid="ignore"):
        zeros = offsets / scales
    problem = problem or _nonfinite(zeros, name, tensor)
    return PackedWeight(
        codes, form.element, tensor.shape, scales, zeros, levels=_levels(levels, rows), nonfinite=problem
    )
