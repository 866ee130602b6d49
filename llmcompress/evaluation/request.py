"""What is asked of an evaluation, as records, and what is refused of it before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from llmcompress.errors import UsageError
from llmcompress.spec import Access, EvalSpec, Gate

ReferenceScores = Literal["auto", "exact", "rounded", "cached"]


class Reference(NamedTuple):
    """What the model was made from, and how it is scored."""

    source: str | Path | None = None
    """None: the model is measured alone."""
    access: Access = Access()
    scores: ReferenceScores = "auto"
    logits_dir: Path | None = None
    """Where its logits are kept for the next candidates."""


class TaskSelection(NamedTuple):
    """Tasks of lm-evaluation-harness."""

    names: tuple[str, ...] = ()
    limit: int | None = None
    """Only so many samples of each task; such scores are for trying things out."""
    path: Path | None = None
    """Directory with task files of one's own."""


class Diagnostics(NamedTuple):
    """What is measured on top of the scores."""

    probe_context: int | None = None
    """Tokens after which logits must still be finite; None: a window."""
    num_generations: int = 0
    noise_floor: bool = False
    split_damage: bool = False
    tasks: TaskSelection = TaskSelection()

    @property
    def runs_pairs(self) -> bool:
        """Whether two models run at once for them."""
        return self.noise_floor or self.split_damage


class EvalRequest(NamedTuple):
    """One evaluation."""

    source: str | Path
    access: Access
    spec: EvalSpec
    gate: Gate
    """Thresholds, in addition to those of the artifact's recipe."""
    reference: Reference = Reference()
    diagnostics: Diagnostics = Diagnostics()


def check_request(request: EvalRequest) -> None:
    """Refuse options that contradict each other or would have no effect.

    Raises:
        UsageError: There are such.
    """
    _check_reference(request.reference, request.diagnostics)
    _check_split(request.spec, request.diagnostics)
    if request.reference.scores in ("rounded", "cached") and request.diagnostics.runs_pairs:
        raise UsageError(
            "`noise_floor` and `split_damage` run two models at once, which "
            f'`reference_scores="{request.reference.scores}"` avoids',
            hint="leave one or the other out",
        )
    tasks = request.diagnostics.tasks
    if not tasks.names and (tasks.limit is not None or tasks.path is not None):
        raise UsageError("`task_limit` and `task_path` have no effect without `tasks`", hint="name the tasks")


def _check_reference(reference: Reference, diagnostics: Diagnostics) -> None:
    needing = {
        "reference_revision": reference.access.revision is not None,
        "reference_scores": reference.scores != "auto",
        "num_generations": diagnostics.num_generations > 0,
        "noise_floor": diagnostics.noise_floor,
        "split_damage": diagnostics.split_damage,
    }
    given = [f"`{name}`" for name, used in needing.items() if used]
    if reference.source is None and given:
        raise UsageError(
            f"{' and '.join(given)} compare with a reference, and none was given",
            hint="add `reference` with the model that it was made from",
        )


def _check_split(spec: EvalSpec, diagnostics: Diagnostics) -> None:
    if not diagnostics.split_damage:
        return
    if spec.precision == "pinned":
        raise UsageError(
            '`split_damage` shows what the runtime adds, and `precision="pinned"` takes that away',
            hint='leave `precision="pinned"` out',
        )
    if spec.effective_chunk >= spec.seq_len:
        raise UsageError(
            f"`chunk={spec.effective_chunk}` feeds whole windows, in which the cache's precision is not seen",
            hint="leave `chunk` out, or take a smaller one",
        )
