"""Reports go to stdout, errors and logs to stderr; colour only where a terminal shows it and NO_COLOR is not set."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from llmcompress.report.text import count_text, size_text

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.style import StyleType
    from rich.table import Table
    from rich.text import Text

    from llmcompress.report.compression import Layer

RecordT = TypeVar("RecordT", bound="BaseModel")

_PIPE_WIDTH = 120
_ANY_WIDTH = 100_000
_QUIET = ContextVar("_QUIET", default=False)


@contextmanager
def own_volume() -> Iterator[None]:
    """What the block says about ``--quiet`` ends with it."""
    token = _QUIET.set(False)
    try:
        yield
    finally:
        _QUIET.reset(token)


def be_quiet() -> None:
    """From here on show no progress, and of a report its essential result alone."""
    _QUIET.set(True)


def is_quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return _QUIET.get()


def stdout() -> Console:
    """Return the console for reports, as wide as COLUMNS says, else as the terminal; in a pipe 120 columns."""
    from rich.console import Console

    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) else None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, soft_wrap=False, width=width)


def stderr() -> Console:
    """Return the console for progress, logs and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def write_line(text: str) -> None:
    """Write one line to stdout as it is; characters that its encoding lacks are escaped."""
    write_text(text + "\n")


def write_text(text: str) -> None:
    """Write text to stdout as it is; characters that its encoding lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def plain(record: BaseModel) -> Any:
    """Return a record as values that JSON has; model_dump would leave NaN as it is, which JSON has not."""
    return json.loads(record.model_dump_json())


def print_report(
    report: RecordT, for_people: Callable[[RecordT], None], *, as_json: bool, brief: Callable[[RecordT], str]
) -> None:
    """Print a report as JSON or for people; with ``--quiet`` the one line that matters, if there is one."""
    if as_json:
        print_json(report)
    elif not is_quiet():
        for_people(report)
    elif line := brief(report):
        write_line(line)


def print_blocks(*blocks: RenderableType | None) -> None:
    """Print tables and texts to stdout with an empty line between two; None is left out."""
    for number, block in enumerate(block for block in blocks if block is not None):
        if number:
            write_line("")
        _print_whole(stdout(), block)


def print_markdown(*tables: Table) -> None:
    """Print Markdown tables to stdout as wide as they are, with an empty line between two."""
    from rich.console import Console

    console = Console(width=_ANY_WIDTH, highlight=False)
    for number, found in enumerate(tables):
        if number:
            console.print()
        console.print(found)


def print_text(text: str | Text) -> None:
    """Print a text as it is to stdout: on a terminal wrapped between words, in a pipe on one line."""
    from rich.text import Text

    _print_whole(stdout(), Text(text) if isinstance(text, str) else text)


def print_note(label: str, text: str, style: str = "bold") -> None:
    """Print a label in bold or another style, and words that follow it, as ``print_text`` does."""
    from rich.text import Text

    print_text(Text.assemble((label, style), text))


def print_labelled(label: str, text: str, style: str = "bold") -> None:
    """Print a label and a command or a path on one line however narrow the terminal is, so that it can be copied."""
    from rich.text import Text

    stdout().print(Text.assemble((label, style), text), soft_wrap=True)


def print_json(record: BaseModel | list[Any]) -> None:
    """Print a record, or a list of plain values, as one JSON document in ASCII."""
    sys.stdout.write(json.dumps(record if isinstance(record, list) else plain(record), indent=2) + "\n")


def print_error(message: str, *, where: str = "", hint: str = "") -> None:
    """Print `error: where: message` and `hint: what to do`: a line each, on a terminal wrapped between words."""
    from rich.text import Text

    text = f"{where}: {message}" if where else message
    _print_whole(stderr(), Text("error: ", "bold red") + Text(text))
    if hint:
        _print_whole(stderr(), Text("hint: ", "bold cyan") + Text(hint))


def table(
    texts: Sequence[str], numbers: Sequence[str | Text] = (), *, one_line: Collection[str] = (), markdown: bool = False
) -> Table:
    """Return a table without rows: columns of texts, then columns of numbers aligned to the right.

    The columns named in ``one_line``, and all in Markdown, are not wrapped, however narrow the terminal is.
    """
    from rich import box
    from rich.table import Table

    empty = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD, pad_edge=markdown, show_edge=markdown)
    for name in texts:
        empty.add_column(name, overflow="fold", no_wrap=markdown or name in one_line)
    for title in numbers:
        empty.add_column(title, justify="right", overflow="fold", no_wrap=markdown or title in one_line)
    return empty


def facts_table(facts: dict[str, str]) -> Table:
    """Return names and values as two columns without lines; values are shown as they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    return table


def tell(text: str | Text, *, style: str = "", console: Console | None = None) -> None:
    """Print a line beside the report, to stderr, as ``print_text`` does to stdout; ``console``: where bars run."""
    from rich.text import Text

    shown = Text(text) if isinstance(text, str) else text
    shown.stylize_before(style)
    _print_whole(console or stderr(), shown)


def _print_whole(console: Console, block: RenderableType) -> None:
    """Print without cutting a word: tables as ``fitting`` decides, texts wrapped between words on a terminal."""
    from rich.table import Table
    from rich.text import Text

    if isinstance(block, Table):
        block = fitting(block, console)
    elif isinstance(block, str | Text):
        text = console.render_str(block) if isinstance(block, str) else block
        if console.is_terminal:
            lines = [line for part in text.split("\n", allow_blank=True) for line in wrapped(part, console.width)]
            text = Text("\n").join(lines)
        block = text
    # A word that is wider than the terminal is left to it: then it is not torn when it is copied.
    console.print(block, soft_wrap=isinstance(block, Text))


def fitting(found: Table, console: Console) -> Table | Text:
    """Decide how a table is shown where it is printed: in columns, or where a word would not fit as records.

    Columns get what they need, and what is left over in proportion to what else they could use. Numbers are not
    wrapped, nor are columns with ``no_wrap``. A record is a block of lines, a name and a value each.
    """
    needs, room = _needs(found, console)
    if room < 0:
        return _records(found, console)
    wanted = sum(whole - least for least, whole in needs)
    for column, (least, whole) in zip(found.columns, needs, strict=True):
        column.width = whole if wanted <= room else least + room * (whole - least) // wanted
    return found


def fits(found: Table) -> bool:
    """Whether a table can be shown in columns on stdout."""
    return _needs(found, stdout())[1] >= 0


def _needs(found: Table, console: Console) -> tuple[list[tuple[int, int]], int]:
    """Of each column the least width and the one that it would like; and what is left over, below 0 where it lacks."""
    from rich.measure import Measurement

    wide = console.options.update(width=_ANY_WIDTH)
    needs: list[tuple[int, int]] = []
    for column in found.columns:
        titles = [Measurement.get(console, wide, column.header)] if found.show_header else []
        cells = [Measurement.get(console, wide, cell) for cell in column.cells]
        whole = max(each.maximum for each in [*titles, *cells])
        if column.no_wrap:
            needs.append((whole, whole))
            continue
        words = [each.maximum if column.justify == "right" else each.minimum for each in cells]
        needs.append((max(words + [each.minimum for each in titles], default=0), whole))
    between = Measurement.get(console, wide, found).maximum - sum(whole for _, whole in needs)
    return needs, console.width - between - sum(least for least, _ in needs)


def _records(found: Table, console: Console) -> Text:
    """A block of lines for each row: what has no title alone, the others after their titles; no value is torn.

    Of a table without titles, such as ``facts_table``'s, each row is a name and its value.
    """
    from rich.text import Text

    def text(value: object, style: StyleType) -> Text:
        shown = value.copy() if isinstance(value, Text) else console.render_str(str(value))
        shown.stylize_before(style)
        return shown

    titles = [" ".join(text(column.header, "").plain.split()) for column in found.columns]
    rows = [
        [text(cell, column.style) for cell, column in zip(row, found.columns, strict=True)]
        for row in zip(*(column.cells for column in found.columns), strict=True)
    ]
    if not found.show_header:
        pairs = [(row[0], Text("  ").join(each for each in row[1:] if each.plain)) for row in rows]
        return Text("\n").join(_named(pairs, console.width))
    blocks = []
    for row in rows:
        pairs = [(Text(title), cell) for title, cell in zip(titles, row, strict=True) if title or cell.plain]
        blocks.append(Text("\n").join(_named(pairs, console.width)))
    return Text("\n\n").join(blocks)


def _named(pairs: Sequence[tuple[Text, Text]], width: int) -> list[Text]:
    """Lines of names and values below each other; a value without a name stands alone, in bold."""
    from rich.text import Text

    indent = max(name.cell_len for name, _ in pairs) + 2
    if indent > width // 2:
        # Beside such a name there is no room for a column of values.
        return [line for name, value in pairs for line in wrapped(Text("  ").join([name, value]), width)]
    lines = []
    for name, value in pairs:
        start = Text.assemble(name, " " * (indent - name.cell_len)) if name.plain else Text()
        if not name.plain:
            value.stylize_before("bold")
        for part in value.split("\n"):
            for piece in wrapped(part, width - start.cell_len):
                lines.append(start + piece)
                start = Text(" " * start.cell_len)
    return lines


def wrapped(text: Text, width: int) -> list[Text]:
    """Cut a text into lines between its words; a word that is wider than a line has one of its own."""
    from rich.cells import cell_len

    cuts, begin = [], 0
    for word in re.finditer(r"\S+", text.plain):
        if text.plain[begin : word.start()].strip() and cell_len(text.plain[begin : word.end()]) > width:
            begin = word.start()
            cuts.append(begin)
    lines = list(text.divide(cuts))
    for line in lines[:-1]:
        line.rstrip()
    return lines


def layers_table(layers: Iterable[Layer]) -> Table:
    """Return a table with one row for each kind of weight: format, group size, how many, parameters, bytes."""
    from llmcompress.report.compression import group_size_text, weight_kinds

    kinds = table(["Weights", "Group size"], ["Layers", "Parameters", "Share", "Size"])
    for kind in weight_kinds(layers):
        kinds.add_row(
            kind.mode,
            group_size_text(kind.group_size),
            str(kind.num_layers),
            count_text(kind.num_parameters),
            f"{kind.share:.1%}",
            size_text(kind.size_bytes),
        )
    return kinds
