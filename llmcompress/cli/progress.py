"""Progress for people: a bar per stage with the time left on a terminal, in a pipe a line every few seconds."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llmcompress.cli.console import is_quiet, stderr, tell
from llmcompress.cli.flags import current_flags, with_flags
from llmcompress.errors import UsageError
from llmcompress.report.text import count_text, duration_text, size_text
from llmcompress.system.progress import WARNING, Progress, Reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

    from llmcompress.loaders.environments import TransformersLayer

ResultT = TypeVar("ResultT")

WIDE = 100
"""Columns of a terminal that has room for whole bars and the time left."""
INTERVAL_VARIABLE = "LLMCOMPRESS_PROGRESS_S"
_ONE_LINE_EACH = 100
"""From so many columns on no stage's name is wrapped, about."""


class Watch(NamedTuple):
    """What a running function is given to be watched through."""

    report: Reporter
    forget: Callable[[], None]
    """Takes what was shown away again."""
    log: Callable[[str], None]
    """Takes one line that a worker wrote; shows our warnings, and the libraries' output where it was asked for."""


def _bars(console: Console) -> Bars:
    """A bar for each stage, with what it has done and how long it took."""
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.progress_bar import ProgressBar
    from rich.table import Column
    from rich.text import Text

    def whole() -> Column:
        return Column(no_wrap=True)

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_amount(int(task.completed), int(task.total or 0), str(task.fields["unit"])), no_wrap=True)

    class Time(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            if task.finished:
                return Text(_time(task.finished_time, None), no_wrap=True)
            return Text(_time(task.elapsed, task.time_remaining), no_wrap=True)

    class Bar(BarColumn):
        def render(self, task: Task) -> ProgressBar:
            # While the time left is shown, a narrow terminal has no room for more.
            is_tight = console.width < WIDE and not all(each.finished for each in bars.tasks)
            self.bar_width = 8 if is_tight else 16
            return super().render(task)

    bars = Bars(
        SpinnerColumn(finished_text="✓" if console.encoding.startswith("utf") else "*"),
        # The only column that gives way where the terminal is narrow: between its words.
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        Bar(table_column=whole()),
        Amount(whole()),
        Time(whole()),
        console=console,
        disable=is_quiet() or not console.is_terminal,
    )
    return bars


@contextmanager
def watching(*, verbose: bool) -> Iterator[Watch]:
    """Show the stages of what runs inside the block, on stderr."""
    console = stderr()
    bars = _bars(console)
    running: dict[str, TaskID] = {}
    ended: Progress | None = None

    def task_of(stage: str) -> Task:
        return bars.tasks[bars.task_ids.index(running[stage])]

    def finish(stage: str) -> None:
        task = task_of(stage)
        # A stage without a known total has done all of what it did.
        whole = task.total or max(task.completed, 1)
        bars.update(running.pop(stage), total=whole, completed=whole)
        if verbose and not console.is_terminal:
            tell(f"{stage}: {duration_text(task.finished_time or 0)}", console=console)

    def report(progress: Progress) -> None:
        nonlocal ended
        if progress == ended:
            return
        ended = None
        stage, total = progress.stage, progress.total or None
        if stage not in running:
            # What has a known end may run next to the new stage; the rest ended when this one began.
            for other in [other for other in running if task_of(other).total is None]:
                finish(other)
            running[stage] = bars.add_task(stage, total=total, unit=progress.unit)
            _keep_latest_in_view(bars)
        bars.update(running[stage], completed=progress.done, total=total, unit=progress.unit)
        if progress.done >= progress.total > 0:
            finish(stage)
            ended = progress

    def forget() -> None:
        for number in bars.task_ids:
            bars.remove_task(number)
        running.clear()

    def lines() -> list[str]:
        return [_line(stage, task_of(stage)) for stage in list(running)]

    with bars, _every_few_seconds(console, lines):
        yield Watch(report, forget, worker_lines(console, verbose=verbose))
        for stage in list(running):
            finish(stage)
        for number in bars.task_ids:
            bars.update(number, visible=True)
    sys.stderr.flush()


def _keep_latest_in_view(bars: Bars) -> None:
    """Hide the first of the stages that ended, if all would not fit on the screen: what is cut is the end."""
    lines_each = 1 if bars.console.width >= _ONE_LINE_EACH else 2
    room = max(bars.console.height // lines_each - 2, 1)
    in_view = [task for task in bars.tasks if task.visible]
    over = [task for task in in_view if task.finished][: max(len(in_view) - room, 0)]
    for task in over:
        bars.update(task.id, visible=False)


def line_interval_s() -> float:
    """Seconds between lines of progress where there is no terminal: ``LLMCOMPRESS_PROGRESS_S``, else 5.

    Raises:
        UsageError: The variable holds no positive number.
    """
    text = os.environ.get(INTERVAL_VARIABLE) or "5"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"got {text!r}; a positive number of seconds is accepted", where=INTERVAL_VARIABLE)
    return min(seconds, threading.TIMEOUT_MAX)


@contextmanager
def _every_few_seconds(console: Console, lines: Callable[[], list[str]]) -> Iterator[None]:
    """Print lines now and then where nobody sees bars: a log stays alive, and a run of a moment prints none."""
    if console.is_terminal or is_quiet():
        yield
        return
    ended, interval_s = threading.Event(), line_interval_s()

    def print_lines() -> None:
        while not ended.wait(interval_s):
            for line in lines():
                tell(line, console=console)

    printer = threading.Thread(target=print_lines, daemon=True)
    printer.start()
    try:
        yield
    finally:
        ended.set()
        printer.join()


def _line(stage: str, task: Task) -> str:
    """A stage, what it has done, how long it has taken and the time left, as far as they are known."""
    progress = Progress(stage, int(task.completed), int(task.total or 0), str(task.fields["unit"]))
    return f"{progress_text(progress)}, {_time(task.elapsed, task.time_remaining)}"


def progress_text(progress: Progress) -> str:
    """Return a stage and what it has done, where that is known."""
    stage, done, total, unit = progress
    amount = f"{done} of {total}" if unit == "steps" and total else _amount(done, total, unit)
    return f"{stage}: {amount}" if amount and done else stage


def worker_lines(console: Console, *, verbose: bool) -> Callable[[str], None]:
    """Show lines that a worker wrote: our warnings, and with ``verbose`` what libraries say."""
    # Another thread reads them.
    flags = current_flags()

    def show(line: str) -> None:
        if line.startswith(WARNING):
            tell(with_flags(line, flags), console=console)
        elif verbose:
            tell(line, style="dim", console=console)

    return show


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show warnings of ours that no worker writes, those of this process, as a worker's are shown."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            worker_lines(stderr(), verbose=False)(f"{WARNING}{record.getMessage()}")

    handler, logger = Shown(logging.WARNING), logging.getLogger("llmcompress")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def run_watched(
    function: Callable[..., ResultT],
    options: dict[str, Any] | Callable[[], dict[str, Any]],
    *,
    verbose: bool,
    stage: str = "read the configuration",
    first_import: str = "",
) -> ResultT:
    """Run a function in a worker and show its stages.

    Args:
        function: Of a module.
        options: Its keyword arguments, or what finds them out while the worker starts.
        verbose: Show what libraries say.
        stage: What goes before its own: imports.
        first_import: As of ``run_supervised``.

    Raises: as ``run_supervised``, and what finding out the options raises; nothing is shown then.
    """

    def run() -> ResultT:
        with watching(verbose=verbose) as watch:
            watch.report(Progress(stage, 0, 0))
            from llmcompress.system.process import run_supervised

            def found_out() -> dict[str, Any]:
                assert callable(options)
                try:
                    return options()
                except BaseException:
                    watch.forget()
                    raise

            given = found_out if callable(options) else options
            return run_supervised(function, given, progress=watch.report, logs=watch.log, first_import=first_import)

    return with_layers(run)


def with_layers(call: Callable[[], ResultT]) -> ResultT:
    """Call a function, again where it lacked a layer of transformers and the person at the terminal lets it in.

    Raises:
        LayerMissingError: Nobody can be asked, or the answer was no.
    """
    try:
        return call()
    except UsageError as error:
        from llmcompress.loaders.environments import LayerMissingError, layer_of, mode

        if not (isinstance(error, LayerMissingError) and error.version and mode() == "ask" and _can_ask()):
            raise
        tell(error.message)
        if not _confirmed(f"Install transformers {error.version} in the cache, for such models alone?"):
            raise
        install_watched(layer_of(error.version))
    return call()


def install_watched(layer: TransformersLayer, *, verbose: bool = False) -> None:
    """Install a layer and show that it is going on."""
    from llmcompress.loaders.layer_folders import install

    with watching(verbose=verbose) as watch:
        install(layer.requirements, progress=watch.report)


def _confirmed(question: str) -> bool:
    import typer

    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _amount(done: int, total: int, unit: str) -> str:
    """What a bar cannot say: bytes, weights, windows; a bar alone shows mere steps well enough."""
    if unit == "steps":
        return ""
    text, suffix = (size_text, "") if unit == "bytes" else (count_text, f" {unit}")
    return (f"{text(done)} of {text(total)}" if total else text(done)) + suffix


def _time(elapsed_s: float | None, left_s: float | None) -> str:
    text = duration_text(elapsed_s or 0)
    return text if left_s is None else f"{text}, {duration_text(left_s)} left"
