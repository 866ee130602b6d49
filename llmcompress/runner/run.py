"""The run of a plan: start what is due and fits, note what came of it, until nothing is left."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmcompress.errors import UsageError
from llmcompress.runner.ledger import Ledger, Watcher
from llmcompress.runner.records import Outlook, RunReport
from llmcompress.runner.schedule import due
from llmcompress.runner.survey import survey
from llmcompress.spec.plan import Job, Plan, planned_jobs
from llmcompress.spec.validation import did_you_mean, shown
from llmcompress.system.executors import ExecutorName, LocalExecutor, RayExecutor, check_executor
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Reporter, silent

Logs = Callable[[str], None] | None


def outlook(
    plan: Plan,
    *,
    output_dir: str | Path | None = None,
    only: Sequence[str] = (),
    executor: ExecutorName = "local",
    offline: bool = False,
    progress: Reporter = silent,
    logs: Logs = None,
) -> tuple[Outlook, ...]:
    """Say what ``run_plan`` would do: for each job what is left, and its predicted size, memory, disk and time.

    Raises: as ``run_plan``, before its first job.
    """
    plan = _with_absolute_paths(plan)
    jobs = chosen_jobs(plan, output_dir, only)
    surveyed = run_supervised(survey, _look_at(jobs, plan, executor, offline), progress=progress, logs=logs)
    return tuple(each.outlook for each in surveyed)


@library_call
def run_plan(
    plan: Plan,
    *,
    output_dir: str | Path | None = None,
    only: Sequence[str] = (),
    executor: ExecutorName = "local",
    address: str | None = None,
    offline: bool = False,
    watch: Watcher = lambda event: None,
    progress: ProgressOption = "auto",
    logs: Logs = None,
) -> RunReport:
    """Make, measure and ship every artifact of a plan that is not done yet.

    What is done is read from the output directory: an artifact that is byte for byte what its manifest says, made from
    the same source by the same recipe with the same versions, and reports that answer what the plan asks. The rest is
    done; a job that fails does not stop the others, and is tried again by the next run.

    Args:
        plan: What to do.
        output_dir: Instead of the plan's ``output``; artifacts go to ``MODEL/RECIPE`` in it.
        only: ``MODEL/RECIPE`` names, ``*`` and ``?`` allowed; none: all.
        executor: ``local``, or ``ray`` (the extra ``ray``).
        address: Of a Ray cluster; None: the one that ``RAY_ADDRESS`` names, or one on this machine.
        offline: Use local files and caches only.
        watch: Told what begins, goes on and ends.
        progress: Told of the look at all jobs, before the first one.
        logs: Takes each line that the workers on this machine write.

    Returns:
        One row for each job. ``report.exit_code`` is that of the first one that failed.

    Raises:
        UsageError: No output, an unknown name in ``only``, or a device that is not there.
        RecipeError: The plan is wrong.
        ResourceError: The executor's or the benchmark engine's extra is not installed.
        InterruptedRunError: This process was told to stop; what is complete stays.
    """
    progress = reporter(progress)
    check_executor(executor, address)
    plan = _with_absolute_paths(plan)
    jobs = chosen_jobs(plan, output_dir, only)
    ledger = Ledger(plan, watch)
    with RayExecutor(ledger.tell, address) if executor == "ray" else LocalExecutor(ledger.tell, logs) as workers:
        # Of several models one may need what the imports of another leave out.
        serves_all = executor == "local" and len({job.model.source for job in jobs}) == 1
        given = _look_at(jobs, plan, executor, offline)
        ledger.take(
            run_supervised(survey, given, progress=progress, logs=logs, waiting="leave" if serves_all else "none")
        )
        while True:
            ledger.ship()
            for each in due(ledger.jobs, plan, offline=offline):
                if workers.has_room(each.task):
                    ledger.begin(each, workers.start(each.task))
            if not workers.busy:
                break
            ledger.end(workers.wait())
    return RunReport(output=str(_output(plan, output_dir)), rows=tuple(map(ledger.row, ledger.jobs)))


def chosen_jobs(plan: Plan, output_dir: str | Path | None, only: Sequence[str]) -> tuple[Job, ...]:
    """The plan's jobs, those named by ``only`` where it names any.

    Raises:
        UsageError: No output, or a name that no job has.
    """
    jobs = planned_jobs(plan, _output(plan, output_dir))
    chosen = set()
    for pattern in only:
        matching = {job.name for job in jobs if fnmatch.fnmatchcase(job.name, pattern)}
        if not matching:
            names = [job.name for job in jobs]
            raise UsageError(
                f"the plan has no job {shown(pattern)}; it has {', '.join(names[:12])}"
                + (f" and {len(names) - 12} more" if len(names) > 12 else ""),
                where="`only`",
                hint=did_you_mean(pattern, names) or "write MODEL/RECIPE, or MODEL/* for all of a model",
            )
        chosen |= matching
    # What is tuned has to be made.
    tuned_from = {job.tuned_from for job in jobs if job.name in chosen}
    chosen |= {job.name for job in jobs if job.directory in tuned_from}
    return tuple(job for job in jobs if job.name in chosen) if only else jobs


def _with_absolute_paths(plan: Plan) -> Plan:
    """What a plan made in Python names from the working directory, which workers may not share."""
    models = tuple(
        model.model_copy(update={"source": str(Path(model.source).absolute())})
        if Path(model.source).exists()
        else model
        for model in plan.models
    )
    parts = {
        name: part.model_copy(update={"dataset": str(path.absolute())})
        for name, part in (("evaluation", plan.evaluation), ("tune", plan.tune))
        if part is not None and (path := part.dataset_path()) is not None
    }
    return plan.model_copy(update={"models": models, **parts})


def _output(plan: Plan, output_dir: str | Path | None) -> Path:
    chosen = output_dir if output_dir is not None else plan.output
    if chosen is None:
        raise UsageError("the plan says no output directory", hint="give `output_dir` DIR, or add output: DIR")
    return Path(chosen).absolute()


def _look_at(jobs: Sequence[Job], plan: Plan, executor: ExecutorName, offline: bool) -> dict[str, Any]:
    """What the survey is given."""
    return {"jobs": jobs, "plan": plan, "offline": offline, "devices": executor == "local"}
