"""A report's figures in an experiment tracker: a run for each report, which stays here unless its variables send it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from llmcompress.errors import ResourceError, UsageError, WriteError, one_line
from llmcompress.hub.account import staying_offline
from llmcompress.report.benchmark import BenchCase, BenchReport, BenchSetting, Ratio, Stats, shape_text
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import BackendRecord, Check, DamagePart, EvalReport, TaskScore, TextRecord
from llmcompress.report.record import EnvironmentRecord, Provenance, Record, StageTime
from llmcompress.spec.plan import Tracker
from llmcompress.system.library_call import library_call

PROJECT = "llmcompress"
"""Of the tracker, where its variables name none; MLflow calls it an experiment."""

_MODULES: dict[Tracker, tuple[str, ...]] = {
    # Its default store is an SQLite file, for which mlflow-skinny alone does not suffice.
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
}


class Figures(NamedTuple):
    """What a tracker is given of a report."""

    name: str
    """Of the run."""
    created: str
    """When the run was measured: UTC, ISO 8601."""
    settings: dict[str, str]
    """What was measured, how and where, and what that comes to in a word."""
    numbers: dict[str, float]
    """By their places in the report, with slashes between; lists by what names their entries."""


def require_tracker(tracker: str) -> Tracker:
    """Refuse a tracker before anything slow.

    Raises:
        UsageError: There is no such tracker.
        ResourceError: Its extra is not installed.
    """
    for known in get_args(Tracker):
        if known == tracker:
            missing = [name for name in _MODULES[known] if importlib.util.find_spec(name) is None]
            if missing:
                raise ResourceError(
                    f"{', '.join(missing)} is not installed, and figures for {tracker} need it",
                    hint=f'pip install "llmcompress[{tracker}]"',
                )
            return known  # type: ignore[no-any-return]
    raise UsageError(f"got {tracker!r}; accepted: {', '.join(get_args(Tracker))}", where="`tracker`")


@library_call
def log_figures(report: EvalReport | BenchReport, tracker: Tracker, *, name: str | None = None) -> Path | None:
    """Log a report's figures to an experiment tracker, as one run of the project ``llmcompress``.

    Nothing leaves this machine unless the tracker's own variables ask for it: ``MLFLOW_TRACKING_URI``,
    ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL``, ``WANDB_MODE=online``. They say where files go as well
    (``TRACKIO_DIR``, ``WANDB_DIR``, ``TENSORBOARD_LOGGING_DIR``), and ``MLFLOW_EXPERIMENT_NAME`` and ``WANDB_PROJECT``
    name another project.

    Args:
        report: Of ``evaluate``, or one of those of ``benchmark``.
        tracker: ``mlflow``, ``trackio``, ``wandb`` or ``tensorboard``: each an extra.
        name: Of the model, for the run's name; by default what the report calls it.

    Returns:
        The file or directory that holds the run; None where it was sent elsewhere.

    Raises:
        UsageError: There is no such tracker.
        ResourceError: Its extra is not installed.
        WriteError: The tracker did not take the figures.
    """
    log = {"mlflow": _to_mlflow, "trackio": _to_trackio, "wandb": _to_wandb, "tensorboard": _to_tensorboard}[
        require_tracker(tracker)
    ]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return log(figures(report, name=name))
    except Exception as error:  # a tracker can fail in any way: its server, its database, a full disk
        raise WriteError(
            f"it did not take the figures: {type(error).__name__}: {one_line(error, 300)}",
            where=tracker,
            hint="the report itself is complete; look at the tracker's variables and its directory",
        ) from error


def figures(report: EvalReport | BenchReport, *, name: str | None = None) -> Figures:
    """Return what a tracker is given of a report; ``name`` is the model's."""
    numbers = {_clean(place): number for place, number in _numbers(report)}
    settings: dict[str, object] = {field: getattr(report.spec, field) for field in type(report.spec).model_fields}
    if report.spec.profile is not None:
        settings["profile"] = report.spec.profile.name
    if isinstance(report, EvalReport):
        kind, model = "eval", report.model.provenance.id or report.model.provenance.architecture
        settings |= {"dataset": report.text.dataset, "num_scored_tokens": report.text.num_scored_tokens}
        settings |= {"verdict": report.verdict, "gate": report.gate.status}
        settings["manifest_sha256"] = report.model.manifest_sha256
        if report.backends:
            # They are those of the first of the backends.
            twice = ("model/perplexity/", "divergence/")
            numbers = {place: number for place, number in numbers.items() if not place.startswith(twice)}
    else:
        kind, model = "bench", report.source
        settings |= {"manifest_sha256": report.manifest_sha256, "compared_with": report.compared_with}
    settings |= {"model": name or model, "cpu": report.environment.cpu, **report.environment.versions}
    return Figures(
        f"{name or model} {kind}",
        report.measured.created,
        {field: _text(value) for field, value in settings.items() if value is not None and value != ()},
        numbers,
    )


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _numbers(record: Record) -> Iterator[tuple[str, float]]:
    """Each number of a record with its place: of an estimate with its interval, of repetitions without their values."""
    for field, value in record:
        found: Iterator[tuple[str, float]] = iter(())
        if isinstance(value, bool | int | float) and field != "schema_version":
            yield field, float(value)
        elif isinstance(value, Estimate):
            ends = {field: value.value, f"{field}_low": value.low, f"{field}_high": value.high}
            yield from ((place, number) for place, number in ends.items() if number is not None)
        elif isinstance(value, Stats):
            found = iter([("mean", value.mean), ("p50", value.p50), ("p90", value.p90), ("p99", value.p99)])
        elif isinstance(value, Record) and not isinstance(value, Provenance | EnvironmentRecord | TextRecord):
            found = _numbers(value)
        elif isinstance(value, tuple):
            found = (
                (f"{label}/{place}", number)
                for each in value
                if isinstance(each, Record) and (label := _label(each))
                for place, number in _numbers(each)
            )
        yield from ((f"{field}/{place}", number) for place, number in found)


def _label(record: Record) -> str | None:
    """What tells a list's entry from the others; None where its numbers are no figures."""
    match record:
        case BackendRecord():
            return record.backend
        case DamagePart():
            return record.part
        case TaskScore():
            return f"{record.task}/{record.metric}"
        case Check():
            return record.name
        case StageTime():
            return record.stage
        case BenchSetting():
            return _device(record)
        case BenchCase():
            return f"{_device(record)}/{shape_text(record)}"
        case Ratio():
            return f"{record.case}/{record.figure}"
        case _:
            return None


def _device(record: BenchSetting | BenchCase) -> str:
    return record.device + (f"_{record.threads}_threads" if record.threads else "")


def _clean(name: str) -> str:
    """A name that every tracker takes as it is."""
    return re.sub(r"[^\w\-./]", "_", name)


def _to_mlflow(found: Figures) -> Path | None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if not (os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")):
        mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=found.name, nested=mlflow.active_run() is not None):
        mlflow.log_params({_clean(field): value for field, value in found.settings.items()})
        mlflow.log_metrics(found.numbers)
    scheme, _, path = mlflow.get_tracking_uri().partition("://")
    return Path(path.removeprefix("/") if scheme == "sqlite" else path) if scheme in ("sqlite", "file") else None


def _to_trackio(found: Figures) -> Path | None:
    is_sent = bool(os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
    # It asks the Hub for the account's name, also for a run that stays here.
    with contextlib.nullcontext() if is_sent else staying_offline():
        import trackio
        from trackio.utils import TRACKIO_DIR

        run = trackio.init(
            project=PROJECT,
            name=found.name,
            config=found.settings,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        run.log(found.numbers)
        trackio.finish()
    return None if is_sent else Path(TRACKIO_DIR)


def _to_wandb(found: Figures) -> Path | None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=found.name,
        config=found.settings,
        mode=None if os.environ.get("WANDB_MODE") else "offline",
        # Not the run that may be going on in this process.
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.log(found.numbers)
    directory = Path(run.dir).parent
    run.finish()
    return directory


def _to_tensorboard(found: Figures) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    run = f"{found.name}_{re.sub('[^0-9]', '', found.created[:19])}".replace("/", "_")
    directory = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or "runs") / _clean(run)
    with SummaryWriter(str(directory)) as writer:
        rows = "".join(f"| {field} | {value} |\n" for field, value in sorted(found.settings.items()))
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)
        for place, number in found.numbers.items():
            writer.add_scalar(place, number, 0)
    return directory
