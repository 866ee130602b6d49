"""The figures of the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from llmcompress.report.evaluation import DivergenceRecord
from llmcompress.report.text import size_text
from llmcompress.summary.labels import LABEL_LENGTH, cut, place_labels, segments, short_names
from llmcompress.summary.svg import ACCENT, FILL, INK, MUTED, PAPER, drawing, printable, svg_text
from llmcompress.summary.trade_offs import MORE_IS_BETTER, Point, TradeOff

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

AXES = {
    "size_bytes": "size",
    "decode_tokens_per_s": "decode tokens/s",
    "gain": "gain over the default",
    "perplexity": "perplexity",
    "kl_divergence": "KL divergence, nats per token",
}
_QUANTILES = {"median": "o", "p90": "s", "p99": "D", "p99.9": "^", "max": "X"}
"""Of the divergence per token, and the shape each is drawn in."""
_WIDTH = 5.0
"""Inches; 72 units each, so that text is readable where the figure is as wide as a phone."""


def trade_off_chart(trade_off: TradeOff, names: Sequence[str], label: str, key: str, *, wide: bool = False) -> str:
    """Points with their intervals, each with its row's number and, where there is room, its name; the front as steps.

    Diamonds are on the front, circles are not, the star is the reference.

    Args:
        wide: Twice as wide, with names in full; otherwise they are without what all have in common, and cut.
    """
    points = trade_off.points
    with drawing(key, 2 * _WIDTH if wide else _WIDTH, 3.9) as figure:
        axes = figure.subplots()
        x_floor = _scale(axes, "x", trade_off.x, [p.x for p in points], [p.x_low for p in points])
        y_floor = _scale(axes, "y", trade_off.y, [p.y for p in points], [p.y_low for p in points])
        lines = [line for point in points for line in _intervals(point, x_floor, y_floor)]
        for xs, ys, marker in lines:
            axes.plot(xs, ys, marker=marker, color=MUTED, linewidth=1.2, zorder=2.5)
        steps = _steps([(point.x, point.y) for point in points if point.on_front], trade_off.x)
        axes.plot(*steps, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=2)
        tips = {}
        for point in points:
            marker, size = ("*", 13) if point.is_reference else ("D", 7) if point.on_front else ("o", 7)
            (drawn,) = axes.plot(
                point.x,
                point.y,
                marker=marker,
                markersize=size,
                color=ACCENT if point.on_front else PAPER,
                markeredgecolor=ACCENT if point.on_front else INK,
                zorder=3,
                linestyle="none",
            )
            gid = f"point-{point.row}"
            drawn.set_gid(gid)
            across, up = point_texts(trade_off, point)
            tips[gid] = (
                f"{point.row + 1} {printable(names[point.row])}: {AXES[trade_off.x]} {across}, {AXES[trade_off.y]} {up}"
            )
        axes.margins(0.14)
        axes.set_xlabel(AXES[trade_off.x])
        axes.set_ylabel(AXES[trade_off.y])
        figure.draw_without_rendering()
        covered = [box for xs, ys in (steps, *(line[:2] for line in lines)) for box in segments(axes, xs, ys)]
        shown = [names[point.row] for point in points]
        short = [cut(name, LABEL_LENGTH) for name in short_names(shown)]
        place_labels(axes, points, [printable(name) for name in shown] if wide else short, covered)
        return svg_text(figure, label, tips)


def point_texts(trade_off: TradeOff, point: Point) -> tuple[str, str]:
    """The figures of a point in words, across and up."""
    if trade_off.x == "size_bytes":
        across = size_text(point.x)
    else:
        spread = "" if point.x_low is None else f" ({point.x_low:,.4g} to {point.x_high:,.4g})"
        across = f"{point.x:,.4g}{spread}"
    if point.is_reference:
        return across, "the reference"
    # As in the table.
    form = ".4g" if trade_off.y == "perplexity" else ".3g"
    interval = "" if point.y_low is None or point.y_high is None else f" [{point.y_low:{form}}, {point.y_high:{form}}]"
    return across, f"{point.y:{form}}{interval}"


def distribution_chart(lost: Mapping[str, DivergenceRecord], label: str, key: str) -> str:
    """Histogram and quantiles of the divergence per token for each row, on one logarithmic axis.

    Args:
        lost: By the row's number and name.
    """
    histograms = [record.kl_histogram for record in lost.values() if record.kl_histogram]
    edges = histograms[0].edges if histograms else ()
    values = {name: quantiles(record) for name, record in lost.items()}
    finite = [value for found in values.values() for value in found.values() if 0 < value < math.inf]
    low = min([*finite, *edges[:1], 1e-3]) / 2
    high = max([*finite, 10 * low]) * 1.5
    with drawing(key, _WIDTH, 0.75 + 0.62 * len(lost)) as figure:
        axes = figure.subplots()
        for position, (name, record) in enumerate(lost.items()):
            base = -float(position)
            if record.kl_histogram is not None:
                counts = record.kl_histogram.counts
                bounds = [low, *record.kl_histogram.edges, high]
                highest = max(counts) or 1
                heights = [base + 0.55 * count / highest for count in counts]
                shown = [min(max(bound, low), high) for bound in bounds]
                axes.fill_between(shown, base, [*heights, heights[-1]], step="post", color=FILL, linewidth=0)
            axes.axhline(base, color=MUTED, linewidth=0.6)
            for quantile, value in values[name].items():
                axes.plot(
                    min(max(value, low), high), base, _QUANTILES[quantile], color=INK, markersize=5,
                    markerfacecolor=INK if quantile in ("median", "max") else PAPER,
                )  # fmt: skip
            axes.text(0, base + 0.6, cut(name, 2 * LABEL_LENGTH), transform=axes.get_yaxis_transform(), va="bottom")
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(0.4 - len(lost), 1.0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _format_log(axes.xaxis, low, high, _plain_number)
        axes.set_xlabel("KL divergence of a token, nats")
        return svg_text(figure, label, {})


def quantiles(record: DivergenceRecord) -> dict[str, float]:
    """Quantiles of the divergence per token, by their names."""
    values = (record.kl_median, record.kl_p90, record.kl_p99, record.kl_p999, record.kl_max)
    return dict(zip(_QUANTILES, values, strict=True))


def latency_chart(runs: Sequence[Sequence[float]], limit_s: float, label: str, key: str) -> str:
    """Time of each token after the first: the median of the repetitions as a line, their range as a band.

    Args:
        runs: Seconds ``[repetitions, tokens]``.
        limit_s: Upper end of the axis, the same for all that are to be compared by eye.
    """
    import numpy as np

    times = np.asarray(runs, dtype=np.float64) * 1e3
    tokens = np.arange(2, times.shape[1] + 2)
    with drawing(key, _WIDTH, 2.0) as figure:
        axes = figure.subplots()
        if len(times) > 1:
            axes.fill_between(tokens, times.min(axis=0), times.max(axis=0), color=FILL, linewidth=0)
        axes.plot(tokens, np.median(times, axis=0), color=ACCENT, linewidth=1.4)
        axes.set_ylim(0, limit_s * 1e3)
        axes.set_xlim(tokens[0], max(tokens[-1], tokens[0] + 1))
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("new token")
        axes.set_ylabel("ms")
        return svg_text(figure, label, {})


def _intervals(point: Point, x_floor: float, y_floor: float) -> list[tuple[list[float], list[float], str]]:
    """Ends of the bars of a point, and the marker of their ends; nothing reaches below what an axis shows."""
    found = []
    if point.x_low is not None and point.x_high is not None and math.isfinite(point.x_high):
        found.append(([max(point.x_low, x_floor), point.x_high], [point.y, point.y], "|"))
    if point.y_low is not None and point.y_high is not None and math.isfinite(point.y_high):
        found.append(([point.x, point.x], [max(point.y_low, y_floor), point.y_high], "_"))
    return found


def _steps(front: Sequence[tuple[float, float]], x: str) -> tuple[list[float], list[float]]:
    """The border of what the front beats, as corners."""
    points = sorted(front)
    corners = points[:1]
    for (x_before, y_before), (x_after, y_after) in itertools.pairwise(points):
        corner = (x_before, y_after) if x in MORE_IS_BETTER else (x_after, y_before)
        corners += [corner, (x_after, y_after)]
    return [corner[0] for corner in corners], [corner[1] for corner in corners]


def _scale(axes: Axes, side: str, figure: str, values: Sequence[float], lows: Sequence[float | None]) -> float:
    """Choose and label one axis; returns the least value that it can show."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis: Axis = axes.xaxis if side == "x" else axes.yaxis
    set_scale = axes.set_xscale if side == "x" else axes.set_yscale
    positive = [value for value in values if value > 0]
    text = _size if figure == "size_bytes" else _plain_number
    if figure == "kl_divergence" and positive and min(values) <= 0:
        # The reference is at zero, which a logarithm has not.
        threshold = 10.0 ** math.floor(math.log10(min(positive)))
        set_scale("symlog", linthresh=threshold, linscale=0.5)
        _format_log(axis, threshold, max(positive), text, zero=True)
        axes.set_ylim(bottom=-threshold / 3)
        return 0.0
    if positive and min(values) > 0 and max(values) > 8 * min(values):
        set_scale("log")
        _format_log(axis, min(values), max(values), text)
        return min([*positive, *(low for low in lows if low and low > 0)]) / 2
    axis.set_major_locator(MaxNLocator(4 if side == "x" else 5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    return -math.inf


def _format_log(axis: Axis, low: float, high: float, text: Callable[[float], str], *, zero: bool = False) -> None:
    """Few ticks at round numbers: three a decade where there are few decades, one or fewer where there are many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades[:: 2 if len(decades) > 7 else 1] for step in steps]
    axis.set_major_locator(FixedLocator([0.0, *ticks] if zero else ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _size(value: float) -> str:
    return size_text(max(value, 0))


def _plain_number(value: float) -> str:
    return f"{value:,.6g}"
