"""Reports go to stdout, errors and logs to stderr; colour only where a terminal shows it and NO_COLOR is not set."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llmcompress.report.text import count_text, size_text

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from llmcompress.report.compression import Layer

RecordT = TypeVar("RecordT", bound="BaseModel")

_PIPE_WIDTH = 120


def stdout() -> Console:
    """Return the console for reports; in a pipe it has a fixed width, so that a report does not depend on a window."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


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


def print_report(report: RecordT, for_people: Callable[[RecordT], None], *, as_json: bool) -> None:
    """Print a report as JSON or by the function that prints it for people."""
    if as_json:
        print_json(report)
    else:
        for_people(report)


def print_blocks(*blocks: RenderableType | None) -> None:
    """Print tables and texts to stdout with an empty line between two; None is left out."""
    console = stdout()
    for number, block in enumerate(block for block in blocks if block is not None):
        if number:
            console.print()
        console.print(block)


def print_labelled(label: str, text: str, style: str = "bold") -> None:
    """Print a label in bold or another style, and a text that is shown as it is, on one line to stdout."""
    from rich.text import Text

    stdout().print(Text.assemble((label, style), text), soft_wrap=True)


def print_json(record: BaseModel | list[Any]) -> None:
    """Print a record, or a list of plain values, as one JSON document in ASCII."""
    sys.stdout.write(json.dumps(record if isinstance(record, list) else plain(record), indent=2) + "\n")


def print_error(message: str, *, where: str = "", hint: str = "") -> None:
    """Print `error: where: message` and `hint: what to do`, each on one line however narrow the terminal is."""
    from rich.text import Text

    console = stderr()
    text = f"{where}: {message}" if where else message
    console.print(Text("error: ", "bold red") + Text(text), soft_wrap=True)
    if hint:
        console.print(Text("hint: ", "bold cyan") + Text(hint), soft_wrap=True)


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
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


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
