"""Progress of `llmcompress run` for people: bars on a terminal, lines of a log in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.cli.console import is_quiet, stderr, tell
from llmcompress.cli.progress import line_interval_s, progress_text, watching, worker_lines
from llmcompress.report.text import duration_text
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from llmcompress.runner import Event


class Seen(NamedTuple):
    """What a run is watched through."""

    watch: Callable[[Event], None]
    report: Reporter
    """For the look at all jobs, before the first one."""
    log: Callable[[str], None]


@contextmanager
def run_watched(*, verbose: bool) -> Iterator[Seen]:
    """Show on stderr what runs where, how far it is and the time left: bars on a terminal, lines of a log in a pipe."""
    console = stderr()
    if is_quiet():
        yield Seen(lambda event: None, lambda progress: None, worker_lines(console, verbose=verbose))
    elif console.is_terminal:
        with _bars(console) as (watch, report):
            yield Seen(watch, report, worker_lines(console, verbose=verbose))
    else:
        with watching(verbose=verbose) as before:
            yield Seen(_log(console), before.report, before.log)
    sys.stderr.flush()


def _log(console: Console) -> Callable[[Event], None]:
    began: dict[str, float] = {}
    told: dict[str, float] = {}
    interval_s = line_interval_s()

    def watch(event: Event) -> None:
        now = time.monotonic()
        if event.kind == "progress":
            if event.progress is None or now - told.get(event.task, began.get(event.task, now)) < interval_s:
                return
            told[event.task] = now
        if event.kind == "begin":
            began[event.task] = now
        where = f" on {event.where}" if event.where else ""
        words = {
            "progress": progress_text(event.progress) if event.progress else "",
            "begin": f"begins{where}",
            "end": f"done in {duration_text(now - began.get(event.task, now))}",
            "failed": f"FAILED: {event.text}",
            "lost": f"lost{where}, will be done again: {event.text}",
        }[event.kind]
        left = f", about {duration_text(event.left_s)} left" if event.left_s and event.kind == "end" else ""
        line = f"{time.strftime('%H:%M:%S')} [{event.num_done}/{event.num_steps}] {event.task}: {words}{left}"
        tell(line, console=console)

    return watch


@contextmanager
def _bars(console: Console) -> Iterator[tuple[Callable[[Event], None], Reporter]]:
    """A bar of the whole run, and one for each task that is running."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[details]}", markup=False, table_column=Column(overflow="fold")),
        console=console,
        transient=True,
    )
    whole = bars.add_task("look at the jobs", total=None, details="")
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
            details=duration_text(time.monotonic() - started) + left,
        )
        if event.kind in ("begin", "progress") and event.task not in running:
            running[event.task] = bars.add_task(event.task, total=None, details=event.where)
        if event.kind == "progress" and event.progress is not None:
            step = event.progress
            bars.update(
                running[event.task],
                completed=step.done,
                total=step.total or None,
                details=f"{step.stage}, on {event.where}" if event.where else step.stage,
            )
        if event.kind in ("end", "failed", "lost"):
            known = running.pop(event.task, None)
            if known is not None:
                bars.remove_task(known)
            words = {"end": "done", "failed": f"FAILED: {event.text}", "lost": f"lost with {event.where}, again"}
            tell(f"{event.task}: {words[event.kind]}", console=console)

    with bars:
        yield watch, report
