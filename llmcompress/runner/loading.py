"""In a worker: one model, loaded once, and all the artifacts that are made of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.compression.compress import compress
from llmcompress.compression.forecast import Forecast
from llmcompress.errors import LlmcompressError
from llmcompress.loaders import load
from llmcompress.loaders.source import resolve
from llmcompress.runner.durations import remember
from llmcompress.spec import Access, Recipe
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.progress import Progress, Reporter


class CompressJob(NamedTuple):
    """One artifact to be made."""

    name: str
    """Of the recipe in the plan."""
    recipe: Recipe
    directory: Path
    replaces: str | None
    """Hash of the manifest that lies there already and is to be replaced."""
    forecast: Forecast


def stage_of(name: str, stage: str) -> str:
    """Name a stage of one recipe; its name ends at the first colon."""
    return f"{name}: {stage}"


def recipe_at(stage: str) -> str | None:
    """The recipe that a stage is of; None: a stage of the model that all share."""
    name, colon, _ = stage.partition(": ")
    return name if colon else None


def compress_loaded(
    source: str, access: Access, jobs: Sequence[CompressJob], *, progress: Reporter
) -> dict[str, LlmcompressError | None]:
    """Load a model and make its artifacts one after the other; what exists is replaced.

    Returns:
        For each recipe what went wrong with it, or None.

    Raises: what ``load`` raises, and MemoryError.
    """
    quiet_libraries()
    started = time.perf_counter()
    found = resolve(source, access)

    def of_model(step: Progress) -> None:
        progress(step._replace(stage=step.stage.replace(": ", " ")))

    # `compress` opens the tokenizer itself.
    loaded = load(found, allow_nonfinite=access.allow_nonfinite, tokenizer=False, progress=of_model)
    remember("load", found, (), time.perf_counter() - started)
    outcomes: dict[str, LlmcompressError | None] = {}
    for job in jobs:

        def of_recipe(step: Progress, name: str = job.name) -> None:
            progress(step._replace(stage=stage_of(name, step.stage)))

        of_recipe(Progress("begin", 0, 0))
        try:
            report = compress(
                loaded, job.recipe, job.directory, overwrite=True, offline=access.offline, progress=of_recipe
            )
            remember("compress", found, (job.recipe.portable(),), report.measured.duration_s)
            outcomes[job.name] = None
        except MemoryError:
            # The process may be in any state: a fresh one does the rest.
            raise
        except LlmcompressError as error:
            outcomes[job.name] = error
        except Exception as error:  # noqa: BLE001 - one recipe's fault must not stop the others
            outcomes[job.name] = LlmcompressError(f"unexpected {type(error).__name__}: {error}", where=job.name)
    return outcomes
