"""`llmcompress push`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcompress.cli.options import Json, Verbose


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    repo_id: Annotated[str | None, typer.Argument(metavar="[REPO_ID]", show_default=False)] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", show_default=False, help="Of a new repository. Default: as the account has it"
        ),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it to an existing repository instead of committing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do every check, list the files and the card, and send nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Push although the quality gate is not passed or was not judged.")
    ] = False,
    delete_others: Annotated[
        bool, typer.Option("--delete-others", help="Remove every file there that is not of this model.")
    ] = False,
    keep_card: Annotated[
        bool, typer.Option("--keep-card", help="Push the README.md that is there, whoever wrote it.")
    ] = False,
    collection: Annotated[
        str | None, typer.Option("--collection", metavar="SLUG", show_default=False, help="Put it into a collection.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="NAME", show_default=False, help="Git tag for the commit; may be repeated."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", show_default=False, help="An existing branch. Default: main")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Publish an output on the Hugging Face Hub in one commit, with its evidence.

    DIR is an output directory of compress. REPO_ID is NAMESPACE/NAME or NAME; by default your BASE-RECIPE-ov.
    The token comes from HF_TOKEN or `hf auth login`, never from the command line.

    [bold]Examples[/bold]
    llmcompress push Llama-3.2-1B-Instruct-int4-ov
    llmcompress push out my-team/Llama-3.2-1B-Instruct-int4-ov --private --tag v1
    llmcompress push out somebody/model-ov --create-pr
    llmcompress push out --dry-run
    """
    from llmcompress.cli.bars import watching
    from llmcompress.cli.console import print_json
    from llmcompress.cli.push_view import print_push
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
            collection=collection,
            tags=tag or (),
            revision=revision,
            progress=watch.report,
        )
    if as_json:
        print_json(report)
    else:
        print_push(report)
