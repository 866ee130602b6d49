"""The weights of a model, summed up by what they became."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Layer(Protocol):
    """What is summed up: a ``LayerRecord``, or a layer of a forecast."""

    @property
    def mode(self) -> str:
        """Its format."""

    @property
    def group_size(self) -> int | None:
        """-1: per channel; None: no groups."""

    @property
    def num_parameters(self) -> int:
        """Its elements."""

    @property
    def size_bytes(self) -> int:
        """Its bytes, scales and zero points included."""


class WeightKind(NamedTuple):
    """All weights of one format and group size."""

    mode: str
    group_size: int | None
    num_layers: int
    num_parameters: int
    share: float
    """Of all parameters."""
    size_bytes: int


def weight_kinds(layers: Iterable[Layer]) -> list[WeightKind]:
    """One entry for each format and group size, that with the most parameters first."""
    kinds: dict[tuple[str, int | None], list[Layer]] = defaultdict(list)
    for layer in layers:
        kinds[layer.mode, layer.group_size].append(layer)
    total = sum(layer.num_parameters for members in kinds.values() for layer in members)
    found = []
    for (mode, group_size), members in kinds.items():
        parameters = sum(layer.num_parameters for layer in members)
        size_bytes = sum(layer.size_bytes for layer in members)
        found.append(
            WeightKind(mode, group_size, len(members), parameters, parameters / total if total else 0.0, size_bytes)
        )
    return sorted(found, key=lambda kind: -kind.num_parameters)


def group_size_text(group_size: int | None) -> str:
    """A group size in words; nothing where there are no groups."""
    return "" if group_size is None else "per channel" if group_size == -1 else str(group_size)
