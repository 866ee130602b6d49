"""Figures of matplotlib as SVG that lives inside an HTML page: colours from the page's style, no ids, no fonts."""

from __future__ import annotations

import io
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from llmcompress.system.cache import cache_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn in these, which nothing else has, and replaced by what follows the reader's light or dark.
INK, MUTED, GRID, ACCENT, FILL, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_STYLE = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    ACCENT: "var(--accent)",
    FILL: "var(--fill)",
    PAPER: "var(--paper)",
}
FONT_SIZE = 11
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co"}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def drawing(key: str, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, and matplotlib's settings for it; equal figures with equal keys become equal bytes.

    Args:
        key: Not of another figure of the same page, as ids are made from it.
        width: In inches.
        height: In inches.
    """
    # It makes its directory when it is first imported, and keeps its list of fonts there.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": FONT_SIZE,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": False,
        "grid.color": GRID,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "figure.facecolor": "none",
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Not what the user has set for figures of theirs.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)  # type: ignore[arg-type]
        # The reader's fonts show the text; that matplotlib's own lacks a character does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width, height), layout="constrained")


def svg_text(figure: Figure, label: str, tips: Mapping[str, str]) -> str:
    """The figure as an ``svg`` element.

    Args:
        label: What it shows, for those who do not see it.
        tips: By the gid of an artist, what a pointer on it shows.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(stream.getvalue())
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', stream.getvalue().decode()))
    for element in root.iter():
        # What the library styles for the whole document would style the whole page.
        for child in list(element):
            if child.tag == f"{_SVG}style":
                element.remove(child)
        name = element.get("id")
        if name is not None and name in tips:
            tip = ElementTree.Element(f"{_SVG}title")
            tip.text = tips[name]
            element.insert(0, tip)
        if name is not None and name not in referenced:
            del element.attrib["id"]
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))
        style = element.get("style")
        if style is not None:
            element.set("style", _restyled(style))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", label)
    # Inside HTML an svg element needs no namespace, and its children must have no prefix.
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
    return ElementTree.tostring(root, encoding="unicode")


def printable(text: str) -> str:
    """Text on one line without characters that XML has not, or that would turn the direction of what follows."""
    return "".join(
        " " if character.isspace() else _REPLACEMENT if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text
    )


def _restyled(style: str) -> str:
    for colour, value in _STYLE.items():
        style = style.replace(colour, value)
    return re.sub(r"font-family: [^;]+;?\s*", "", style)
