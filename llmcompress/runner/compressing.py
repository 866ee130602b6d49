"""All artifacts of one model: a supervised worker loads it once, and a fresh one goes on where it died."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, manifest_sha256, remove_leftovers
from llmcompress.compression.compress import OutputOptions, compress, compress_by_kept_graph, prepare_for_layer
from llmcompress.compression.forecast import Forecast, require_fits
from llmcompress.compression.nncf.graph_reading import graphs_read_once
from llmcompress.compression.output import texts_converted_once
from llmcompress.compression.replay.key import cache_use
from llmcompress.compression.replay.replaying import may_replay
from llmcompress.errors import InterruptedRunError, LlmcompressError, ResourceError
from llmcompress.loaders import load
from llmcompress.loaders.environments import needed_layer, on_layer
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.runner.durations import remember
from llmcompress.runner.state import Original, compress_reason, search_reason
from llmcompress.spec import Access, Recipe
from llmcompress.spec.search import SearchSpec
from llmcompress.system.background import available_for
from llmcompress.system.environment import ends_after_this_call, is_worker, quiet_libraries
from llmcompress.system.files import free_bytes
from llmcompress.system.memory import is_refusal
from llmcompress.system.process import run_supervised, waiting_bytes
from llmcompress.system.progress import Progress, Reporter, silent

_ACCESS_OF_SEARCHES = ("revision", "trust_remote_code", "offline", "allow_nonfinite", "allow_links")


class CompressJob(NamedTuple):
    """One artifact to be made."""

    name: str
    """Of the recipe in the plan."""
    recipe: Recipe
    directory: Path
    replaces: str | None
    """Hash of the manifest that is there already and gets replaced."""
    forecast: Forecast
    search: SearchSpec | None = None
    """What makes it; None: the recipe does."""

    def reason(self, original: Original) -> str | None:
        """Why it has to be made; None: it is there."""
        if self.search is not None:
            return search_reason(self.directory, self.search, original)
        return compress_reason(self.directory, self.recipe, original)


def recipe_at(stage: str) -> str | None:
    """The recipe that a stage is of, whose name ends at the first colon; None: a stage of the model that all share."""
    name, colon, _ = stage.partition(": ")
    return name if colon else None


def compress_loaded(
    source: str, access: Access, jobs: Sequence[CompressJob], *, progress: Reporter
) -> dict[str, LlmcompressError | None]:
    """Load a model and make its artifacts one after the other, those of searches last; what exists is replaced.

    Returns:
        For each recipe what went wrong with it, or None.

    Raises: what ``load`` raises, and MemoryError.
    """
    quiet_libraries()
    started = time.perf_counter()
    found = resolve(source, access, vision=True)
    layer = needed_layer(found)
    outcomes: dict[str, LlmcompressError | None] = {}
    by_recipe = [job for job in jobs if job.search is None]
    if by_recipe and layer is None:
        ends = len(by_recipe) == len(jobs)
        outcomes = compress_by_all(found, access, by_recipe, started=started, ends=ends, progress=progress)
    elif by_recipe and layer is not None:
        read = prepare_for_layer(layer, found, [job.recipe for job in by_recipe], None, access, progress)
        how = {"access": read, "jobs": by_recipe}
        outcomes = on_layer(layer, compress_by_all, found, how, offline=access.offline, progress=progress)
    for job in jobs:
        if job.search is not None:
            outcomes[job.name] = _outcome(job, functools.partial(_search, source, access, job), progress)
    return outcomes


def _search(source: str, access: Access, job: CompressJob, progress: Reporter) -> None:
    from llmcompress.searching.search import search

    assert job.search is not None
    given = {name: getattr(access, name) for name in _ACCESS_OF_SEARCHES}
    search(source, job.search, job.directory, overwrite=True, progress=progress, **given)


def _outcome(job: CompressJob, make: Callable[[Reporter], None], progress: Reporter) -> LlmcompressError | None:
    """What went wrong with one artifact, or None."""

    def of_recipe(step: Progress) -> None:
        progress(step._replace(stage=f"{job.name}: {step.stage}"))

    of_recipe(Progress("begin", 0, 0))
    try:
        make(of_recipe)
    except Exception as error:
        if is_refusal(error):
            # The process may be in any state: a fresh one does the rest.
            raise
        # One recipe's fault must not stop the others.
        if isinstance(error, LlmcompressError):
            return error
        return LlmcompressError(f"unexpected {type(error).__name__}: {error}", where=job.name)
    return None


def compress_by_all(
    source: Source,
    access: Access,
    jobs: Sequence[CompressJob],
    *,
    started: float | None = None,
    ends: bool = False,
    progress: Reporter,
) -> dict[str, LlmcompressError | None]:
    """Do what ``compress_loaded`` does, with a source that was found; ``ends``: a worker has nothing to do after it."""
    started, found = started or time.perf_counter(), source
    outcomes: dict[str, LlmcompressError | None] = {}
    if cache_use(None).uses:
        made: set[str] = set()
        for job in jobs:
            if not may_replay(found, job.recipe, "llmcompress"):
                continue
            error = _outcome(job, functools.partial(_by_kept_graph, found, job, made), progress)
            if error is not None or job.name in made:
                outcomes[job.name] = error
    left = [job for job in jobs if job.name not in outcomes]
    if not left:
        return outcomes
    if ends and is_worker():
        ends_after_this_call()

    def of_model(step: Progress) -> None:
        progress(step._replace(stage=step.stage.replace(": ", " ")))

    # `compress` opens the tokenizer itself.
    loaded = load(found, allow_nonfinite=access.allow_nonfinite, tokenizer=False, progress=of_model)
    remember("load", found, (), time.perf_counter() - started)

    def make(job: CompressJob, progress: Reporter) -> None:
        report = compress(
            loaded,
            job.recipe,
            job.directory,
            overwrite=True,
            offline=access.offline,
            requantize=access.requantize and job.recipe.quantizes,
            progress=progress,
        )
        remember("compress", found, (job.recipe.portable(),), report.measured.duration_s)

    with graphs_read_once(), texts_converted_once():
        return outcomes | {job.name: _outcome(job, functools.partial(make, job), progress) for job in left}


def _by_kept_graph(source: Source, job: CompressJob, made: set[str], progress: Reporter) -> None:
    """Make an artifact without loading the model, where its graph is kept; it is noted then."""
    output = OutputOptions(job.directory, overwrite=True)
    report = compress_by_kept_graph(source, job.recipe, output, progress=progress)
    if report is not None:
        made.add(job.name)
        remember("compress", source, (job.recipe.portable(),), report.measured.duration_s)


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
            kwargs = {"source": source, "access": access, "jobs": todo}
            outcomes |= run_supervised(compress_loaded, kwargs, progress=watch, logs=logs, waiting="take")
            break
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
    return outcomes


def _now(job: CompressJob) -> Forecast:
    """The prediction against what this machine has at this moment."""
    # What the survey's worker has imported is what this one needs.
    available = available_for(job.forecast.min_memory_bytes) + waiting_bytes()
    return job.forecast.model_copy(
        update={"available_memory_bytes": available, "free_disk_bytes": free_bytes(job.directory)}
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
                original = Original(resolve(source, access, vision=True))
            if job.reason(original) is None:
                outcomes[job.name] = None
                continue
        left.append(job)
    return left
