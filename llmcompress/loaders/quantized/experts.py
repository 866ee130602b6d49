"""Experts that a checkpoint holds one by one, as the stacks that the model's class multiplies by."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.packed import FOUR_BITS, ORIGINAL, PackedWeight, dequantized
from llmcompress.loaders.quantized.stored import Read, StoredWeight

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


def with_whole_stacks(weights: Iterable[StoredWeight]) -> list[StoredWeight]:
    """Put the halves of stacks together whose class multiplies by one expert after the other; others stay as they are.

    Raises:
        ModelError: The halves of a stack differ in format or shape, or one is missing.
    """
    halves: dict[str, list[StoredWeight]] = defaultdict(list)
    others = []
    for weight in weights:
        whole, _, half = weight.name.rpartition(".")
        if half in ("0", "1") and whole.endswith(".weight"):
            halves[whole].append(weight)
        else:
            others.append(weight)
    return others + [_whole(name, sorted(parts, key=lambda part: part.name)) for name, parts in halves.items()]


def _whole(name: str, halves: list[StoredWeight]) -> StoredWeight:
    first = halves[0]
    kinds = {(half.shape, half.format) for half in halves}
    if len(halves) != 2 or len(kinds) > 1:
        raise ModelError(
            f"the halves of {name} are not quantized alike: {', '.join(half.format for half in halves)}",
            where="tensors",
            hint=ORIGINAL,
        )
    num_experts, rows, columns = first.shape
    return first._replace(
        name=name,
        shape=(num_experts, 2 * rows, columns),
        parts=first.parts | halves[1].parts,
        repack=functools.partial(_repack_halves, halves),
        asymmetric=any(half.asymmetric for half in halves),
    )


def _repack_halves(halves: Sequence[StoredWeight], read: Read) -> PackedWeight:
    return halves_joined([half.repack(read) for half in halves])


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
        unrounded=functools.partial(_joined_floats, [_floats(weight) for weight in weights])
        if any(weight.unrounded for weight in weights)
        else None,
        nonfinite="; ".join(weight.nonfinite for weight in weights if weight.nonfinite),
    )


def _floats(weight: PackedWeight) -> Callable[[], NDArray[Any]]:
    """What gives them; no codes are held for what a file says more exactly."""
    return weight.unrounded or functools.partial(dequantized, weight)


def _joined_floats(parts: Sequence[Callable[[], NDArray[Any]]]) -> NDArray[Any]:
    import numpy as np

    values = [part() for part in parts]
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in values])


def _some_floats(of_all: Callable[[], NDArray[Any]], rows: NDArray[np.intp] | slice) -> NDArray[Any]:
    values = of_all()
    some: NDArray[Any] = values.reshape(-1, values.shape[-1])[rows]
    return some


def halves_joined(halves: list[PackedWeight]) -> PackedWeight:
    """Stacks on top of each other, expert by expert."""
    import numpy as np

    num_experts, _, columns = halves[0].shape
    rows = [np.arange(half.num_rows).reshape(num_experts, -1) for half in halves]
    starts = np.cumsum([0, *(half.num_rows for half in halves[:-1])])
    order = np.concatenate([each + start for each, start in zip(rows, starts, strict=True)], axis=1).reshape(-1)
    whole = joined(halves, (num_experts, order.size // num_experts, columns))
    return whole._replace(
        unrounded=None if whole.unrounded is None else functools.partial(_some_floats, whole.unrounded, order),
        codes=whole.codes[order],
        scales=whole.scales[order],
        zero_points=None if whole.zero_points is None else whole.zero_points[order],
        factors=None if whole.factors is None else whole.factors[order],
    )


def one_expert(stack: PackedWeight, number: int) -> PackedWeight:
    """One matrix of a stack."""
    rows, columns = stack.shape[-2:]
    part = slice(number * rows, (number + 1) * rows)
    return stack._replace(
        codes=stack.codes.reshape(stack.num_rows, -1)[part],
        shape=(rows, columns),
        scales=stack.scales[part],
        zero_points=None if stack.zero_points is None else stack.zero_points[part],
        factors=stack.factors if stack.factors is None or stack.factors.size == 1 else stack.factors[part],
        unrounded=None if stack.unrounded is None else functools.partial(_some_floats, stack.unrounded, part),
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
