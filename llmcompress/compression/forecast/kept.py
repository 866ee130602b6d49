"""What a source that is quantized already will take: its codes as they are, or the floats that they stand for."""

from __future__ import annotations

import math
from collections import Counter

from llmcompress.compression.forecast.records import Inventory, PlannedLayer
from llmcompress.compression.layers import PLAIN_FLOATS
from llmcompress.graph.integer_weights import INTEGERS
from llmcompress.loaders.quantized.packed import FLOATS
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.quantized.stored import StoredWeight
from llmcompress.loaders.safetensors_file import BITS
from llmcompress.loaders.source import Source, source_checkpoint

_CODE_BITS = {"u4": 4, "i4": 4, "u8": 8, "i8": 8, "f8e4m3": 8, "f4e2m1": 4, "f16": 16, "bf16": 16}
_F32_SCALES = ("f8e4m3",)
"""Codes whose scales are published in f32."""


def with_quantized(source: Source, inventory: Inventory, *, keep: bool) -> Inventory:
    """Read from headers which weights of an inventory the files hold quantized; itself where no file is there yet.

    Args:
        source: A checkpoint.
        inventory: That of its plain model.
        keep: Codes are kept; else each weight is computed from them, in f32.

    Raises:
        ModelError: A setting or a tensor is not as the format says.
    """
    if source.layout != "checkpoint" or (source.gguf is None and not any(source.path.glob("*.safetensors"))):
        return inventory
    checkpoint = source_checkpoint(source)
    found = source_weights(source, checkpoint)
    if found is None:
        return inventory
    names = {weight.name for weight in found.weights}
    plain = [tensor for name, tensor in found.plain.tensors.items() if name not in names]
    formats = Counter((weight.format, weight.rounding) for weight in found.weights)
    return inventory._replace(
        weights=tuple(w._replace(dtype="f32") if w.name in names else w for w in inventory.weights),
        checkpoint_bytes=sum(tensor.end - tensor.start for tensor in checkpoint.tensors.values()),
        mapped_bytes=sum(math.prod(tensor.shape) * BITS[tensor.dtype] // 8 for tensor in plain),
        cast_bytes=0 if keep else 4 * sum(math.prod(weight.shape) for weight in found.weights),
        notes=(
            *inventory.notes,
            *(f"{n:,} weights are {name}; {rounding or 'taken exactly'}" for (name, rounding), n in formats.items()),
        ),
        stored=found.weights,
        # Floats are no codes, and stay what they are before any recipe.
        keeps_codes=keep or not any(weight.is_quantized for weight in found.weights),
    )


def kept_layer(weight: StoredWeight) -> PlannedLayer:
    """What a weight becomes whose codes are kept."""
    return PlannedLayer(
        name=weight.name,
        shape=weight.shape,
        num_parameters=math.prod(weight.shape),
        mode=weight.element if weight.element in FLOATS else (INTEGERS | PLAIN_FLOATS)[weight.element],
        group_size=None
        if weight.element in FLOATS
        else -1
        if weight.group_size == weight.shape[1]
        else weight.group_size,
        size_bytes=_bytes(weight),
        stored_as=weight.format if weight.is_quantized else None,
    )


def _bytes(weight: StoredWeight) -> int:
    elements, num_groups = math.prod(weight.shape), weight.shape[0] * weight.shape[1] // weight.group_size
    bits = _CODE_BITS[weight.element]
    if weight.group_bytes is not None:
        return elements * bits // 8 + num_groups * weight.group_bytes
    scales = num_groups * (4 if weight.element in _F32_SCALES else 2)
    return elements * bits // 8 + scales + (-(-num_groups * bits // 8) if weight.asymmetric else 0)
