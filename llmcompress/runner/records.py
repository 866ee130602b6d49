"""What a run of a plan will do, and what came of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from llmcompress.errors import LlmcompressError, one_line
from llmcompress.report.readable import Readable
from llmcompress.report.record import Record
from llmcompress.spec.plan import Job, Plan
from llmcompress.system.progress import Progress

Step = Literal["compress", "tune", "evaluate", "benchmark", "log", "card", "push"]
STEPS: tuple[Step, ...] = ("compress", "tune", "evaluate", "benchmark", "log", "card", "push")
"""An artifact is compressed from a model, or tuned from another artifact."""
MEASURED: tuple[Step, ...] = ("compress", "tune", "evaluate", "benchmark")
"""Those whose duration is kept."""


class Failure(Record):
    """Why a job was not finished."""

    step: Step
    error: str
    """Class of ``llmcompress.errors``."""
    exit_code: int
    message: str
    hint: str


class Outlook(Record):
    """One job before it begins: what is left to do, and what that is predicted to take."""

    name: str
    """``MODEL/RECIPE``."""
    directory: str
    steps: tuple[Step, ...]
    """Left to do, in order."""
    reason: str
    """Why the first of them has to be done; empty where nothing is."""
    size_bytes: int | None = None
    """Predicted size of ``openvino_model.bin``; None where nothing is to be compressed."""
    peak_rss_bytes: int | None = None
    """Predicted peak of the compression, mapped pages of the checkpoint included."""
    min_memory_bytes: int | None = None
    """What the compression needs at least."""
    disk_bytes: int | None = None
    fits: bool = True
    """Whether this machine has the memory and disk for it now."""
    durations_s: dict[Step, float] = Field(default_factory=dict)
    """What the same step took last time on this machine; those not measured here are left out."""
    failure: Failure | None = None
    """What is known to stop it before it begins."""

    @property
    def duration_s(self) -> float | None:
        """Sum over the steps that are left; None: at least one was not measured here. The others are quick."""
        slow = [step for step in self.steps if step in MEASURED]
        return sum(self.durations_s[step] for step in slow) if set(slow) <= self.durations_s.keys() else None


class JobResult(Record):
    """One job afterwards."""

    name: str
    model: str
    recipe: str
    directory: str
    made: tuple[Step, ...]
    """Steps that this run carried out."""
    kept: tuple[Step, ...]
    """Steps that were done already."""
    note: str = ""
    """Why tuning came to no artifact of its own; empty where it did, and for what is compressed."""
    failure: Failure | None = None


class RunReport(Readable):
    """What came of a plan."""

    output: str
    rows: tuple[JobResult, ...]
    """In the plan's order."""

    @property
    def exit_code(self) -> int:
        """Of the first row that failed; 0: all are done."""
        return next((row.failure.exit_code for row in self.rows if row.failure is not None), 0)

    def facts(self) -> dict[str, str]:
        """What became of each job."""
        return {row.name: row.failure.message if row.failure else "done" for row in self.rows}


class Event(NamedTuple):
    """What a person watching is told."""

    kind: Literal["begin", "progress", "end", "failed", "lost"]
    task: str
    """``MODEL/RECIPE: STEP``, or ``MODEL: compress`` for all recipes of a model that are left."""
    where: str
    """The machine."""
    num_done: int
    """Steps of the whole run."""
    num_steps: int
    left_s: float | None = None
    """Of the whole run; None: not known."""
    progress: Progress | None = None
    text: str = ""
    """The reason of a failure, in one line."""


def asked_steps(plan: Plan, job: Job) -> tuple[Step, ...]:
    """The steps that a plan asks of a job."""
    tuned = job.tuned_from is not None
    wanted = (not tuned, tuned, plan.evaluation, plan.benchmark, plan.log_to, plan.card, plan.push)
    return tuple(step for step, asked in zip(STEPS, wanted, strict=True) if asked)


def failure(step: Step, error: BaseException) -> Failure:
    """Make the record of an error."""
    name = type(error).__name__
    if not isinstance(error, LlmcompressError):
        text = one_line(f"unexpected {name}: {error}")
        return Failure(step=step, error=name, exit_code=1, message=text, hint="")
    text = one_line(f"{error.where}: {error.message}" if error.where else error.message)
    return Failure(step=step, error=name, exit_code=error.exit_code, message=text, hint=error.hint)
