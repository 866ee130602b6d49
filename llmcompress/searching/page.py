"""What a search found as one HTML page: size against KL divergence, where the bytes went, and each weight's formats."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from llmcompress.report.estimate import interval_text
from llmcompress.report.search import SearchReport, WeightChoice
from llmcompress.report.text import size_text
from llmcompress.summary.charts import trade_off_chart
from llmcompress.summary.page import Filters, interval_below, put_page, rendered
from llmcompress.summary.trade_offs import Point, TradeOff

NUM_SHADES = 6
DECADES = 4
"""Of the KL divergence, from the largest down, that shades tell apart."""


def write_search_page(report: SearchReport, path: str | Path) -> Path:
    """Write the page by one rename; an earlier page of ours is replaced.

    Raises:
        UsageError: There is something else at ``path``, or no directory for it.
        WriteError: The disk refuses; an earlier page is still there.
    """
    return put_page(search_page(report), path)


def search_page(report: SearchReport) -> str:
    """The page as text: without network and script, as that of a comparison."""
    from markupsafe import Markup

    filters: Filters = {"size": size_text, "interval": interval_text, "interval_below": interval_below}
    formats = list(dict.fromkeys(name for each in report.weights for name in each.predicted))
    largest = max(max(each.predicted.values(), default=0.0) for each in report.weights)
    return rendered(
        Path(__file__).parent,
        filters,
        report=report,
        chart=Markup(_chart(report)),
        formats=formats,
        rows=[(each.name, [_cell(each, name, largest) for name in formats]) for each in report.weights],
        kinds=_kinds(report),
    )


class _Cell(NamedTuple):
    """What a weight loses in a format."""

    text: str
    shade: int
    is_chosen: bool


def _cell(weight: WeightChoice, name: str, largest: float) -> _Cell:
    lost = weight.predicted.get(name)
    if lost is None:
        return _Cell("", 0, is_chosen=False)
    decades = math.log10(lost / largest) if lost > 0 else -math.inf
    shade = round(NUM_SHADES * max(0.0, 1 + decades / DECADES))
    return _Cell(f"{lost:.1e}", shade, is_chosen=name == weight.format)


def _kinds(report: SearchReport) -> list[tuple[str, int, int, float]]:
    """Formats of the plan: how many weights have it, their bytes, and what they lose."""
    counts = Counter(each.format for each in report.weights)
    found = []
    for name in sorted(counts):
        of_format = [each for each in report.weights if each.format == name]
        lost = sum(each.kl_divergence for each in of_format)
        found.append((name, counts[name], sum(each.size_bytes for each in of_format), lost))
    return found


def _chart(report: SearchReport) -> str:
    """Contenders as measured, and the front as predicted, as SVG."""
    measured = [(each.name, each.size_bytes, each.kl_divergence) for each in report.contenders]
    measured += [(each.directory, each.size_bytes, each.kl_divergence) for each in report.further]
    shown = [(name, size, lost.value, lost.low, lost.high) for name, size, lost in measured]
    shown += [("predicted", each.size_bytes, each.kl_divergence, None, None) for each in report.front]
    points = tuple(
        Point(row=row, x=size, x_low=None, x_high=None, y=lost, y_low=low, y_high=high, on_front=row >= len(measured))
        for row, (_, size, lost, low, high) in enumerate(shown)
    )
    trade_off = TradeOff(x="size_bytes", y="kl_divergence", bases=(), points=points)
    return trade_off_chart(trade_off, [name for name, *_ in shown], "Size against KL divergence", "search", wide=True)
