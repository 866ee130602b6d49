"""The run of a plan: start what is due and fits, note what came of it, until nothing is left."""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from llmcompress.artifact import remove_leftovers
from llmcompress.errors import GateError, UsageError
from llmcompress.executors import Finished, LocalExecutor, RayExecutor, Told
from llmcompress.plan import Job, Plan, planned_jobs
from llmcompress.progress import Progress, Reporter, silent
from llmcompress.recipe.problems import did_you_mean, shown
from llmcompress.runner import shipping
from llmcompress.runner.loading import recipe_at
from llmcompress.runner.records import MEASURED, STEPS, Event, Failure, Outlook, Row, RunReport, Step, failure
from llmcompress.runner.schedule import SHIPPING, Due, Progressing, due, logits_dir
from llmcompress.runner.survey import Surveyed
from llmcompress.supervisor import run_supervised

ExecutorName = Literal["local", "ray"]
Watcher = Callable[[Event], None]
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
    return tuple(each.outlook for each in _surveyed(jobs, plan, executor, offline, progress, logs))


def run_plan(
    plan: Plan,
    *,
    output_dir: str | Path | None = None,
    only: Sequence[str] = (),
    executor: ExecutorName = "local",
    address: str | None = None,
    offline: bool = False,
    watch: Watcher = lambda event: None,
    progress: Reporter = silent,
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
    if address is not None and executor != "ray":
        raise UsageError("--address has no effect on the executor local", hint="add --executor ray")
    plan = _with_absolute_paths(plan)
    jobs = chosen_jobs(plan, output_dir, only)
    run = _Run(plan, offline, watch)
    with RayExecutor(run.tell, address) if executor == "ray" else LocalExecutor(run.tell, logs) as workers:
        surveyed = _surveyed(jobs, plan, executor, offline, progress, logs)
        run.take(surveyed)
        while True:
            run.ship()
            for each in due(run.jobs, plan, offline=offline):
                if workers.has_room(each.task):
                    run.begin(each, workers.start(each.task))
            if not workers.busy:
                break
            run.end(workers.wait())
    return RunReport(output=str(_output(plan, output_dir)), rows=tuple(map(run.row, run.jobs)))


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
                where="--only",
                hint=did_you_mean(pattern, names) or "write MODEL/RECIPE, or MODEL/* for all of a model",
            )
        chosen |= matching
    return tuple(job for job in jobs if job.name in chosen) if only else jobs


def _with_absolute_paths(plan: Plan) -> Plan:
    """What a plan made in Python names from the working directory, which workers may not share."""
    models = tuple(
        model.model_copy(update={"source": str(Path(model.source).absolute())})
        if Path(model.source).is_dir()
        else model
        for model in plan.models
    )
    evaluation = plan.evaluation
    dataset = evaluation.dataset_path() if evaluation else None
    if evaluation is not None and dataset is not None:
        evaluation = evaluation.model_copy(update={"dataset": str(dataset.absolute())})
    return plan.model_copy(update={"models": models, "evaluation": evaluation})


def _output(plan: Plan, output_dir: str | Path | None) -> Path:
    chosen = output_dir if output_dir is not None else plan.output
    if chosen is None:
        raise UsageError("the plan says no output directory", hint="give --output DIR, or add output: DIR")
    return Path(chosen).absolute()


def _surveyed(
    jobs: Sequence[Job], plan: Plan, executor: ExecutorName, offline: bool, progress: Reporter, logs: Logs
) -> tuple[Surveyed, ...]:
    surveyed = run_supervised(
        "llmcompress.runner.survey:survey",
        {"jobs": jobs, "plan": plan, "offline": offline, "devices": executor == "local"},
        progress=progress,
        logs=logs,
    )
    assert isinstance(surveyed, tuple)
    return surveyed


class _Begun(NamedTuple):
    due: Due
    where: str
    at: float


class _Run:
    """The jobs of one run, and what is told of them."""

    def __init__(self, plan: Plan, offline: bool, watch: Watcher) -> None:
        self._plan, self._offline, self._watch = plan, offline, watch
        self.jobs: list[Progressing] = []
        self._num_steps = 0
        self._begun: dict[str, _Begun] = {}
        self._took: dict[Step, list[float]] = defaultdict(list)
        self._behind: dict[str, list[str]] = {}

    def take(self, surveyed: Sequence[Surveyed]) -> None:
        """Begin with what the survey found; what it found wrong fails at once."""
        self.jobs = [Progressing(each, list(each.outlook.steps)) for each in surveyed]
        for each in surveyed:
            if "compress" not in each.outlook.steps:
                # A run that was killed right after the rename left its staging directory.
                remove_leftovers(each.job.directory)
        for job in self.jobs:
            self._forget_logits(job)
        self._num_steps = sum(len(job.left) for job in self.jobs)
        for job in self.jobs:
            if (why := job.surveyed.outlook.failure) is not None:
                self._fail(job, why, "")

    def begin(self, each: Due, where: str) -> None:
        """Note that a task was started."""
        for job in each.jobs:
            job.running = True
        self._begun[each.task.label] = _Begun(each, where, time.monotonic())
        self._say("begin", each.task.label, where)

    def tell(self, told: Told) -> None:
        """Hand on what a running task tells."""
        label = told.task.label
        if told.kind == "progress" and told.progress is not None:
            self._note_recipe(label, told.progress)
        self._say(told.kind, label, told.where, progress=told.progress, text=told.text)

    def end(self, finished: Finished) -> None:
        """Note what came of a task."""
        label = finished.task.label
        (_, step, jobs), _, at = self._begun.pop(label)
        self._behind.pop(label, None)
        outcomes: dict[str, Exception | None] = {}
        if step == "compress" and isinstance(finished.result, dict):
            outcomes = finished.result
        for job in jobs:
            job.running = False
            error = outcomes.get(job.surveyed.job.recipe_name) if finished.error is None else finished.error
            if error is not None:
                self._fail(job, failure(step, error), finished.where)
            else:
                job.left.remove(step)
                job.made.append(step)
        if step == "evaluate":
            self._forget_logits(jobs[0])
        if finished.error is None:
            self._took[step].append((time.monotonic() - at) / len(jobs))
            self._say("end", label, finished.where)

    def ship(self) -> None:
        """Take the last steps of every job that has come to them; what has not passed the gate is not pushed."""
        for job in self.jobs:
            while not (job.running or job.closed or job.failure) and (not job.left or job.left[0] in SHIPPING):
                step = job.left[0] if job.left else None
                try:
                    self._ship(job, step)
                except GateError as error:
                    self._fail(job, failure("evaluate", error), "")
                except Exception as error:  # noqa: BLE001 - it is this job's, and the others go on
                    self._fail(job, failure(step or "evaluate", error), "")

    def _ship(self, job: Progressing, step: Step | None) -> None:
        directory, repo_id = job.surveyed.job.directory, job.surveyed.job.repo_id
        if step != "card" and self._plan.evaluation is not None:
            shipping.require_gate(directory)
        if step is None:
            job.closed = True
            return
        label = f"{job.name}: {step}"
        self._say("begin", label, "")
        if step == "card":
            shipping.write_card(directory, repo_id)
        else:
            assert self._plan.push is not None
            assert repo_id is not None
            shipping.push(directory, repo_id, self._plan.push.private)
        job.left.remove(step)
        job.made.append(step)
        self._say("end", label, "")

    def _forget_logits(self, ended: Progressing) -> None:
        """Remove the original's logits when no artifact of it is left to be evaluated."""
        model = ended.surveyed.job.model
        if not any("evaluate" in job.left for job in self.jobs if job.surveyed.job.model == model):
            shutil.rmtree(logits_dir(ended.surveyed.job), ignore_errors=True)

    def row(self, job: Progressing) -> Row:
        """What came of a job."""
        planned = job.surveyed.job
        asked = job.surveyed.outlook.steps
        return Row(
            name=planned.name,
            model=planned.model.short_name,
            recipe=planned.recipe_name,
            directory=str(planned.directory),
            made=tuple(job.made),
            kept=tuple(step for step in self._asked() if step not in asked),
            failure=job.failure,
        )

    def _asked(self) -> tuple[Step, ...]:
        plan = self._plan
        wanted = (True, plan.evaluation, plan.benchmark, plan.card, plan.push)
        return tuple(step for step, asked in zip(STEPS, wanted, strict=True) if asked)

    def _fail(self, job: Progressing, why: Failure, where: str) -> None:
        job.fail(why)
        self._say("failed", f"{job.name}: {why.step}", where, text=why.message)

    def _note_recipe(self, label: str, step: Progress) -> None:
        """Recipes of a model that the worker has left behind count as done for people."""
        recipe = recipe_at(step.stage)
        if recipe is not None and self._begun[label].due.step == "compress":
            behind = self._behind.setdefault(label, [])
            if recipe not in behind:
                behind.append(recipe)

    def _num_done(self) -> int:
        behind = sum(max(0, len(recipes) - 1) for recipes in self._behind.values())
        return self._num_steps - sum(len(job.left) for job in self.jobs) + behind

    def _left_s(self) -> float | None:
        """By what the same step took last time on this machine, else by what such steps took in this run."""
        total = 0.0
        for job in self.jobs:
            for step in job.left:
                if step not in MEASURED:
                    continue
                took = self._took[step]
                known = job.surveyed.outlook.durations_s.get(step, sum(took) / len(took) if took else None)
                if known is None:
                    return None
                total += known
        now = time.monotonic()
        return max(0.0, total - sum(now - begun.at for begun in self._begun.values())) / max(1, len(self._begun))

    def _say(self, kind: str, label: str, where: str, *, progress: Progress | None = None, text: str = "") -> None:
        self._watch(
            Event(
                kind=kind,  # type: ignore[arg-type]
                task=label,
                where=where,
                num_done=self._num_done(),
                num_steps=self._num_steps,
                left_s=self._left_s(),
                progress=progress,
                text=text,
            )
        )
