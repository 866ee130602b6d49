"""One self-contained HTML page: no network, no script, readable on a phone, in the dark and without colour."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.artifact import write_errors
from llmcompress.errors import UsageError
from llmcompress.report.benchmark import rate_text
from llmcompress.report.text import size_text
from llmcompress.summary.commands import commands
from llmcompress.summary.comparison import Comparison
from llmcompress.summary.sections import (
    KINDS,
    distribution_figures,
    environments,
    heat_map,
    latency_figures,
    trade_off_figures,
)
from llmcompress.summary.svg import printable
from llmcompress.summary.table import NOT_MEASURED, Line, lines, notes
from llmcompress.system.files import replace_file

if TYPE_CHECKING:
    from markupsafe import Markup

MARK = '<meta name="generator" content="llmcompress compare">'
"""What a page of ours has near its start, and nothing of the user's."""
_START = 2000
_SPREAD = re.compile(r"([^\[]+) (\[[^\]]+, [^\]]+\]|± [\d,.]+)((?: \[\w+\])?)")


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Write the page by one rename; an earlier page of ours is replaced.

    Raises:
        UsageError: There is something else at ``path``, or no directory for it.
        WriteError: The disk refuses; an earlier page is still there.
    """
    return put_page(page(comparison), path)


def put_page(text: str, path: str | Path) -> Path:
    """As ``write_page``, for any page that holds ``MARK``."""
    target = check_page_path(path)
    with write_errors(target):
        replace_file(target, text.encode("utf-8", "replace"))
    return target


def check_page_path(path: str | Path) -> Path:
    """Whether a page may be written there; the absolute path.

    Raises:
        UsageError: There is something else, or no directory for it.
        WriteError: What is there cannot be read.
    """
    target = Path(path).absolute()
    elsewhere = "choose another file for the page"
    if target.is_dir():
        raise UsageError("is a directory", where=str(path), hint=f"name a file, such as {Path(path) / 'compare.html'}")
    if target.exists() and not target.is_file():
        raise UsageError("is no regular file", where=str(path), hint=elsewhere)
    if not target.parent.is_dir():
        raise UsageError("its directory does not exist", where=str(path), hint=f"mkdir -p {Path(path).parent}")
    if target.exists():
        with write_errors(target), target.open("rb") as file:
            if MARK.encode() not in file.read(_START):
                raise UsageError("exists and is no page of llmcompress: it is left as it is", where=str(path),
                                 hint=elsewhere)  # fmt: skip
    return target


Filters = Mapping[str, Callable[..., Any]]
"""What templates may call, by name."""


def rendered(room: Path, filters: Filters, **values: object) -> str:
    """The page of a room, by its ``page.html.j2``: with the mark and the style of all pages, and these values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(room),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names of models, layers and files are not ours.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(filters)
    template = environment.get_template("page.html.j2")
    return template.render(mark=Markup(MARK), style=Markup(page_style()), **values)


def page(comparison: Comparison) -> str:
    """The page as text: the same comparison gives the same text."""
    filters: Filters = {
        "size": size_text,
        "rate": rate_text,
        "breakable": _breakable,
        "classes": _classes,
        "interval_below": interval_below,
    }
    rows = comparison.rows
    table = lines(comparison)
    return rendered(
        Path(__file__).parent,
        filters,
        comparison=comparison,
        lines=table,
        folds=list(dict.fromkeys(line.group for line in table if line.folded)),
        notes=notes(comparison),
        trade_offs=list(trade_off_figures(comparison)),
        distributions=list(distribution_figures(comparison)),
        latencies=list(latency_figures(comparison)),
        heat_maps=[heat_map(row) for row in rows],
        environments=environments(rows),
        commands=commands(comparison),
        kinds=KINDS,
        members={basis.mark: [rows[number].name for number in basis.rows] for basis in comparison.bases},
        not_measured=NOT_MEASURED,
    )


def page_style() -> str:
    """The style sheet of all pages."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def _classes(line: Line) -> str:
    """Of a column, and of its cells."""
    return f"{line.group}{' more' * line.folded}{' number' * line.numeric}"


def interval_below(text: str) -> Markup:
    """A value whose interval or deviation stands below it."""
    from markupsafe import Markup

    found = _SPREAD.fullmatch(printable(text))
    return Markup('{} <span class="interval">{}</span>{}').format(*found.groups()) if found else Markup.escape(text)


def _breakable(name: str) -> Markup:
    """A dotted name that may be broken into lines after each dot and underscore."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.findall(r"[^._]*[._]?", printable(name)))
