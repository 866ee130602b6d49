"""What the sections of the page show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llmcompress.report.benchmark import BenchCase, shape_text
from llmcompress.report.compression import LayerRecord
from llmcompress.report.record import EnvironmentRecord
from llmcompress.report.text import size_text
from llmcompress.summary.charts import (
    AXES,
    distribution_chart,
    latency_chart,
    point_texts,
    quantiles,
    trade_off_chart,
)
from llmcompress.summary.comparison import Comparison
from llmcompress.summary.labels import short_names
from llmcompress.summary.rows import Row
from llmcompress.summary.svg import printable

KINDS = {"perplexity": "perplexity", "kl_divergence": "KL divergence", "speed": "speed"}
_FIRST_NUMBER = re.compile(r"^(?P<stack>.*?)[./](?P<block>\d+)[./](?P<part>.+)$")
_AROUND = re.compile(r"^(self\.|__module\.)?(model\.)?|(\._openvino_orig_weight|\.weight|/\w+::\w+/\w+)$")
_BIT_LEVELS = (2.6, 3.6, 4.7, 6.5, 8.7, 12.0)
"""Ends of the shades of the heat map of bits."""
_SHADES = 6


def trade_off_figures(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A figure for each trade-off, and its numbers."""
    from markupsafe import Markup

    names = [row.name for row in comparison.rows]
    for number, found in enumerate(comparison.trade_offs):
        shown = [names[point.row] for point in found.points]
        points = list(zip(found.points, short_names(shown), strict=True))
        front = [f"{point.row + 1} {name}" for point, name in points if point.on_front]
        title = f"{AXES[found.x].capitalize()} against {KINDS[found.y]}"
        # Where there are figures of several kinds, which of them.
        several = [basis for basis in comparison.bases if len(comparison.bases_of(basis.kind)) > 1]
        title += "".join(f" [{basis.mark}]" for basis in several if basis.mark in found.bases)
        label = f"{title} of {len(points)} models; on the front: {', '.join(front)}"
        yield {
            "title": title,
            "chart": Markup(trade_off_chart(found, names, printable(label), f"trade-off-{number}")),
            "front": front,
            "bases": found.bases,
            "left_out": [str(row + 1) for row in range(len(names)) if row not in {point.row for point in found.points}],
            "axes": (AXES[found.x], AXES[found.y]),
            "rows": [
                (f"{point.row + 1} {names[point.row]}", *point_texts(found, point), point.on_front)
                for point in found.points
            ],
            "perplexity": found.y == "perplexity",
            "speed": found.x == "decode_tokens_per_s",
            "has_reference": any(point.is_reference for point in found.points),
        }


def distribution_figures(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A figure of the divergence per token for each basis, and its quantiles."""
    from markupsafe import Markup

    for number, basis in enumerate(comparison.bases_of("kl_divergence")):
        lost = {
            f"{row + 1} {comparison.rows[row].name}": record
            for row in basis.rows
            if (record := comparison.rows[row].divergence)
        }
        label = "Distribution of the KL divergence per token; the same numbers are in the table below"
        yield {
            "basis": basis,
            "chart": Markup(distribution_chart(lost, label, f"distribution-{number}")),
            "without_histogram": [name for name, record in lost.items() if record.kl_histogram is None],
            "names": list(quantiles(next(iter(lost.values())))),
            "rows": [
                (name, (record.kl_divergence.value, *quantiles(record).values())) for name, record in lost.items()
            ],
        }


def latency_figures(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Figures of the time per token for each basis of speed, on one scale."""
    from markupsafe import Markup

    for basis in comparison.bases_of("speed"):
        members = [
            (number, comparison.rows[number], case)
            for number, position in zip(basis.rows, basis.cases, strict=True)
            if (benchmark := comparison.rows[number].benchmark) and (case := benchmark.cases[position])
        ]
        # By one benchmark, run by run.
        in_turn = len({row.benchmark.measured.created for _, row, _ in members if row.benchmark}) == 1
        limit = max((case.tpot_s.p99 for *_, case in members if case.tpot_s), default=0.0) * 1.25
        charts = []
        for number, row, case in members:
            runs = _runs(row, case)
            if runs and limit:
                label = f"Time of each new token of {row.name}, {shape_text(case)}"
                text = latency_chart(runs, limit, printable(label), f"latency-{basis.mark}-{number}")
                charts.append({"name": f"{number + 1} {row.name}", "chart": Markup(text), "case": case})
        yield {"basis": basis, "charts": charts, "members": members, "in_turn": in_turn}


def _runs(row: Row, case: BenchCase) -> list[tuple[float, ...]]:
    """Seconds of each token after the first, one run after the other; all as one where they cannot be told apart."""
    if case.tpot_s is None or row.benchmark is None:
        return []
    values, steps = case.tpot_s.values, case.new_tokens - 1
    if steps * row.benchmark.spec.repetitions != len(values):
        return [values]
    return [values[start : start + steps] for start in range(0, len(values), steps)]


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
    return _AROUND.sub("", name) or name


def heat_map(row: Row) -> dict[str, Any]:
    """Bits and bytes of each weight of one model, with shades from 0 up."""
    grid = layer_grid(row.manifest.layers)
    modes: dict[str, list[int]] = {}
    for cell in (*grid.cells.values(), *grid.others.values()):
        count_and_size = modes.setdefault(" and ".join(cell.modes), [0, 0])
        count_and_size[0] += 1
        count_and_size[1] += cell.size_bytes
    largest = max((cell.size_bytes for cell in grid.cells.values()), default=1)
    return {
        "name": row.name,
        "recipe": row.manifest.recipe.name,
        "blocks": grid.blocks,
        "parts": grid.parts,
        "bits": _cells(grid, lambda cell: (f"{cell.bits:.2f}", sum(cell.bits > level for level in _BIT_LEVELS))),
        "bytes": _cells(grid, lambda cell: (size_text(cell.size_bytes), round(_SHADES * cell.size_bytes / largest))),
        "others": [
            (name, f"{cell.bits:.2f}", size_text(cell.size_bytes), " and ".join(cell.modes))
            for name, cell in grid.others.items()
        ],
        "modes": [(mode, count, size_text(size)) for mode, (count, size) in sorted(modes.items())],
    }


def _cells(grid: LayerGrid, text_and_shade: Any) -> list[tuple[str, list[tuple[str, int]]]]:
    return [
        (
            block,
            [text_and_shade(cell) if (cell := grid.cells.get((block, part))) else ("", 0) for part in grid.parts],
        )
        for block in grid.blocks
    ]


def environments(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each environment once, with what was made or measured in it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        reports: Mapping[str, EnvironmentRecord | None] = {
            "compressed": row.manifest.environment,
            "evaluated": row.evaluation.environment if row.evaluation else None,
            "benchmarked": row.benchmark.environment if row.benchmark else None,
        }
        for deed, environment in reports.items():
            if environment is not None:
                key = (environment.cpu, environment.platform, environment.num_threads,
                       tuple(sorted(environment.versions.items())))  # fmt: skip
                entry = found.setdefault(key, {"record": environment, "deeds": {}})
                entry["deeds"].setdefault(deed, []).append(row.name)
    return list(found.values())
