"""`llmcompress compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcompress.cli.options import Json, Verbose


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print one table of everything that was measured: size, quality, speed, memory.

    DIR is an output directory of compress, with the reports that eval and bench have put there. A report of other
    bytes than the directory now holds is not shown.

    [bold]Examples[/bold]
    llmcompress compare model-int8-ov model-int4-ov
    """
    from llmcompress.cli.compare_view import print_comparison
    from llmcompress.cli.console import plain, print_json
    from llmcompress.comparison import summary

    rows = [summary(directory) for directory in directories]
    if as_json:
        print_json([plain(row) for row in rows])
    else:
        print_comparison(rows)
