"""Which task is next: in the plan's order, a model's artifacts first, then what is done with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, manifest_sha256
from llmcompress.runner.compressing import CompressJob, compress_model
from llmcompress.runner.measuring import PlannedArtifact, benchmark_artifact, evaluate_artifact, needed_bytes
from llmcompress.runner.records import Failure, Step
from llmcompress.runner.survey import Surveyed
from llmcompress.runner.tuning import tune_artifact, tuning_bytes
from llmcompress.spec import Access
from llmcompress.spec.plan import Job, Plan
from llmcompress.system.executors import Task

SHIPPING: tuple[Step, ...] = ("log", "card", "push")
"""Steps that the run's own process takes: they are quick, and the Hub's token and the trackers' variables are there."""


@dataclass
class JobState:
    """A job under way."""

    surveyed: Surveyed
    left: list[Step]
    made: list[Step] = field(default_factory=list)
    failure: Failure | None = None
    note: str = ""
    """Why tuning came to no artifact of its own."""
    base: JobState | None = None
    """The job that makes what this one tunes."""
    running: bool = False
    closed: bool = False
    """Nothing is left, and the gate was looked at."""

    @property
    def is_tunable(self) -> bool:
        """Whether what it tunes is measured and described; that it could not be pushed, say, is no reason to wait."""
        assert self.base is not None
        return self.base.closed or self.base.failure is not None

    @property
    def name(self) -> str:
        """``MODEL/RECIPE``."""
        return self.surveyed.job.name

    def fail(self, why: Failure) -> None:
        """Note why, and leave the rest of it undone."""
        self.failure = why
        self.left.clear()


class Due(NamedTuple):
    """A task that can be started, and the jobs it is for."""

    task: Task
    step: Step
    jobs: tuple[JobState, ...]


def due(jobs: Sequence[JobState], plan: Plan, *, offline: bool) -> Iterator[Due]:
    """Every task that can be started now, in order."""
    for _, members in groupby(jobs, key=lambda job: job.surveyed.job.model):
        group = list(members)
        ready = [job for job in group if job.left and not job.running]
        unmade = tuple(job for job in ready if job.left[0] == "compress")
        if unmade:
            yield _compress(unmade, offline)
        several = len([job for job in group if "evaluate" in job.surveyed.outlook.steps]) > 1
        for job in ready:
            if job.left[0] == "tune" and job.is_tunable:
                yield _tune(job, plan, offline)
            elif job.left[0] == "evaluate":
                yield _evaluate(job, plan, several, offline)
            elif job.left[0] == "benchmark":
                yield _benchmark(job, plan, offline)


def _compress(states: tuple[JobState, ...], offline: bool) -> Due:
    jobs = []
    for state in states:
        planned, recipe, predicted = state.surveyed.job, state.surveyed.recipe, state.surveyed.forecast
        assert recipe is not None
        assert predicted is not None
        there = (planned.directory / MANIFEST).is_file()
        replaces = manifest_sha256(planned.directory) if there else None
        made_by = (planned.recipe_name, recipe, planned.directory, replaces, predicted)
        jobs.append(CompressJob(*made_by, search=planned.search))
    source, access = _opened(states[0], offline)
    task = Task(
        label=f"{states[0].surveyed.job.model.short_name}: compress",
        function=compress_model,
        kwargs={"source": source, "access": access, "jobs": jobs},
        memory_bytes=max(job.forecast.min_memory_bytes for job in jobs),
    )
    return Due(task, "compress", states)


def logits_dir(job: Job) -> Path:
    """Where the logits of a job's original lie while its artifacts are evaluated."""
    return job.directory.with_name(".logits")


def _evaluate(job: JobState, plan: Plan, several: bool, offline: bool) -> Due:
    artifact = _artifact(job, job.surveyed.job.directory, offline)
    logits = logits_dir(job.surveyed.job) if several else None
    kwargs = {"artifact": artifact, "evaluation": plan.evaluation, "gate": plan.gate, "keep_logits_in": logits}
    task = Task(f"{job.name}: evaluate", evaluate_artifact, kwargs, needed_bytes(artifact.directory))
    return Due(task, "evaluate", (job,))


def _benchmark(job: JobState, plan: Plan, offline: bool) -> Due:
    artifact = _artifact(job, job.surveyed.job.directory, offline)
    kwargs = {"artifact": artifact, "spec": plan.benchmark}
    task = Task(f"{job.name}: benchmark", benchmark_artifact, kwargs, needed_bytes(artifact.directory))
    return Due(task, "benchmark", (job,))


def _tune(job: JobState, plan: Plan, offline: bool) -> Due:
    tuned_from, tuned = job.surveyed.job.tuned_from, job.surveyed.job.directory
    assert tuned_from is not None
    artifact = _artifact(job, tuned_from, offline)
    kwargs = {"artifact": artifact, "tuned": tuned, "tuning": plan.tune, "gate": plan.gate}
    task = Task(f"{job.name}: tune", tune_artifact, kwargs, tuning_bytes(tuned_from))
    return Due(task, "tune", (job,))


def _artifact(job: JobState, directory: Path, offline: bool) -> PlannedArtifact:
    assert job.surveyed.recipe is not None
    return PlannedArtifact(directory, job.surveyed.recipe, *_opened(job, offline))


def _opened(job: JobState, offline: bool) -> tuple[str, Access]:
    """The model that a job is about, and its access: as the survey found it, so that all of a run is of one commit."""
    model = job.surveyed.job.model
    return model.source, model.access(offline=offline).at(job.surveyed.revision)
