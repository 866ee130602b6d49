"""Stacks of experts: which constants of a graph are which parts of a parameter in torch, and which experts were called.

transformers keeps the experts of a layer in one tensor ``[experts, rows, columns]``, which the exporter cuts: into the
halves of a gated layer, or into single experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.model import parameter_name

if TYPE_CHECKING:
    import torch


class Piece(NamedTuple):
    """A part of a stack, as the graph has it."""

    stack: str
    """Name of the parameter."""
    part: tuple[int | slice, ...]
    is_transposed: bool

    def of(self, stack: torch.Tensor) -> torch.Tensor:
        """The piece of a tensor of the stack's shape."""
        piece = stack[self.part]
        return piece.transpose(-2, -1) if self.is_transposed else piece

    @property
    def expert(self) -> int | None:
        """The one that it is of; None: of all."""
        first = self.part[0]
        return first if isinstance(first, int) else None


def pieces(graph: Any, constants: Collection[str], parameters: Mapping[str, torch.Tensor]) -> dict[str, Piece]:
    """The pieces of stacks among constants of an uncompressed graph, by the constants' names.

    Args:
        graph: The original's.
        constants: Names of weights.
        parameters: By name; stacks in f32.
    """
    stacks = {name: parameter for name, parameter in parameters.items() if parameter.ndim == 3}
    found = {}
    for op in graph.get_ops() if stacks else ():
        name = op.get_friendly_name()
        if op.get_type_name() == "Constant" and name in constants and parameter_name(name) not in parameters:
            piece = _piece(op, stacks)
            if piece is not None:
                found[name] = piece
    return found


def routers(parameters: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Names of the matrices that choose among a stack's experts: a row for each, in the same module."""
    stacks = [(name.rsplit(".", 2)[0], len(each)) for name, each in parameters.items() if each.ndim == 3]
    matrices = {name: len(each) for name, each in parameters.items() if each.ndim == 2}
    return frozenset(
        name
        for module, num_experts in stacks
        for name, num_rows in matrices.items()
        if num_rows == num_experts and name.startswith(f"{module}.")
    )


def _piece(constant: Any, stacks: Mapping[str, torch.Tensor]) -> Piece | None:
    import numpy as np
    import torch

    values = torch.from_numpy(constant.get_data(dtype=np.float32).copy())
    module = constant.get_friendly_name().removeprefix("__module.").removeprefix("self.").split("/")[0]
    # Where the name tells nothing the values do.
    for name in sorted(stacks, key=lambda each: not each.startswith(module)):
        stack = stacks[name]
        for part, is_transposed in itertools.product(_parts(tuple(stack.shape), tuple(values.shape)), (False, True)):
            piece = Piece(name, part, is_transposed)
            found = piece.of(stack)
            if found.shape == values.shape and found.flatten()[0] == values.flatten()[0] and torch.equal(found, values):
                return piece
    return None


def _parts(stack: tuple[int, ...], piece: tuple[int, ...]) -> Iterator[tuple[int | slice, ...]]:
    """What of a stack may have as many values: whole experts or all of them, cut along one axis or in turn."""
    experts: Iterator[int | slice] = iter(range(stack[0]) if len(piece) == 2 else (slice(None),))
    num_values = stack[1] * stack[2]
    count = num_values // max(piece[-1] * piece[-2], 1) if len(piece) in (2, 3) else 0
    if count < 1 or num_values != count * piece[-1] * piece[-2]:
        return
    every = slice(None)
    for expert in experts:
        if count == 1:
            yield (expert,)
        for number in range(count if count > 1 else 0):
            for size, place in ((stack[1] // count, 0), (stack[2] // count, 1)):
                for cut in (slice(number * size, (number + 1) * size), slice(number, None, count)):
                    yield (expert, cut, every) if place == 0 else (expert, every, cut)
