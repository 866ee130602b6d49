"""`llmcompress push`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcompress.cli.console import facts_table, print_blocks, print_report, print_text, write_line
from llmcompress.cli.options import BaseModelName, Json, LicenseId, Verbose, in_panels
from llmcompress.cli.progress import watching
from llmcompress.report.text import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.report.push import PushReport


_PANELS = {
    "Repository": "private revision create_pr collection tags",
    "Content": "base_model license keep_card delete_others",
    "Checks": "dry_run force",
}


@in_panels(_PANELS)
def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    repo_id: Annotated[str | None, typer.Argument(metavar="[REPO_ID]")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository. Default: as the account has it")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it to an existing repository instead of committing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do every check, list the files and the card, and send nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Push although the quality gate is not passed or not judged; the card says so."),
    ] = False,
    delete_others: Annotated[
        bool, typer.Option("--delete-others", help="Remove every file there that is not of this model.")
    ] = False,
    keep_card: Annotated[
        bool, typer.Option("--keep-card", help="Push the README.md that is there, whoever wrote it.")
    ] = False,
    base_model: BaseModelName = None,
    license: LicenseId = None,
    collection: Annotated[
        str | None, typer.Option("--collection", metavar="SLUG", help="Put it into a collection.")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="NAME", help="Git tag for the commit; may be repeated.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="An existing branch. Default: main")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """DIR is an output directory of compress. REPO_ID is NAMESPACE/NAME or NAME; by default your BASE-RECIPE-ov.
    The token comes from HF_TOKEN or `hf auth login`, never from the command line.

    [bold]Examples[/bold]
    llmcompress push Llama-3.2-1B-Instruct-int4-ov
    llmcompress push out my-team/Llama-3.2-1B-Instruct-int4-ov --private --tag v1
    llmcompress push out somebody/model-ov --create-pr
    llmcompress push out --dry-run
    """
    from llmcompress.publishing import push_to_hub

    with watching(verbose=verbose) as watch:
        report = push_to_hub(
            directory,
            repo_id,
            private=private,
            create_pr=create_pr,
            dry_run=dry_run,
            force=force,
            delete_others=delete_others,
            keep_card=keep_card,
            base_model=base_model,
            license=license,
            collection=collection,
            tags=tags or (),
            revision=revision,
            progress=watch.report,
        )
    print_report(report, print_push, as_json=as_json, brief=lambda made: made.commit_url or made.url)


def print_push(report: PushReport) -> None:
    """Print what a push did or would do; of a dry run also every file and the card."""
    print_blocks(facts_table(_facts(report)))
    if not report.dry_run:
        return
    write_line("")
    print_blocks(_files_table(report))
    write_line("\nREADME.md\n")
    print_text(report.card.rstrip())


def _files_table(report: PushReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    files = Table.grid(padding=(0, 2))
    files.add_column(no_wrap=True)
    files.add_column(justify="right")
    files.add_column()
    for file in report.files:
        files.add_row(Text(f"  {file.path}"), size_text(file.size_bytes), file.state)
    for path in report.deleted:
        files.add_row(Text(f"  {path}"), "", "deleted")
    return files


def _facts(report: PushReport) -> dict[str, str]:
    sent = [file for file in report.files if file.state != "unchanged"]
    num_same = len(report.files) - len(sent)
    states = ["new"] if report.created else []
    if report.private is not None:
        states.append("private" if report.private else "public")
    facts = {"Repository": f"{report.url} ({', '.join(states)})"}
    if report.dry_run:
        facts["Nothing sent"] = "this is a dry run"
    if report.pull_request_url:
        facts["Pull request"] = report.pull_request_url
    if report.commit_url:
        facts["Commit"] = report.commit_url
    elif not report.dry_run:
        facts["Commit"] = "none: the repository holds exactly this already"
    same = f"; {num_same} there already" if num_same else ""
    facts["Files"] = f"{len(sent)} new or changed, {size_text(report.sent_bytes)}{same}"
    if report.commit_url:
        facts["Compared"] = f"{len(report.files)} files on the Hub, all by hash"
    for name, values in (("Deleted", report.deleted), ("Left as they are", report.kept), ("Tags", report.tags)):
        if values:
            facts[name] = ", ".join(values)
    for path, reason in report.left_out.items():
        facts[f"Without {path}"] = reason
    if report.collection:
        facts["Collection"] = report.collection
    if report.forced:
        facts["Forced"] = report.forced
    return facts
