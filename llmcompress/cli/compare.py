"""`llmcompress compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcompress.cli.options import Json, Verbose

FORMATS = ("table", "json", "csv", "markdown")


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", show_default=False, help="Also write a page with plots and details."),
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", metavar="table|json|csv|markdown", help="How to print the comparison.")
    ] = "table",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print one table of everything that was measured: size, quality, speed, memory.

    DIR is an output directory of compress, with the reports that eval and bench have put there. A report of other
    bytes than the directory now holds is not shown, and figures that cannot be compared are marked.

    The page needs no network, no server and no script. An earlier page is replaced, any other file is not.

    [bold]Examples[/bold]
    llmcompress compare model-int8-ov model-int4-ov
    llmcompress compare model-*-ov --html compare.html
    llmcompress compare model-*-ov --format csv
    """
    from llmcompress.cli.compare_view import print_comparison
    from llmcompress.errors import UsageError
    from llmcompress.summary import check_page_path, write_page
    from llmcompress.summary import compare as compare_directories

    if output_format not in FORMATS:
        raise UsageError(f"got {output_format!r}; accepted: {', '.join(FORMATS)}", where="--format")
    if as_json and output_format not in {"table", "json"}:
        raise UsageError(f"--json and --format {output_format} contradict each other", hint="leave one of them out")
    if html is not None:
        check_page_path(html)
    found = compare_directories(directories)
    if html is not None:
        write_page(found, html)
    print_comparison(found, "json" if as_json else output_format)
