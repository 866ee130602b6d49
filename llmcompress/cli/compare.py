"""`llmcompress compare`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcompress.cli.console import facts_table, fits, print_blocks, print_json, table, write_text
from llmcompress.cli.options import Json, Verbose, chosen_format

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.summary import Comparison

FORMATS = ("table", "json", "csv", "markdown")


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots and details.")
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", metavar="table|json|csv|markdown", help="How to print the comparison.")
    ] = "table",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """DIR is an output directory of compress, with the reports that eval and bench have put there.

    A report of other bytes than the directory now holds is not shown; figures that cannot be compared are marked.

    The page needs no network, no server and no script. An earlier page is replaced, any other file is not.

    [bold]Examples[/bold]
    llmcompress compare model-int8-ov model-int4-ov
    llmcompress compare model-*-ov --html compare.html
    llmcompress compare model-*-ov --format csv
    """
    from llmcompress.summary import check_page_path, write_page
    from llmcompress.summary import compare as compare_directories

    form = chosen_format(output_format, FORMATS, as_json=as_json)
    if html is not None:
        check_page_path(html)
    found = compare_directories(directories)
    if html is not None:
        write_page(found, html)
    print_comparison(found, form)


def print_comparison(comparison: Comparison, form: str) -> None:
    """Print a comparison as ``table``, ``json``, ``csv`` or ``markdown``."""
    from llmcompress.summary import csv_text, markdown

    if form == "json":
        print_json(comparison)
    elif form == "csv":
        write_text(csv_text(comparison))
    elif form == "markdown":
        write_text(markdown(comparison))
    else:
        _print_tables(comparison)


def _print_tables(comparison: Comparison) -> None:
    """One column for each artifact, as many next to each other as there is room for."""
    from rich.text import Text

    from llmcompress.summary.table import lines, notes

    blocks: list[Table] = []
    for per_table in range(len(comparison.rows), 0, -1):
        blocks = _figures(comparison, per_table)
        if all(fits(figures) for figures in blocks):
            break
    else:
        blocks = [
            facts_table({"": row.name} | {line.title: line.texts[number] for line in lines(comparison)})
            for number, row in enumerate(comparison.rows)
        ]
    if comparison.failures:
        failures = table(["failed"], ["exit code"])
        failures.columns[0].style = "bold"
        failures.add_column("reason", overflow="fold")
        for failed in comparison.failures:
            failures.add_row(Text(failed.name), str(failed.exit_code), Text(failed.reason))
        blocks.append(failures)
    print_blocks(*blocks, *(Text(note) for note in notes(comparison)))


def _figures(comparison: Comparison, per_table: int) -> list[Table]:
    """Tables with a column for each artifact, so many in each."""
    from rich.text import Text

    from llmcompress.summary.table import lines

    found, made = lines(comparison), []
    for start in range(0, len(comparison.rows), per_table):
        shown = range(start, min(start + per_table, len(comparison.rows)))
        figures = table([""], [Text(comparison.rows[number].name) for number in shown], one_line=[""])
        figures.columns[0].style = "bold"
        for line in found:
            figures.add_row(line.title, *(Text(line.texts[number]) for number in shown))
        made.append(figures)
    return made
