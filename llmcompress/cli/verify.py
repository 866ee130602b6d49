"""`llmcompress verify`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcompress.cli.console import print_report, print_text
from llmcompress.cli.options import Json, Offline, Revision, Verbose
from llmcompress.cli.progress import watching
from llmcompress.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from llmcompress.artifact import VerifyReport


def verify(
    source: Annotated[str, typer.Argument(metavar="DIR")],
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """DIR is a directory that llmcompress wrote, a download of one, or the Hub id of one that was pushed.

    [bold]Examples[/bold]
    llmcompress verify Llama-3.2-1B-Instruct-int4-ov
    llmcompress verify out --json
    llmcompress verify my-team/Llama-3.2-1B-Instruct-int4-ov
    """
    from llmcompress import artifact

    directory = Path(source)
    if _is_hub_id(source):
        directory = _fetched(source, revision, offline, verbose=verbose)
    elif revision is not None or offline:
        raise UsageError("--revision and --offline have no effect on a directory", where=source, hint="leave them out")
    report = artifact.verify(directory)
    print_report(report, lambda found: _print(found, source), as_json=as_json, brief=_problems_text)
    if not report.ok:
        raise ArtifactError(
            f"{len(report.problems)} deviation{'s' if len(report.problems) > 1 else ''} from its manifest",
            where=source,
            hint="compress again with --overwrite, or download it again",
        )


def _problems_text(report: VerifyReport) -> str:
    return "\n".join(f"{problem.path}: {problem.text}" for problem in report.problems)


def _print(report: VerifyReport, source: str) -> None:
    for problem in report.problems:
        print_text(f"{problem.path}: {problem.text}")
    if report.ok:
        print_text(f"{source}: {report.num_files} files, all as the manifest says")


def _is_hub_id(source: str) -> bool:
    """Whether a source that is not an existing path looks like `namespace/name`; a bare name is a directory."""
    return not Path(source).exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _fetched(repo_id: str, revision: str | None, offline: bool, *, verbose: bool) -> Path:
    from llmcompress.publishing import fetch_artifact

    with watching(verbose=verbose) as watch:
        return fetch_artifact(repo_id, revision=revision, offline=offline, progress=watch.report)
