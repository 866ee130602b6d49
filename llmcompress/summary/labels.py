"""Labels next to points: numbers and names where they cover nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcompress.summary.svg import FONT_SIZE, MUTED, printable
from llmcompress.summary.trade_offs import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

LABEL_LENGTH = 16
"""Characters of a name next to a point."""
_LABEL_SIZE = FONT_SIZE - 1

_Place = tuple[tuple[float, float], str, str]
"""Distance from the point, and which side of the text is there."""

_NEAR: tuple[_Place, ...] = (
    ((8, 0), "left", "center"),
    ((-8, 0), "right", "center"),
    ((0, 8), "center", "bottom"),
    ((0, -8), "center", "top"),
    ((6, 6), "left", "bottom"),
    ((-6, 6), "right", "bottom"),
    ((6, -6), "left", "top"),
    ((-6, -6), "right", "top"),
)
_FAR, _ANYWHERE = (
    tuple(((scale * x, scale * y), horizontal, vertical) for scale in scales for (x, y), horizontal, vertical in _NEAR)
    for scales in ((3, 5), range(2, 40))
)
"""With a line to the point."""


def place_labels(axes: Axes, points: Sequence[Point], names: Sequence[str], lines: Sequence[Bbox]) -> None:
    """Number and name where neither a point nor a line nor another label is, else the number alone.

    A label lies on no point and on no other label: where a crowd leaves no such place, the point has none, and the
    table and the pointer still name it. Bars and the front may be crossed by a number that would have no place else.
    """
    reach = 6.0
    at = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [_box(x - reach, y - reach, x + reach, y + reach) for x, y in at]
    inside = axes.get_window_extent()
    for point, name in zip(points, names, strict=True):
        number = str(point.row + 1)
        full = f"{number} {name}"
        box = (
            _placed(axes, full, point, (*_NEAR, *_FAR), (*taken, *lines), inside)
            or _placed(axes, number, point, (*_NEAR, *_FAR), (*taken, *lines), inside)
            or _placed(axes, number, point, (*_NEAR, *_ANYWHERE), taken, inside)
        )
        if box is not None:
            taken.append(box)


def _placed(
    axes: Axes, text: str, point: Point, places: Sequence[_Place], taken: Sequence[Bbox], inside: Bbox
) -> Bbox | None:
    """Write the text at the first place where it fits; what it covers there, without its line to the point."""
    label = axes.text(0, 0, text, fontsize=_LABEL_SIZE)
    size = label.get_window_extent()
    label.remove()
    x, y = axes.transData.transform((point.x, point.y))
    pixels = axes.figure.dpi / 72
    for place in places:
        (across, up), horizontal, vertical = place
        left = x + pixels * across - size.width * {"left": 0, "center": 0.5, "right": 1}[horizontal]
        bottom = y + pixels * up - size.height * {"bottom": 0, "center": 0.5, "top": 1}[vertical]
        box = _box(left, bottom, left + size.width, bottom + size.height)
        fits = box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1
        if fits and not any(box.overlaps(other) for other in taken):
            _annotate(axes, text, point, place)
            return box
    return None


def _annotate(axes: Axes, text: str, point: Point, place: _Place) -> None:
    offset, horizontal, vertical = place
    far = max(map(abs, offset)) > 10
    leader = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4} if far else None
    label = axes.annotate(
        text,
        (point.x, point.y),
        xytext=offset,
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=_LABEL_SIZE,
        zorder=4,
        arrowprops=leader,
    )
    label.set_in_layout(False)


def segments(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> list[Bbox]:
    """What a line along the axes covers, piece by piece."""
    ends = axes.transData.transform(list(zip(xs, ys, strict=True)))
    return [
        _box(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for a, b in itertools.pairwise(ends)
    ]


def _box(x0: float, y0: float, x1: float, y1: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox([[x0, y0], [x1, y1]])


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words that all begin or end with: of ``model-int4-ov`` and ``model-int8-ov`` the middle."""
    words = [re.split(r"([-_/])", name) for name in names]
    shortest = min(len(parts) for parts in words)
    first = 0
    # A separator follows each word, and one word has to stay.
    while first + 2 < shortest and len({tuple(parts[: first + 2]) for parts in words}) == 1:
        first += 2
    last = 0
    while first + last + 2 < shortest and len({tuple(parts[len(parts) - last - 2 :]) for parts in words}) == 1:
        last += 2
    return ["".join(parts[first : len(parts) - last]) for parts in words]


def cut(text: str, length: int) -> str:
    """At most so many printable characters."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"
