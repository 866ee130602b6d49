"""A comparison of artifacts for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.cli.console import print_json, stdout, write_text

if TYPE_CHECKING:
    from llmcompress.summary import Comparison

_COLUMN_WIDTH = 25
"""What a name and an interval take at most, about."""
_TITLE_WIDTH = 20


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
    """One column for each artifact, as many beside each other as there is room for."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmcompress.summary.table import lines, notes

    console = stdout()
    per_table = max(1, (console.width - _TITLE_WIDTH) // _COLUMN_WIDTH)
    found = lines(comparison)
    for start in range(0, len(comparison.rows), per_table):
        shown = range(start, min(start + per_table, len(comparison.rows)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("", style="bold", no_wrap=True)
        for number in shown:
            table.add_column(Text(comparison.rows[number].name), justify="right", overflow="fold")
        for line in found:
            table.add_row(line.title, *(Text(line.texts[number]) for number in shown))
        if start:
            console.print()
        console.print(table)
    if comparison.failures:
        failures = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        failures.add_column("failed", style="bold", overflow="fold")
        failures.add_column("exit code", justify="right")
        failures.add_column("reason", overflow="fold")
        for failed in comparison.failures:
            failures.add_row(Text(failed.name), str(failed.exit_code), Text(failed.reason))
        console.print()
        console.print(failures)
    for note in notes(comparison):
        console.print()
        console.print(Text(note), soft_wrap=True)
