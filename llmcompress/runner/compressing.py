"""All artifacts of one model: a supervised worker loads it once, and a fresh one goes on where it died."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmcompress.artifact import MANIFEST, manifest_sha256, remove_leftovers
from llmcompress.compression.forecast import Forecast, require_fits
from llmcompress.errors import InterruptedRunError, LlmcompressError, ResourceError
from llmcompress.loaders.source import resolve
from llmcompress.runner.loading import CompressJob, compress_loaded, recipe_at
from llmcompress.runner.state import Original, compress_reason
from llmcompress.spec import Access
from llmcompress.system.files import free_bytes
from llmcompress.system.memory import memory
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter, silent


def compress_model(
    source: str,
    access: Access,
    jobs: Sequence[CompressJob],
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
) -> dict[str, Exception | None]:
    """Make the artifacts of one model that are not there yet; for each recipe what went wrong with it, or None.

    A recipe that the worker died of is left out of the next worker's work. Raises InterruptedRunError alone.
    """
    outcomes: dict[str, Exception | None] = {}
    for job in jobs:
        try:
            require_fits(_now(job))
        except ResourceError as error:
            outcomes[job.name] = error
    try:
        # Of an earlier attempt, on a machine that was lost, some may be done.
        todo = _left(jobs, source, access, outcomes)
    except LlmcompressError as error:
        return {job.name: error for job in jobs} | outcomes
    while todo:
        at: list[str | None] = [None]

        def watch(step: Progress, at: list[str | None] = at) -> None:
            at[0] = recipe_at(step.stage) or at[0]
            progress(step)

        try:
            made = run_supervised(
                compress_loaded,
                {"source": source, "access": access, "jobs": todo},
                progress=watch,
                logs=logs,
            )
        except InterruptedRunError:
            raise
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of what the worker was at
            # What the worker was at last may be complete.
            left = _left(todo, source, access, outcomes)
            for job in left:
                if at[0] in (None, job.name):
                    outcomes[job.name] = error
                    # A worker that was killed could not clean up.
                    remove_leftovers(job.directory)
            todo = [job for job in left if job.name not in outcomes]
            continue
        outcomes.update(made)
        break
    return outcomes


def _now(job: CompressJob) -> Forecast:
    """The prediction against what this machine has at this moment."""
    return job.forecast.model_copy(
        update={"available_memory_bytes": memory().available, "free_disk_bytes": free_bytes(job.directory)}
    )


def _left(
    jobs: Sequence[CompressJob], source: str, access: Access, outcomes: dict[str, Exception | None]
) -> list[CompressJob]:
    """Those without an outcome whose artifact is not made yet; the others are noted as made."""
    original = None
    left = []
    for job in jobs:
        if job.name in outcomes:
            continue
        if (job.directory / MANIFEST).is_file() and manifest_sha256(job.directory) != job.replaces:
            if original is None:
                original = Original(resolve(source, access))
            if compress_reason(job.directory, job.recipe, original) is None:
                outcomes[job.name] = None
                continue
        left.append(job)
    return left
