"""What is paid for what: size or speed against quality, and the front of those that nothing else beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from llmcompress.report.estimate import Estimate
from llmcompress.report.record import Record
from llmcompress.summary.comparability import Basis
from llmcompress.summary.rows import Row

Cost = Literal["size_bytes", "decode_tokens_per_s", "gain"]
MORE_IS_BETTER = frozenset({"decode_tokens_per_s", "gain"})
Loss = Literal["perplexity", "kl_divergence"]


SAME_SIZE = 1.001
"""Sizes of less than this ratio are one size: a few headers, or a longer name, make no better model."""


class Point(Record):
    """One row in one trade-off; the ends are None where there is no interval."""

    row: int
    x: float
    x_low: float | None
    x_high: float | None
    y: float
    y_low: float | None
    y_high: float | None
    on_front: bool
    """No other point is as good in both and better in one, by the measured values."""
    is_reference: bool = False
    """Its divergence from itself is zero by definition and was not measured."""


class TradeOff(Record):
    """Points that may stand on the same two axes."""

    x: Cost
    y: Loss
    bases: tuple[str, ...]
    """Marks of what the points have in common."""
    points: tuple[Point, ...]


def find_trade_offs(rows: Sequence[Row], bases: Sequence[Basis]) -> tuple[TradeOff, ...]:
    """Every pair of axes on which at least two rows may stand; what is not finite is left out."""
    by_kind = {kind: [basis for basis in bases if basis.kind == kind] for kind in ("perplexity", "kl_divergence")}
    speeds = [basis for basis in bases if basis.kind == "speed"]
    found = [_trade_off("size_bytes", "perplexity", (basis,), _sizes(rows), _perplexities(rows, basis, bases))
             for basis in by_kind["perplexity"]]  # fmt: skip
    for basis in by_kind["kl_divergence"]:
        lost = _divergences(rows, basis)
        found.append(_trade_off("size_bytes", "kl_divergence", (basis,), _sizes(rows), lost))
        found += [
            _trade_off("decode_tokens_per_s", "kl_divergence", (basis, speed), _rates(rows, speed), lost)
            for speed in speeds
        ]
    return tuple(trade_off for trade_off in found if len(trade_off.points) > 1)


def pareto_front(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each pair of costs is on the front: none is as low in both and lower in one. Equal pairs share it.

    One sweep over the sorted pairs (Kung, Luccio and Preparata 1975).
    """
    on_front = [False] * len(costs)
    best: tuple[float, float] | None = None
    for number in sorted(range(len(costs)), key=costs.__getitem__):
        pair = costs[number]
        if best is None or pair[1] < best[1] or pair == best:
            on_front[number] = True
            best = pair
    return on_front


def pruned_and_beaten(rows: Sequence[Row], trade_offs: Sequence[TradeOff]) -> list[tuple[Row, Row]]:
    """Pruned models, each with the one that loses least of those that are whole and no larger, if it loses less."""
    found = []
    for trade_off in trade_offs:
        if (trade_off.x, trade_off.y) != ("size_bytes", "kl_divergence"):
            continue
        whole = [point for point in trade_off.points if rows[point.row].manifest.pruning is None]
        for point in trade_off.points:
            if rows[point.row].manifest.pruning is None:
                continue
            better = [each for each in whole if each.x <= SAME_SIZE * point.x and _high(each) < _low(point)]
            if better:
                found.append((rows[point.row], rows[min(better, key=lambda each: each.y).row]))
    return found


def _high(point: Point) -> float:
    return point.y if point.y_high is None else point.y_high


def _low(point: Point) -> float:
    return point.y if point.y_low is None else point.y_low


def _trade_off(
    x: Cost, y: Loss, bases: tuple[Basis, ...], across: dict[int, Estimate], up: dict[int, Estimate]
) -> TradeOff:
    both = sorted(across.keys() & up.keys())
    known = [row for row in both if math.isfinite(across[row].value) and math.isfinite(up[row].value)]
    sign = -1.0 if x in MORE_IS_BETTER else 1.0
    costs = {row: sign * across[row].value for row in known}
    if x == "size_bytes":
        costs = _as_one_size(costs)
    front = pareto_front([(costs[row], up[row].value) for row in known])
    measured = {row for basis in bases for row in basis.rows if basis.kind == y}
    return TradeOff(
        x=x,
        y=y,
        bases=tuple(basis.mark for basis in bases),
        points=tuple(
            Point(
                row=row,
                x=across[row].value,
                x_low=across[row].low,
                x_high=across[row].high,
                y=up[row].value,
                y_low=up[row].low,
                y_high=up[row].high,
                on_front=on_front,
                is_reference=row not in measured,
            )
            for row, on_front in zip(known, front, strict=True)
        ),
    )


def _as_one_size(sizes: dict[int, float]) -> dict[int, float]:
    """Each size as the least of those that are the same as it."""
    found: dict[int, float] = {}
    least = -math.inf
    for row in sorted(sizes, key=sizes.__getitem__):
        least = least if sizes[row] <= least * SAME_SIZE else sizes[row]
        found[row] = least
    return found


def _sizes(rows: Sequence[Row]) -> dict[int, Estimate]:
    return {number: _exactly(row.manifest.size_bytes) for number, row in enumerate(rows)}


def _perplexities(rows: Sequence[Row], basis: Basis, bases: Sequence[Basis]) -> dict[int, Estimate]:
    """With the interval of the change against the reference, where there is one.

    All read the same text: how hard that is makes most of a perplexity's own interval, and is the same for all.
    """
    references = {number for other in bases if other.kind == "kl_divergence" for number in other.references}
    found = {}
    for number in basis.rows:
        report = rows[number].evaluation
        assert report is not None
        own, lost = report.worst.perplexity.perplexity, report.worst.divergence
        if lost is not None and report.reference is not None:
            against, ratio = report.reference.perplexity.perplexity.value, lost.perplexity_ratio
            low, high = (None if end is None else against * end for end in (ratio.low, ratio.high))
            own = Estimate(value=own.value, standard_error=None, low=low, high=high)
        elif number in references:
            own = _exactly(own.value)
        found[number] = own
    return found


def _divergences(rows: Sequence[Row], basis: Basis) -> dict[int, Estimate]:
    zero = {number: _exactly(0) for number in basis.references}
    return zero | {number: lost.kl_divergence for number in basis.rows if (lost := rows[number].divergence)}


def _rates(rows: Sequence[Row], basis: Basis) -> dict[int, Estimate]:
    """Median rates; the interval is the range of the repetitions."""
    found = {}
    for number, case in zip(basis.rows, basis.cases, strict=True):
        benchmark = rows[number].benchmark
        rate = benchmark.cases[case].decode_tokens_per_s if benchmark else None
        if rate is not None:
            several = len(rate.values) > 1
            found[number] = Estimate(
                value=rate.p50,
                standard_error=None,
                low=min(rate.values) if several else None,
                high=max(rate.values) if several else None,
            )
    return found


def _exactly(value: float) -> Estimate:
    return Estimate(value=float(value), standard_error=None, low=None, high=None)
