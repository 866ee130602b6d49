"""A plan's jobs before, while and after they run, for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.cli.bars import watching
from llmcompress.cli.console import stderr, stdout
from llmcompress.progress import Progress, Reporter
from llmcompress.wording import duration_text, size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from llmcompress.runner import Event, Outlook, RunReport

NOT_MEASURED = "not measured"


class Seen(NamedTuple):
    """What a run is watched through."""

    watch: Callable[[Event], None]
    report: Reporter
    """For the look at all jobs, before the first one."""
    log: Callable[[str], None] | None


@contextmanager
def run_watched(*, verbose: bool) -> Iterator[Seen]:
    """Show on stderr what runs where, how far it is and the time left: bars on a terminal, lines of a log in a pipe."""
    console = stderr()

    def log(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True, style="dim")

    if console.is_terminal:
        with _bars(console) as (watch, report):
            yield Seen(watch, report, log if verbose else None)
    else:
        with watching(verbose=verbose) as before:
            yield Seen(_log(console), before.report, before.log)
    sys.stderr.flush()


def _log(console: Console) -> Callable[[Event], None]:
    began: dict[str, float] = {}

    def watch(event: Event) -> None:
        if event.kind == "progress":
            return
        now = time.monotonic()
        if event.kind == "begin":
            began[event.task] = now
        where = f" on {event.where}" if event.where else ""
        words = {
            "begin": f"begins{where}",
            "end": f"done in {duration_text(now - began.get(event.task, now))}",
            "failed": f"FAILED: {event.text}",
            "lost": f"lost{where}, will be done again: {event.text}",
        }[event.kind]
        left = f", about {duration_text(event.left_s)} left" if event.left_s and event.kind == "end" else ""
        line = f"{time.strftime('%H:%M:%S')} [{event.num_done}/{event.num_steps}] {event.task}: {words}{left}"
        console.print(line, markup=False, soft_wrap=True)

    return watch


@contextmanager
def _bars(console: Console) -> Iterator[tuple[Callable[[Event], None], Reporter]]:
    """A bar of the whole run, and one for each task that is running."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[beside]}", markup=False),
        console=console,
        transient=True,
    )
    whole = bars.add_task("look at the jobs", total=None, beside="")
    running: dict[str, TaskID] = {}
    started = time.monotonic()

    def report(progress: Progress) -> None:
        bars.update(whole, description=progress.stage, completed=progress.done, total=progress.total or None)

    def watch(event: Event) -> None:
        left = f", about {duration_text(event.left_s)} left" if event.left_s else ""
        bars.update(
            whole,
            description=f"{event.num_done} of {event.num_steps} steps",
            completed=event.num_done,
            total=event.num_steps,
            beside=duration_text(time.monotonic() - started) + left,
        )
        if event.kind in ("begin", "progress") and event.task not in running:
            running[event.task] = bars.add_task(event.task, total=None, beside=event.where)
        if event.kind == "progress" and event.progress is not None:
            step = event.progress
            bars.update(
                running[event.task],
                completed=step.done,
                total=step.total or None,
                beside=f"{step.stage}, on {event.where}" if event.where else step.stage,
            )
        if event.kind in ("end", "failed", "lost"):
            known = running.pop(event.task, None)
            if known is not None:
                bars.remove_task(known)
            words = {"end": "done", "failed": f"FAILED: {event.text}", "lost": f"lost with {event.where}, again"}
            bars.console.print(f"{event.task}: {words[event.kind]}", markup=False, soft_wrap=True)

    with bars:
        yield watch, report


def print_outlook(jobs: Sequence[Outlook]) -> None:
    """Print one line for each job, and the sums."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("job", overflow="fold")
    table.add_column("to do", overflow="fold")
    for name in ("size", "memory", "disk", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        if job.failure is not None:
            table.add_row(job.name, Text(f"cannot be done: {job.failure.message}", "red"))
            continue
        steps = f"{', '.join(job.steps)} ({job.reason})" if job.steps else "nothing: it is done"
        steps += "" if job.fits else "  NOT ENOUGH memory or disk here"
        table.add_row(
            job.name,
            steps,
            _size(job.size_bytes),
            _size(job.min_memory_bytes),
            _size(job.disk_bytes),
            "" if not job.steps else NOT_MEASURED if job.duration_s is None else duration_text(job.duration_s),
        )
    stdout().print(table)
    todo = [job for job in jobs if job.steps and job.failure is None]
    known = [job.duration_s for job in todo if job.duration_s is not None]
    facts = [
        f"{len(todo)} of {len(jobs)} jobs to do",
        f"at most {size_text(max((job.min_memory_bytes or 0 for job in todo), default=0))} of memory at once",
        f"{size_text(sum(job.disk_bytes or 0 for job in todo))} of disk",
        f"{duration_text(sum(known))}" if len(known) == len(todo) else f"time {NOT_MEASURED}",
    ]
    stdout().print("; ".join(facts), markup=False, soft_wrap=True)


def print_run(report: RunReport) -> None:
    """Print one line for each job: what this run made, what was there already, or the reason of a failure."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("job", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in report.rows:
        if row.failure is not None:
            outcome, words = Text("FAILED", "bold red"), f"{row.failure.step}: {row.failure.message}"
        elif row.made:
            outcome, words = Text("done"), ", ".join(row.made)
        else:
            outcome, words = Text("was done"), ", ".join(row.kept)
        words += f"; {row.note}" if row.note else ""
        table.add_row(row.name, outcome, Text(words))
    stdout().print(table)


def _size(num_bytes: int | None) -> str:
    return "" if num_bytes is None else size_text(num_bytes)
