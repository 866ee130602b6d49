"""What a source that is quantized already will take: its codes as they are, or the floats that they stand for."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmcompress.compression.forecast.records import Inventory, PlannedLayer
from llmcompress.compression.kept import expanded_modes
from llmcompress.compression.layers import FLOATS, mode_of
from llmcompress.loaders.hub_headers import read_hub_checkpoint
from llmcompress.loaders.quantized.codes import NF4
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.quantized.stored import Read, StoredWeight
from llmcompress.loaders.safetensors_file import BITS
from llmcompress.loaders.source import Source, source_checkpoint
from llmcompress.loaders.tensors import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS = {
    **dict.fromkeys(("u4", "i4", "f4e2m1", "nf4"), 4),
    **dict.fromkeys(("u8", "i8", "f8e4m3", "f8e8m0"), 8),
    **dict.fromkeys(("f16", "bf16"), 16),
    "f32": 32,
}


def with_quantized(source: Source, inventory: Inventory, *, keep: bool) -> Inventory:
    """Read from headers which weights of an inventory the files hold quantized; itself where no file is there yet.

    Args:
        source: A checkpoint.
        inventory: That of its plain model.
        keep: Codes are kept; else each weight is computed from them, in f32.

    Raises:
        ModelError: A setting or a tensor is not as the format says.
    """
    if source.layout != "checkpoint" or not is_repacked(source.config):
        return inventory
    if source.container is not None or any(source.path.glob("*.safetensors")):
        checkpoint = source_checkpoint(source)
        found = source_weights(source, checkpoint)
    elif source.files is not None:
        checkpoint = read_hub_checkpoint(source)
        found = source_weights(source, checkpoint, _guesses(checkpoint, inventory))
    else:
        return inventory
    assert found is not None
    weights = _by_names_of(inventory, found.weights)
    names = {weight.name for weight in weights}
    plain = [tensor for tensor in found.plain.tensors.values() if tensor.file]
    formats = Counter((weight.format, weight.rounding) for weight in found.weights)
    return inventory._replace(
        weights=tuple(w._replace(dtype="f32") if w.name in names else w for w in inventory.weights),
        checkpoint_bytes=sum(tensor.end - tensor.start for tensor in checkpoint.tensors.values()),
        mapped_bytes=sum(math.prod(tensor.shape) * BITS[tensor.dtype] // 8 for tensor in plain),
        cast_bytes=0 if keep else 4 * sum(math.prod(weight.shape) for weight in found.weights),
        notes=(
            *inventory.notes,
            *(f"{n:,} weights are {name}; {rounding or 'taken exactly'}" for (name, rounding), n in formats.items()),
            *(_expansions(found.weights) if keep else ()),
        ),
        stored=weights,
        # Floats are no codes, and stay what they are before any recipe.
        keeps_codes=keep or not any(weight.is_quantized for weight in found.weights),
    )


def _expansions(weights: Iterable[StoredWeight]) -> list[str]:
    """What is small on disk alone, and what to do."""
    return [
        f"this machine's CPU expands {mode} to {precision} in memory: recipe int8 with `requantize` "
        "takes less there, and eval says what that costs"
        for mode, precision in expanded_modes(weights).items()
    ]


def _by_names_of(inventory: Inventory, weights: Iterable[StoredWeight]) -> tuple[StoredWeight, ...]:
    """Stacks of experts by the names that the model's class has for them."""
    of_class = {_place(weight.name): weight.name for weight in inventory.weights if len(weight.shape) == 3}
    return tuple(
        weight._replace(name=of_class.get(_place(weight.name), weight.name)) if len(weight.shape) == 3 else weight
        for weight in weights
    )


def _place(name: str) -> tuple[str, ...]:
    """The numbers in a stack's name, and what it is in its layer."""
    return (*re.findall(r"\.(\d+)\.", name), name.rpartition(".experts.")[2])


def _guesses(checkpoint: Checkpoint, inventory: Inventory) -> Read:
    """What the small tensors of files that are not here most likely hold, by the shapes of the plain model."""
    import numpy as np

    shapes = {weight.name: weight.shape for weight in inventory.weights}

    def read(name: str) -> NDArray[Any]:
        tensors, (module, _, part) = checkpoint.tensors, name.rpartition(".")
        if part == "weight_shape":
            rows, words = tensors[f"{module}.weight_packed"].shape
            return np.array(shapes.get(f"{module}.weight", (rows, words * 8)))
        if name.endswith(".quant_map"):
            return np.array(NF4, np.float32)
        if ".quant_state." in name:
            weight = name.partition(".quant_state.")[0]
            rows, columns = shapes.get(weight, (1, 2 * math.prod(tensors[weight].shape)))
            said = {
                "quant_type": name.rpartition("__")[2],
                "shape": [rows, columns],
                "blocksize": rows * columns // max(1, math.prod(tensors[f"{weight}.absmax"].shape)),
                "dtype": "float16",
            }
            if f"{weight}.nested_absmax" in tensors:
                said |= {"nested_blocksize": 256, "nested_offset": 0.0}
            return np.frombuffer(json.dumps(said).encode(), np.uint8)
        return np.ones(tensors[name].shape)

    return read


def kept_layer(weight: StoredWeight) -> PlannedLayer:
    """What a weight becomes whose codes are kept."""
    return PlannedLayer(
        name=weight.name,
        shape=weight.shape,
        num_parameters=math.prod(weight.shape),
        mode=mode_of(weight.element, (weight.scale,)) or weight.element,
        group_size=None
        if weight.element in FLOATS
        else -1
        if weight.group_size == weight.columns
        else weight.group_size,
        size_bytes=_bytes(weight),
        stored_as=weight.format if weight.is_quantized else None,
    )


def _bytes(weight: StoredWeight) -> int:
    elements, bits = math.prod(weight.shape), _BITS[weight.element]
    if weight.element in FLOATS:
        return elements * bits // 8
    num_groups = elements // weight.group_size
    if weight.level_groups:
        # A byte for each group and 16 bits for each block.
        products = num_groups + 2 * (num_groups // weight.level_groups)
        return elements * bits // 8 + products * (2 if weight.asymmetric else 1)
    scales = num_groups * _BITS[weight.scale] // 8
    if len(weight.shape) == 3 and weight.scale == "f8e4m3":
        # Every expert has a global scale of its own.
        scales += 4 * math.prod(weight.shape[:-1])
    zero_bits = _BITS[weight.zero_point or weight.element] if weight.asymmetric else 0
    return elements * bits // 8 + scales - (-num_groups * zero_bits // 8)
