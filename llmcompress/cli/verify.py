"""`llmcompress verify`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcompress.cli.options import Json, Verbose


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Hash every file of an output again and name each deviation from its manifest.

    DIR is a directory that llmcompress wrote, or a download of one.

    [bold]Examples[/bold]
    llmcompress verify Llama-3.2-1B-Instruct-int4-ov
    llmcompress verify out --json
    """
    from llmcompress import artifact
    from llmcompress.cli.console import print_json, write_line
    from llmcompress.errors import ArtifactError

    report = artifact.verify(directory)
    if as_json:
        print_json(report)
    else:
        for problem in report.problems:
            write_line(f"{problem.path}: {problem.text}")
        if report.ok:
            write_line(f"{directory}: {report.num_files} files, all as the manifest says")
    if not report.ok:
        raise ArtifactError(
            f"{len(report.problems)} deviation{'s' if len(report.problems) > 1 else ''} from its manifest",
            where=str(directory),
            hint="compress again with --overwrite, or download it again",
        )
