"""What each weight became, laid out by block and by part of a block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.report.compression import LayerRecord

_FIRST_NUMBER = re.compile(r"^(?P<stack>.*?)[./](?P<block>\d+)[./](?P<part>.+)$")


class Cell(NamedTuple):
    """One or more weights: the experts of a block are one cell."""

    num_parameters: int
    size_bytes: int
    modes: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Bits per weight, scales and zero points included."""
        return 8 * self.size_bytes / self.num_parameters


class LayerGrid(NamedTuple):
    """Weights inside blocks as a grid, all others as a list."""

    blocks: tuple[str, ...]
    parts: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    """By block and part; a block need not have every part."""
    others: dict[str, Cell]


def layer_grid(layers: Sequence[LayerRecord]) -> LayerGrid:
    """Lay out layers by the first number in their names, which counts blocks in every architecture."""
    cells: dict[tuple[str, str], Cell] = {}
    others: dict[str, Cell] = {}
    found = [(_FIRST_NUMBER.match(name := _plain(layer.name)), name, layer) for layer in layers if layer.num_parameters]
    stacks = {match["stack"] for match, *_ in found if match}
    order: dict[str, tuple[str, int]] = {}
    for match, name, layer in found:
        if match is None:
            others[name] = _joined(others.get(name), layer)
            continue
        block = match["block"] if len(stacks) == 1 else f"{match['stack']}.{match['block']}"
        order[block] = (match["stack"], int(match["block"]))
        # Numbers further on count experts.
        key = (block, re.sub(r"(?<=[./])\d+(?=[./])", "*", match["part"]))
        cells[key] = _joined(cells.get(key), layer)
    return LayerGrid(
        blocks=tuple(sorted(order, key=order.__getitem__)),
        parts=tuple(sorted({part for _, part in cells})),
        cells=cells,
        others=others,
    )


def _joined(cell: Cell | None, layer: LayerRecord) -> Cell:
    mode = layer.mode if layer.group_size in (None, -1) else f"{layer.mode}, groups of {layer.group_size}"
    if cell is None:
        return Cell(layer.num_parameters, layer.size_bytes, (mode,))
    modes = cell.modes if mode in cell.modes else (*cell.modes, mode)
    return Cell(cell.num_parameters + layer.num_parameters, cell.size_bytes + layer.size_bytes, modes)


def _plain(name: str) -> str:
    """The name without what the exporter puts around it."""
    return re.sub(r"^(self\.|__module\.)?(model\.)?|(\._openvino_orig_weight|\.weight)$", "", name) or name
