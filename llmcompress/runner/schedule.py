"""Which task is next: in the plan's order, a model's artifacts first, then what is done with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, manifest_sha256
from llmcompress.runner.compressing import Order, compress_model
from llmcompress.runner.executors import Task
from llmcompress.runner.loading import Wanted
from llmcompress.runner.measuring import benchmark_artifact, evaluate_artifact, needed_bytes
from llmcompress.runner.records import Failure, Step
from llmcompress.runner.survey import Surveyed
from llmcompress.runner.tuning import tune_artifact, tuning_bytes
from llmcompress.spec.plan import Job, Plan

SHIPPING: tuple[Step, ...] = ("card", "push")
"""Steps that the run's own process takes: they are quick, and the Hub's token is there."""


@dataclass
class Progressing:
    """A job under way."""

    surveyed: Surveyed
    left: list[Step]
    made: list[Step] = field(default_factory=list)
    failure: Failure | None = None
    note: str = ""
    """Why tuning came to no artifact of its own."""
    base: Progressing | None = None
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
    jobs: tuple[Progressing, ...]


def due(jobs: Sequence[Progressing], plan: Plan, *, offline: bool) -> Iterator[Due]:
    """Every task that can be started now, in order."""
    for _, members in groupby(jobs, key=lambda job: job.surveyed.job.model):
        group = list(members)
        ready = [job for job in group if job.left and not job.running]
        unmade = tuple(job for job in ready if job.left[0] == "compress")
        if unmade:
            yield _compress(unmade, offline)
        for job in ready:
            if job.left[0] == "tune" and job.is_tunable:
                yield _tune(job, plan, offline)
            elif job.left[0] == "evaluate":
                several = len([each for each in group if "evaluate" in each.surveyed.outlook.steps]) > 1
                yield _evaluate(job, plan, several, offline)
            elif job.left[0] == "benchmark":
                yield _benchmark(job, plan, offline)


def _compress(jobs: tuple[Progressing, ...], offline: bool) -> Due:
    orders = []
    for job in jobs:
        planned, recipe, predicted = job.surveyed.job, job.surveyed.recipe, job.surveyed.forecast
        assert recipe is not None
        assert predicted is not None
        there = (planned.directory / MANIFEST).is_file()
        replaces = manifest_sha256(planned.directory) if there else None
        orders.append(Order(Wanted(planned.recipe_name, recipe, planned.directory, replaces), predicted))
    task = Task(
        label=f"{jobs[0].surveyed.job.model.short_name}: compress",
        function=compress_model,
        kwargs={**_opened(jobs[0], offline), "orders": orders},
        memory_bytes=max(order.forecast.min_memory_bytes for order in orders),
    )
    return Due(task, "compress", jobs)


def logits_dir(job: Job) -> Path:
    """Where the logits of a job's original lie while its artifacts are evaluated."""
    return job.directory.with_name(".logits")


def _evaluate(job: Progressing, plan: Plan, several: bool, offline: bool) -> Due:
    asked: dict[str, object] = {
        "evaluation": plan.evaluation,
        "gate": plan.gate,
        "keep_logits_in": logits_dir(job.surveyed.job) if several else None,
    }
    return _measure(job, "evaluate", asked, offline)


def _benchmark(job: Progressing, plan: Plan, offline: bool) -> Due:
    return _measure(job, "benchmark", {"spec": plan.benchmark}, offline)


def _tune(job: Progressing, plan: Plan, offline: bool) -> Due:
    planned = job.surveyed.job
    assert planned.tuned_from is not None
    task = Task(
        label=f"{job.name}: tune",
        function=tune_artifact,
        kwargs={
            "directory": planned.tuned_from,
            "tuned": planned.directory,
            "recipe": job.surveyed.recipe,
            **_opened(job, offline),
            "tuning": plan.tune,
            "gate": plan.gate,
        },
        memory_bytes=tuning_bytes(planned.tuned_from),
    )
    return Due(task, "tune", (job,))


def _measure(job: Progressing, step: Step, asked: dict[str, object], offline: bool) -> Due:
    directory = job.surveyed.job.directory
    task = Task(
        label=f"{job.name}: {step}",
        function=evaluate_artifact if step == "evaluate" else benchmark_artifact,
        kwargs={
            "directory": directory,
            "recipe": job.surveyed.recipe,
            **_opened(job, offline),
            **asked,
        },
        memory_bytes=needed_bytes(directory),
    )
    return Due(task, step, (job,))


def _opened(job: Progressing, offline: bool) -> dict[str, object]:
    """The model that a job is about, and its access: as the survey found it, so that all of a run is of one commit."""
    model = job.surveyed.job.model
    return {"source": model.source, "access": model.access(offline=offline).at(job.surveyed.revision)}
