"""All artifacts of one model: a supervised worker loads it once, and a fresh one goes on where it died."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, manifest_sha256, remove_leftovers
from llmcompress.compression.forecast import Forecast, require_fits
from llmcompress.errors import InterruptedRunError, LlmcompressError, ResourceError
from llmcompress.loaders.source import resolve
from llmcompress.runner.loading import Wanted, compress_loaded, recipe_at
from llmcompress.runner.state import Original, compress_reason
from llmcompress.spec import Access
from llmcompress.system.memory import memory
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter, silent


class Order(NamedTuple):
    """One artifact to be made, and what that is predicted to need."""

    wanted: Wanted
    forecast: Forecast


def compress_model(
    source: str,
    access: Access,
    orders: Sequence[Order],
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
) -> dict[str, Exception | None]:
    """Make the artifacts of one model that are not there yet; for each recipe what went wrong with it, or None.

    A recipe that the worker died of is left out of the next worker's work. Raises InterruptedRunError alone.
    """
    outcomes: dict[str, Exception | None] = {}
    for wanted, predicted in orders:
        try:
            require_fits(_now(predicted, wanted))
        except ResourceError as error:
            outcomes[wanted.name] = error
    try:
        # Of an earlier attempt, on a machine that was lost, some may be done.
        todo = _left([order.wanted for order in orders if order.wanted.name not in outcomes], source, access, outcomes)
    except LlmcompressError as error:
        return outcomes | {order.wanted.name: error for order in orders if order.wanted.name not in outcomes}
    while todo:
        at: list[str | None] = [None]

        def watch(step: Progress, at: list[str | None] = at) -> None:
            at[0] = recipe_at(step.stage) or at[0]
            progress(step)

        try:
            made = run_supervised(
                compress_loaded,
                {"source": source, "access": access, "wanted": todo},
                progress=watch,
                logs=logs,
            )
        except InterruptedRunError:
            raise
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of what the worker was at
            # What the worker was at last may be complete.
            left = _left(todo, source, access, outcomes)
            for wanted in [wanted for wanted in left if at[0] in (None, wanted.name)]:
                outcomes[wanted.name] = error
                # A worker that was killed could not clean up.
                remove_leftovers(wanted.directory)
            todo = [wanted for wanted in left if wanted.name not in outcomes]
            continue
        outcomes.update(made)
        break
    return outcomes


def _now(predicted: Forecast, wanted: Wanted) -> Forecast:
    """The prediction against what this machine has at this moment."""
    place = next(path for path in (wanted.directory, *wanted.directory.parents) if path.exists())
    return predicted.model_copy(
        update={"available_memory_bytes": memory().available, "free_disk_bytes": shutil.disk_usage(place).free}
    )


def _left(wanted: Sequence[Wanted], source: str, access: Access, outcomes: dict[str, Exception | None]) -> list[Wanted]:
    """What is not made yet; the rest is noted as made."""
    original = None
    left = []
    for each in wanted:
        if (each.directory / MANIFEST).is_file() and manifest_sha256(each.directory) != each.replaces:
            if original is None:
                original = Original(resolve(source, access))
            if compress_reason(each.directory, each.recipe, original) is None:
                outcomes[each.name] = None
                continue
        left.append(each)
    return left
