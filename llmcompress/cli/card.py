"""`llmcompress card`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcompress.cli.console import is_quiet, print_json, print_text, write_line
from llmcompress.cli.options import BaseModelName, Json, LicenseId, Verbose, in_panels
from llmcompress.report.file_names import BENCH_REPORT, EVAL_REPORT, MANIFEST
from llmcompress.report.text import size_text
from llmcompress.system.command_line import command_line

_PANELS = {"Content": "repo_id base_model license template", "Output": "overwrite"}


@in_panels(_PANELS)
def card(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    repo_id: Annotated[
        str | None, typer.Option("--repo-id", metavar="NAMESPACE/NAME", help="Where it will be published on the Hub.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option("--template", metavar="FILE", help="A Jinja template of yours.")
    ] = None,
    base_model: BaseModelName = None,
    license: LicenseId = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace a README.md that you wrote or changed.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """DIR is an output directory of compress. What was not measured, or was measured on other bytes, is called so.

    A template is rendered in a sandbox; docs/cards.md describes what it may use.

    [bold]Examples[/bold]
    llmcompress card model-int4-ov --repo-id acme/model-int4-ov
    llmcompress card model-int4-ov --base-model acme/model --license apache-2.0
    llmcompress card model-int4-ov --template card.md.j2
    """
    from llmcompress.publishing.card import write_card

    report = write_card(
        directory, repo_id=repo_id, template=template, base_model=base_model, license=license, overwrite=overwrite
    )
    if as_json:
        print_json(report)
        return
    if is_quiet():
        write_line(str(report.path))
        return
    state = "written" if report.written else "is the same already"
    *first, last = MANIFEST, *report.used_reports
    used = f"{', '.join(first)} and {last}" if first else last
    print_text(f"{report.path}: {state}, {size_text(report.size_bytes)}, from {used}")
    for name, reason in report.unused_reports.items():
        print_text(f"{name} is not used: {reason}")
    for name, command in ((EVAL_REPORT, "eval"), (BENCH_REPORT, "bench")):
        if name not in report.used_reports:
            measure = command_line(["llmcompress", command], [str(directory)])
            print_text(f"Not measured; {measure} puts {name} there")
