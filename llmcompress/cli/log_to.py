"""`--log-to`: the figures of a report to an experiment tracker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from llmcompress.cli.console import print_labelled
from llmcompress.cli.options import check_choice
from llmcompress.errors import WriteError

if TYPE_CHECKING:
    from llmcompress.report.benchmark import BenchReport
    from llmcompress.report.evaluation import EvalReport
    from llmcompress.spec.plan import Tracker

LogTo = Annotated[
    str | None,
    typer.Option(
        "--log-to",
        metavar="TRACKER",
        help="Also log the figures to mlflow, trackio, wandb or tensorboard: on this machine, unless its variables say "
        "otherwise.",
    ),
]


def chosen_tracker(log_to: str | None) -> Tracker | None:
    """Return the tracker that was asked for, if any.

    Raises:
        UsageError: There is no such tracker.
        ResourceError: Its extra is not installed.
    """
    if log_to is None:
        return None
    from llmcompress.publishing.trackers import require_tracker
    from llmcompress.spec.plan import Tracker

    check_choice("--log-to", log_to, get_args(Tracker))
    return require_tracker(log_to)


def log_reports(
    reports: Sequence[EvalReport | BenchReport], sources: Sequence[str], tracker: Tracker | None, *, tell: bool
) -> WriteError | None:
    """Log a run for each report, named after its source; ``tell`` says where.

    Returns:
        Why the tracker did not take the figures, to be raised when all else is said; None: it took them.
    """
    if tracker is None:
        return None
    from llmcompress.publishing.trackers import log_figures

    for report, source in zip(reports, sources, strict=True):
        try:
            place = log_figures(report, tracker, name=Path(source).resolve().name if Path(source).exists() else source)
        except WriteError as error:
            return error
        if tell:
            print_labelled("Logged to ", f"{tracker}: {place}" if place else tracker)
    return None
