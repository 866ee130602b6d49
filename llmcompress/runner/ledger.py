"""The jobs of one run: what was begun, what came of it, and what a person watching is told."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import remove_leftovers
from llmcompress.errors import GateError, WriteError
from llmcompress.runner.compressing import recipe_at
from llmcompress.runner.records import MEASURED, Event, Failure, JobResult, Step, asked_steps, failure
from llmcompress.runner.schedule import SHIPPING, Due, JobState, logits_dir
from llmcompress.runner.state import gate_failures, remember_logged, remember_push, unlogged
from llmcompress.runner.survey import Surveyed
from llmcompress.runner.tuning import kept_defaults
from llmcompress.spec.plan import Plan
from llmcompress.system.executors import Finished, TaskEvent
from llmcompress.system.progress import Progress

Watcher = Callable[[Event], None]


class _Begun(NamedTuple):
    due: Due
    where: str
    at: float


class Ledger:
    """The jobs of one run, and what is told of them."""

    def __init__(self, plan: Plan, watch: Watcher) -> None:
        self._plan, self._watch = plan, watch
        self.jobs: list[JobState] = []
        self._num_steps = 0
        self._begun: dict[str, _Begun] = {}
        self._took: dict[Step, list[float]] = defaultdict(list)
        self._behind: dict[str, list[str]] = {}

    def take(self, surveyed: Sequence[Surveyed]) -> None:
        """Begin with what the survey found; what it found wrong fails at once."""
        self.jobs = [JobState(each, list(each.outlook.steps)) for each in surveyed]
        by_directory = {job.surveyed.job.directory: job for job in self.jobs}
        for job in self.jobs:
            if (tuned_from := job.surveyed.job.tuned_from) is not None:
                job.base = by_directory[tuned_from]
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
            elif job.base is not None and not job.left:
                self._note_defaults(job)

    def begin(self, each: Due, where: str) -> None:
        """Note that a task was started."""
        for job in each.jobs:
            job.running = True
        self._begun[each.task.label] = _Begun(each, where, time.monotonic())
        self._say("begin", each.task.label, where)

    def tell(self, event: TaskEvent) -> None:
        """Hand on what a running task tells."""
        label = event.task.label
        if event.kind == "progress" and event.progress is not None:
            self._note_recipe(label, event.progress)
        self._say(event.kind, label, event.where, progress=event.progress, text=event.text)

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
                if step == "tune" and isinstance(finished.result, str) and finished.result:
                    job.note = finished.result
                    job.left.clear()
        if step in ("tune", "evaluate"):
            self._forget_logits(jobs[0])
        if finished.error is None:
            self._took[step].append((time.monotonic() - at) / len(jobs))
            self._say("end", label, finished.where)

    def ship(self) -> None:
        """Take the last steps of every job that has come to them; what has not passed the gate is not pushed."""
        for job in self.jobs:
            self._hold_back(job)
            while not (job.running or job.closed or job.failure) and (not job.left or job.left[0] in SHIPPING):
                step = job.left[0] if job.left else None
                try:
                    self._ship(job, step)
                except GateError as error:
                    self._fail(job, failure("evaluate", error), "")
                except Exception as error:  # noqa: BLE001 - it is this job's, and the others go on
                    self._fail(job, failure(step or "evaluate", error), "")

    def _ship(self, job: JobState, step: Step | None) -> None:
        directory, repo_id = job.surveyed.job.directory, job.surveyed.job.repo_id
        if step not in ("log", "card") and self._plan.evaluation is not None and not job.note:
            _require_gate(directory)
        if step is None:
            job.closed = True
            return
        label = f"{job.name}: {step}"
        self._say("begin", label, "")
        from llmcompress import publishing
        from llmcompress.publishing import card

        if step == "log":
            self._log(job)
        elif step == "card":
            card.write_card(directory, repo_id=repo_id)
        else:
            assert self._plan.push is not None
            assert repo_id is not None
            publishing.push_to_hub(directory, repo_id, private=self._plan.push.private, progress=None)
            remember_push(directory, repo_id, private=self._plan.push.private)
        job.left.remove(step)
        job.made.append(step)
        self._say("end", label, "")

    def _log(self, job: JobState) -> None:
        """Log what was not logged yet; a failure of the tracker does not hide one of the gate."""
        from llmcompress.publishing.trackers import log_figures

        directory, tracker = job.surveyed.job.directory, self._plan.log_to
        assert tracker is not None
        try:
            for report in unlogged(directory, tracker):
                log_figures(report, tracker, name=job.name)
                remember_logged(directory, tracker, report)
        except WriteError:
            if self._plan.evaluation is not None:
                _require_gate(directory)
            raise

    def _hold_back(self, job: JobState) -> None:
        """Do not tune what was not made, or did not pass the gate."""
        if job.left[:1] != ["tune"] or job.base is None or (why := job.base.failure) is None:
            return
        if why.step in ("compress", "evaluate"):
            message = f"{job.base.name} is not there to be tuned: {why.message}"
            self._fail(job, why.model_copy(update={"step": "tune", "message": message}), "")
            self._forget_logits(job)

    def _note_defaults(self, job: JobState) -> None:
        """What an earlier run found: there is no tuned artifact, and why."""
        assert job.base is not None
        try:
            job.note = kept_defaults(job.base.surveyed.job.directory)
        except GateError as error:
            self._fail(job, failure("tune", error), "")

    def _forget_logits(self, ended: JobState) -> None:
        """Remove the original's logits when no artifact of it is left to be evaluated."""
        model = ended.surveyed.job.model
        if not any("evaluate" in job.left for job in self.jobs if job.surveyed.job.model == model):
            shutil.rmtree(logits_dir(ended.surveyed.job), ignore_errors=True)

    def row(self, job: JobState) -> JobResult:
        """What came of a job."""
        planned = job.surveyed.job
        asked = job.surveyed.outlook.steps
        done = ("tune",) if job.note else asked_steps(self._plan, planned)
        return JobResult(
            name=planned.name,
            model=planned.model.short_name,
            recipe=planned.recipe_name,
            directory=str(planned.directory),
            made=tuple(job.made),
            kept=tuple(step for step in done if step not in asked),
            failure=job.failure,
            note=job.note,
        )

    def _fail(self, job: JobState, why: Failure, where: str) -> None:
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


def _require_gate(directory: Path) -> None:
    """Refuse to go on with an artifact that did not pass; the error names the checks."""
    if failed := gate_failures(directory):
        raise GateError(
            "the gate is not passed: " + "; ".join(failed),
            where=str(directory),
            hint="take a recipe that loses less, or set other thresholds",
        )
