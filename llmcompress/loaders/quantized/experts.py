"""Experts that a checkpoint holds one by one, as the stacks that the model's class multiplies by."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.packed import FOUR_BITS, ORIGINAL, PackedWeight
from llmcompress.loaders.quantized.stored import Read, StoredWeight

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
_PLACES = {
    "gate_proj": "gate_up_proj.0",
    "w1": "gate_up_proj.0",
    "up_proj": "gate_up_proj.1",
    "w3": "gate_up_proj.1",
    "down_proj": "down_proj",
    "w2": "down_proj",
}
"""The stack of each of an expert's layers, and its half of one that has two."""
_INDICES = (".g_idx", ".weight_g_idx")


def stacked(weights: Iterable[StoredWeight], read: Read) -> list[StoredWeight]:
    """Put the experts among some weights together; all others stay as they are.

    Raises:
        ModelError: Experts of one layer differ in shape or format, one is missing, or their columns are not in order.
    """
    stacks: dict[str, dict[int, StoredWeight]] = defaultdict(dict)
    others = []
    for weight in weights:
        match = _EXPERT.fullmatch(weight.name)
        if match is None or match[3] not in _PLACES:
            others.append(weight)
        else:
            stacks[f"{match[1]}.{_PLACES[match[3]]}"][int(match[2])] = weight
    return others + [_stack(name, experts, read) for name, experts in sorted(stacks.items())]


def _stack(name: str, experts: dict[int, StoredWeight], read: Read) -> StoredWeight:
    first = experts[min(experts)]
    kinds = {(weight.shape, weight.format, weight.group_size) for weight in experts.values()}
    if sorted(experts) != list(range(len(experts))) or len(kinds) > 1:
        raise ModelError(
            f"the experts of {name} are not all quantized alike: "
            + (f"{max(experts) + 1 - len(experts):,} are missing" if len(kinds) == 1 else f"{len(kinds)} kinds"),
            where="safetensors",
            hint=ORIGINAL,
        )
    parts = frozenset[str]().union(*(weight.parts for weight in experts.values()))
    for part in parts:
        if part.endswith(_INDICES) and _is_shuffled(read(part)):
            raise ModelError(
                f"the columns of {name} are in another order for each expert, which one multiplication cannot have",
                where="safetensors",
                hint="take a checkpoint that was quantized without act-order (desc_act: false)",
            )
    return first._replace(
        name=name,
        shape=(len(experts), *first.shape),
        parts=parts,
        repack=functools.partial(_repack, [experts[number] for number in range(len(experts))]),
        asymmetric=any(weight.asymmetric for weight in experts.values()),
    )


def _is_shuffled(index: Any) -> bool:
    import numpy as np

    return bool((np.diff(index) < 0).any())


def _repack(experts: Sequence[StoredWeight], read: Read) -> PackedWeight:
    return joined([weight.repack(read) for weight in experts], (len(experts), *experts[0].shape))


def joined(weights: Sequence[PackedWeight], shape: tuple[int, ...]) -> PackedWeight:
    """Put the rows of some weights of one format one after another into one of this shape."""
    import numpy as np

    if len({weight.zero_points is None for weight in weights}) > 1:
        weights = [_unsigned(weight) for weight in weights]
    zeros = [weight.zero_points for weight in weights if weight.zero_points is not None]
    factors = [np.broadcast_to(weight.factors, weight.num_rows) for weight in weights if weight.factors is not None]
    return weights[0]._replace(
        codes=np.concatenate([weight.codes.reshape(weight.num_rows, -1) for weight in weights]),
        shape=shape,
        scales=np.concatenate([weight.scales for weight in weights]),
        zero_points=np.concatenate(zeros) if zeros else None,
        factors=np.concatenate(factors) if factors else None,
        rounding=max(weight.rounding for weight in weights),
        nonfinite="; ".join(weight.nonfinite for weight in weights if weight.nonfinite),
    )


def _unsigned(weight: PackedWeight) -> PackedWeight:
    """The reverse of ``signed``: codes without sign and their middle as zero points."""
    import numpy as np

    if weight.zero_points is not None:
        return weight
    middle = 8 if weight.element in FOUR_BITS else 128
    moved = weight.codes ^ np.uint8(0x88 if middle == 8 else middle)
    zeros = np.full(weight.scales.shape, middle, np.uint8)
    return weight._replace(codes=moved, element="u4" if middle == 8 else "u8", zero_points=zeros)
