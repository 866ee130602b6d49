"""What a run would do: each model found and pinned, each recipe predicted, and what is done already left out.

Runs in a worker: configurations build models on the meta device, and texts are tokenised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import read_measurements
from llmcompress.benchmarking.benchmark import require_engine
from llmcompress.compression.compress import predict
from llmcompress.compression.compressible import require_compressible
from llmcompress.compression.forecast import Forecast
from llmcompress.errors import GateError, UsageError
from llmcompress.graph.device import check_device
from llmcompress.loaders.light_imports import light_imports
from llmcompress.loaders.source import Source
from llmcompress.publishing.trackers import require_tracker
from llmcompress.runner.model import PlannedModel
from llmcompress.runner.records import Outlook, Step, asked_steps, failure
from llmcompress.runner.state import (
    benchmark_reason,
    card_reason,
    compress_reason,
    evaluate_reason,
    log_reason,
    push_reason,
    search_reason,
)
from llmcompress.runner.tuning import apply_reason, kept_defaults, tune_reason
from llmcompress.spec import Recipe
from llmcompress.spec.plan import Job, Plan
from llmcompress.spec.search import SearchSpec
from llmcompress.system.environment import ends_after_this_call, is_worker, quiet_libraries
from llmcompress.system.progress import Progress, Reporter, silent
from llmcompress.tuning import check_properties


class Surveyed(NamedTuple):
    """A job, and what was found out about it."""

    job: Job
    outlook: Outlook
    recipe: Recipe | None
    """None where what Optimum recommends could not be looked up."""
    revision: str | None
    """The commit of a Hub source."""
    forecast: Forecast | None
    """Without its layers; None where nothing is to be compressed."""


def survey(
    jobs: Sequence[Job], plan: Plan, *, offline: bool = False, devices: bool = True, progress: Reporter = silent
) -> tuple[Surveyed, ...]:
    """Look at every job; what is wrong with a model, or with a recipe for it, becomes the job's failure.

    Args:
        jobs: Of the plan, model by model.
        plan: What to do with each.
        offline: Use local files and caches only.
        devices: The work is done on this machine, whose devices and extras are checked.
        progress: Told of every job.

    Raises:
        UsageError: The plan measures on a device that is not there.
        ResourceError: The benchmark's engine or the tracker is not installed.
    """
    quiet_libraries()
    if is_worker() and len({job.model.source for job in jobs}) == 1:
        # Of several models one may need what the imports of another leave out.
        ends_after_this_call()
    if plan.log_to is not None:
        require_tracker(plan.log_to)
    if devices:
        _check_machine(plan)
    surveyed: list[Surveyed] = []
    for _, group in groupby(jobs, key=lambda job: job.model):
        model = PlannedModel(plan, offline)
        unmade: set[Path] = set()
        for job in group:
            progress(Progress("look at the jobs", len(surveyed), len(jobs), "jobs"))
            try:
                model.find(job)
                each = _surveyed(job, plan, model, here=devices, base_is_unmade=job.tuned_from in unmade)
                if "compress" in each.outlook.steps:
                    unmade.add(job.directory)
                surveyed.append(each)
            except Exception as error:  # noqa: BLE001 - one job's fault, whatever it is, must not stop the others
                surveyed.append(_stopped(job, plan, error))
                unmade.add(job.directory)
    progress(Progress("look at the jobs", len(jobs), len(jobs), "jobs"))
    return tuple(surveyed)


def _surveyed(job: Job, plan: Plan, model: PlannedModel, *, here: bool, base_is_unmade: bool) -> Surveyed:
    found = model.source
    recipe = job.recipe or _recommended(job, found)
    if job.tuned_from is not None:
        # What takes other time and memory has another name.
        recipe = recipe.model_copy(update={"name": job.recipe_name})
    steps, reason = _steps(job, recipe, plan, model, base_is_unmade=base_is_unmade)
    if "push" in steps and plan.evaluation is None and ("compress" in steps or not _is_evaluated(job.directory)):
        raise GateError(
            "a push asks for an evaluation, and neither the plan nor the artifact has one",
            where=job.name,
            hint="add evaluation: {}",
        )
    if "compress" in steps:
        # Next to recipes that keep codes or give their floats.
        again = job.model.requantize and recipe.quantizes
        with light_imports(found):
            require_compressible(found, recipe, requantize=again, here=here, offline=model.offline)
    if "tune" in steps:
        _ = model.tuning_token_ids_sha256
    if "evaluate" in steps and plan.evaluation is not None:
        _ = model.token_ids_sha256
    predicted = None
    if "compress" in steps:
        # The layers are many, and nobody asks a plan for them.
        predicted = predict(found, recipe, job.directory, offline=model.offline).model_copy(update={"layers": ()})
        if job.search is not None:
            predicted = _of_search(predicted, job.search)
    names = ("size_bytes", "peak_rss_bytes", "min_memory_bytes", "disk_bytes", "fits")
    outlook = Outlook(
        name=job.name,
        directory=str(job.directory),
        steps=steps,
        reason=reason,
        durations_s=model.durations_s(recipe, steps),
        **({name: getattr(predicted, name) for name in names} if predicted else {}),
    )
    return Surveyed(job, outlook, recipe, found.revision, predicted)


def _of_search(predicted: Forecast, spec: SearchSpec) -> Forecast:
    """What a search takes, by the forecast of an ordinary recipe."""
    from llmcompress.searching.search import needed_memory

    memory_bytes = max(predicted.min_memory_bytes, needed_memory(predicted, spec))
    size_bytes = spec.max_bytes or predicted.size_bytes
    if spec.bits_per_weight is not None:
        size_bytes = int(predicted.num_parameters * spec.bits_per_weight / 8)
    return predicted.model_copy(
        update={
            "size_bytes": size_bytes,
            "min_memory_bytes": memory_bytes,
            "peak_rss_bytes": max(predicted.peak_rss_bytes, memory_bytes),
            "fits": predicted.fits and memory_bytes <= predicted.available_memory_bytes,
        }
    )


def _stopped(job: Job, plan: Plan, error: Exception) -> Surveyed:
    steps = asked_steps(plan, job)
    why = failure(steps[0], error)
    outlook = Outlook(name=job.name, directory=str(job.directory), steps=steps, reason="not made yet", failure=why)
    return Surveyed(job, outlook, job.recipe, None, None)


def _recommended(job: Job, found: Source) -> Recipe:
    from llmcompress.loaders.recommended import recommended_recipe

    assert job.recommended is not None
    recipe = recommended_recipe(found, job.recommended, job.overrides)
    return recipe.model_copy(update={"name": job.recipe_name})


def _steps(
    job: Job, recipe: Recipe, plan: Plan, model: PlannedModel, *, base_is_unmade: bool
) -> tuple[tuple[Step, ...], str]:
    """What is left to do for a job, and why the first of it."""
    asked = asked_steps(plan, job)
    if job.tuned_from is not None:
        reason = (
            "what it is tuned from is made first" if base_is_unmade else _tune_reason(job, job.tuned_from, plan, model)
        )
    else:
        reason = _made_reason(job, recipe, model)
    if reason is not None:
        return asked, reason
    if job.tuned_from is not None and not _has_twin(job.tuned_from):
        return (), ""
    reasons: dict[Step, str | None] = {}
    if plan.evaluation is not None:
        # A dataset of the Hub is pinned.
        text = (lambda: model.token_ids_sha256) if plan.evaluation.dataset_path() is not None else None
        reasons["evaluate"] = evaluate_reason(job.directory, plan.evaluation, plan.gate, model.original, text)
    if plan.benchmark is not None:
        reasons["benchmark"] = benchmark_reason(job.directory, plan.benchmark)
    again = any(reasons.values())
    if plan.log_to is not None:
        reasons["log"] = "the reports change" if again else log_reason(job.directory, plan.log_to)
    if plan.card:
        reasons["card"] = "the reports change" if again else card_reason(job.directory)
    if plan.push is not None:
        assert job.repo_id is not None
        changed = any(reason for step, reason in reasons.items() if step != "log")
        pushed = push_reason(job.directory, job.repo_id, private=plan.push.private)
        reasons["push"] = "what is pushed changes" if changed else pushed
    left = tuple(step for step in asked if reasons.get(step) is not None)
    return left, next((reason for reason in reasons.values() if reason is not None), "")


def _made_reason(job: Job, recipe: Recipe, model: PlannedModel) -> str | None:
    if job.search is not None:
        return search_reason(job.directory, job.search, model.original)
    local = any(text.dataset_path() is not None for text in recipe.texts)
    windows = (lambda: model.texts(recipe)) if local else None
    return compress_reason(job.directory, recipe, model.original, windows)


def _tune_reason(job: Job, directory: Path, plan: Plan, model: PlannedModel) -> str | None:
    assert plan.tune is not None
    text = (lambda: model.tuning_token_ids_sha256) if plan.tune.dataset_path() is not None else None
    reason = tune_reason(directory, plan.tune, plan.gate, model.original, text)
    return apply_reason(directory, job.directory) if reason is None else reason


def _is_evaluated(directory: Path) -> bool:
    return read_measurements(directory).evaluation is not None


def _has_twin(directory: Path) -> bool:
    try:
        return not kept_defaults(directory)
    except GateError:
        return False


def _check_machine(plan: Plan) -> None:
    if plan.evaluation is not None:
        check_device(plan.evaluation.device)
    for device in plan.benchmark.devices if plan.benchmark else ():
        check_device(device)
    if plan.tune is not None:
        try:
            check_properties(plan.tune.spec())
        except UsageError as error:
            where = "tune.properties" if "propert" in error.where else error.where
            raise UsageError(error.message, where=where, hint=error.hint) from None
    if plan.benchmark is not None:
        require_engine(plan.benchmark, where="benchmark.engine")
