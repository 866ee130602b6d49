"""`llmcompress run`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcompress.cli.console import (
    is_quiet,
    plain,
    print_blocks,
    print_json,
    print_report,
    print_text,
    table,
    write_line,
)
from llmcompress.cli.options import Address, Json, Offline, Verbose, check_executor_options, in_panels
from llmcompress.cli.progress import watching
from llmcompress.errors import LlmcompressError, ResourceError
from llmcompress.report.text import duration_text, size_text
from llmcompress.system.progress import Progress

if TYPE_CHECKING:
    from llmcompress.runner import Failure, Outlook, RunReport

PAGE = "compare.html"


_PANELS = {"Jobs": "only output_dir dry_run", "Where they run": "executor address"}


@in_panels(_PANELS)
def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the jobs, with predicted size, memory, disk and time.")
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where they are written, instead of where the plan says."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="MODEL/RECIPE", help="Only these jobs; * allowed; may be repeated."),
    ] = None,
    executor: Annotated[str, typer.Option("--executor", metavar="local|ray", help="Where the jobs run.")] = "local",
    address: Address = None,
    offline: Offline = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What is done is left as it is: the same command goes on after an interruption, and tries failed jobs again.
    A job that fails does not stop the others. The exit code is that of the first job that failed.

    [bold]Examples[/bold]
    llmcompress run plan.yaml --dry-run
    llmcompress run plan.yaml
    llmcompress run plan.yaml --only 'llama-1b/*' --only qwen/int4
    llmcompress run plan.yaml --executor ray --address head:6379
    """
    from llmcompress.cli.run_progress import run_watched
    from llmcompress.runner import outlook, run_plan
    from llmcompress.spec.plan import load_plan

    check_executor_options(executor, address)
    loaded = load_plan(plan)
    common = {"output_dir": output_dir, "only": only or (), "executor": executor, "offline": offline}
    if dry_run:
        with watching(verbose=verbose) as watch:
            watch.report(Progress("read the plan", 0, 0))
            jobs = outlook(loaded, **common, progress=watch.report, logs=watch.log)  # type: ignore[arg-type]
        if as_json:
            print_json([plain(job) for job in jobs])
        else:
            print_outlook(jobs)
        _refuse_impossible(jobs, plan, here=executor == "local")
        return
    with run_watched(verbose=verbose) as seen:
        report = run_plan(
            loaded,
            **common,  # type: ignore[arg-type]
            address=address,
            watch=seen.watch,
            progress=seen.report,
            logs=seen.log,
        )
    print_report(report, print_run, as_json=as_json, brief=_run_line)
    _compare(report, quiet=as_json or is_quiet())
    failed = [(row.name, row.failure) for row in report.rows if row.failure is not None]
    _end_with(failed, len(report.rows), plan, "failed")


def _refuse_impossible(jobs: tuple[Outlook, ...], plan: Path, *, here: bool) -> None:
    """End with the error that the run would end with, as far as it is known beforehand."""
    failed = [(job.name, job.failure) for job in jobs if job.failure is not None]
    _end_with(failed, len(jobs), plan, "cannot be done")
    short = [job.name for job in jobs if not job.fits]
    if here and short:
        raise ResourceError(
            f"this machine has not enough free memory or disk for {', '.join(short)}",
            where=str(plan),
            hint="close other programs, free disk space, or leave these out",
        )


def _end_with(failed: list[tuple[str, Failure]], num_jobs: int, plan: Path, verb: str) -> None:
    """Raise the first failure, with its exit code, where there is one."""
    if not failed:
        return
    name, first = failed[0]
    error = LlmcompressError(
        f"{len(failed)} of {num_jobs} jobs {verb}; the first: {name}: {first.message}",
        where=str(plan),
        hint=first.hint or "the same command does only what failed and what is new",
    )
    error.exit_code = first.exit_code
    raise error


def _compare(report: RunReport, *, quiet: bool) -> None:
    """Compare what was measured: on the terminal, and on a page in the output directory."""
    from llmcompress.artifact import MANIFEST
    from llmcompress.cli.compare import print_comparison
    from llmcompress.summary import FailedRow, compare, write_page

    made = [Path(row.directory) for row in report.rows if (Path(row.directory) / MANIFEST).is_file()]
    if not made:
        return
    failures = [
        FailedRow(name=row.name, reason=row.failure.message, exit_code=row.failure.exit_code)
        for row in report.rows
        if row.failure is not None
    ]
    comparison = compare(made, failures)
    page = write_page(comparison, Path(report.output) / PAGE)
    if not quiet:
        print_comparison(comparison, "table")
        write_line(f"Page: {page}")


NOT_MEASURED = "not measured"


def print_outlook(jobs: Sequence[Outlook]) -> None:
    """Print one line for each job, and the sums."""
    from rich.text import Text

    numbers = ["size", "memory", "disk", "time"]
    found = table(["job", "to do"], numbers, one_line=numbers)
    for job in jobs:
        if job.failure is not None:
            found.add_row(job.name, Text(f"cannot be done: {job.failure.message}", "red"))
            continue
        steps = f"{', '.join(job.steps)} ({job.reason})" if job.steps else "nothing: it is done"
        steps += "" if job.fits else "  NOT ENOUGH memory or disk here"
        found.add_row(
            job.name,
            steps,
            _size(job.size_bytes),
            _size(job.min_memory_bytes),
            _size(job.disk_bytes),
            "" if not job.steps else NOT_MEASURED if job.duration_s is None else duration_text(job.duration_s),
        )
    print_blocks(found)
    todo = [job for job in jobs if job.steps and job.failure is None]
    known = [job.duration_s for job in todo if job.duration_s is not None]
    facts = [
        f"{len(todo)} of {len(jobs)} jobs to do",
        f"at most {size_text(max((job.min_memory_bytes or 0 for job in todo), default=0))} of memory at once",
        f"{size_text(sum(job.disk_bytes or 0 for job in todo))} of disk",
        f"{duration_text(sum(known))}" if len(known) == len(todo) else f"time {NOT_MEASURED}",
    ]
    print_text("; ".join(facts))


def print_run(report: RunReport) -> None:
    """Print one line for each job: what this run made, what was there already, or the reason of a failure."""
    from rich.text import Text

    found = table(["job", "outcome", ""], one_line=["job", "outcome"])
    for row in report.rows:
        if row.failure is not None:
            outcome, words = Text("FAILED", "bold red"), f"{row.failure.step}: {row.failure.message}"
        elif row.made:
            outcome, words = Text("done"), ", ".join(row.made)
        else:
            outcome, words = Text("was done"), ", ".join(row.kept)
        words += f"; {row.note}" if row.note else ""
        found.add_row(row.name, outcome, Text(words))
    print_blocks(found)


def _run_line(report: RunReport) -> str:
    """Return how many jobs are done, and where."""
    num_done = sum(row.failure is None for row in report.rows)
    return f"{num_done} of {len(report.rows)} jobs done in {report.output}"


def _size(num_bytes: int | None) -> str:
    return "" if num_bytes is None else size_text(num_bytes)
