"""What a run would do: each model found and pinned, each recipe predicted, and what is done already left out.

Runs in a worker: configurations build models on the meta device, and texts are tokenised.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from pydantic import BaseModel

from llmcompress.compression.forecast import Forecast, forecast
from llmcompress.environment import quiet_libraries
from llmcompress.errors import ResourceError, UsageError
from llmcompress.evaluation import scored_text
from llmcompress.loaders.source import Source, fetch_side_files, longest_context, resolve
from llmcompress.plan import Job, Plan
from llmcompress.progress import Progress, Reporter, silent
from llmcompress.recipe import Recipe
from llmcompress.report import CalibrationRecord
from llmcompress.runner.durations import remembered
from llmcompress.runner.records import MEASURED, STEPS, Failure, Outlook, Step, failure
from llmcompress.runner.state import (
    Original,
    benchmark_reason,
    card_reason,
    compress_reason,
    evaluate_reason,
    push_reason,
)
from llmcompress.runtime import check_device


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
        plan: What is to be done with each.
        offline: Use local files and caches only.
        devices: The work is done on this machine, whose devices and extras are checked.
        progress: Told of every job.

    Raises:
        UsageError: The plan measures on a device that is not there.
        ResourceError: The benchmark's engine is not installed.
    """
    quiet_libraries()
    if devices:
        _check_machine(plan)
    surveyed: list[Surveyed] = []
    for _, group in groupby(jobs, key=lambda job: job.model):
        model = _Model(plan, offline)
        for job in group:
            progress(Progress("look at the jobs", len(surveyed), len(jobs), "jobs"))
            try:
                model.find(job)
                surveyed.append(_surveyed(job, plan, model))
            except Exception as error:  # noqa: BLE001 - one job's fault, whatever it is, must not stop the others
                surveyed.append(_stopped(job, plan, failure("compress", error)))
    progress(Progress("look at the jobs", len(jobs), len(jobs), "jobs"))
    return tuple(surveyed)


class _Model:
    """One model, found when its first job is looked at; what all its jobs share is computed once."""

    def __init__(self, plan: Plan, offline: bool) -> None:
        self._plan, self._offline = plan, offline
        self._found: Source | Exception | None = None
        self._loads = False

    def find(self, job: Job) -> None:
        """Find it; raises what was found wrong with it, for each of its jobs again."""
        if self._found is None:
            try:
                self._found = resolve(
                    job.model.source,
                    revision=job.model.revision,
                    trust_remote_code=job.model.trust_remote_code,
                    offline=self._offline,
                )
                _check_context(self._found, self._plan)
            except Exception as error:  # noqa: BLE001 - kept for each of its jobs
                self._found = error
        if isinstance(self._found, Exception):
            raise self._found

    @property
    def source(self) -> Source:
        assert isinstance(self._found, Source)
        return self._found

    @cached_property
    def original(self) -> Original:
        return Original(self.source)

    @cached_property
    def token_ids_sha256(self) -> str:
        """Of the text that the plan evaluates on, as this model's tokenizer reads it; also shows that it can be had."""
        assert self._plan.evaluation is not None
        spec = self._plan.evaluation.spec()
        return scored_text(fetch_side_files(self.source), spec, offline=self._offline).token_ids_sha256

    def durations_s(self, recipe: Recipe, steps: tuple[Step, ...]) -> dict[Step, float]:
        """What the steps took last time; with the first artifact to be made comes loading the model."""
        made_by, plan = recipe.portable(), self._plan
        settings: dict[Step, tuple[BaseModel, ...]] = {"compress": (made_by,)}
        if plan.evaluation is not None:
            settings["evaluate"] = (made_by, plan.evaluation)
        if plan.benchmark is not None:
            settings["benchmark"] = (made_by, plan.benchmark)
        known = {step: remembered(step, self.source, settings[step]) for step in steps if step in MEASURED}
        if "compress" in steps and not self._loads:
            self._loads = True
            load = remembered("load", self.source, ())
            known["compress"] = None if load is None or known["compress"] is None else load + known["compress"]
        return {step: duration for step, duration in known.items() if duration is not None}

    def calibration(self, recipe: Recipe) -> CalibrationRecord | None:
        """The windows that the recipe's text has now."""
        if recipe.calibration is None:
            return None
        from llmcompress.data import calibration_windows
        from llmcompress.loaders.tokenizer import load_tokenizer

        found = fetch_side_files(self.source)
        tokenizer = load_tokenizer(found.path, trust_remote_code=found.trust_remote_code)
        longest = longest_context(found)
        return calibration_windows(recipe.calibration, tokenizer, offline=self._offline, max_seq_len=longest).record


def _surveyed(job: Job, plan: Plan, model: _Model) -> Surveyed:
    found = model.source
    recipe = job.recipe or _recommended(job, found)
    steps, reason = _steps(job, recipe, plan, model)
    if "evaluate" in steps and plan.evaluation is not None:
        _ = model.token_ids_sha256
    predicted = None
    if "compress" in steps:
        # The layers are many, and nobody asks a plan for them.
        predicted = forecast(found, recipe, job.directory).model_copy(update={"layers": ()})
    outlook = Outlook(
        name=job.name,
        directory=str(job.directory),
        steps=steps,
        reason=reason,
        size_bytes=predicted.size_bytes if predicted else None,
        peak_rss_bytes=predicted.peak_rss_bytes if predicted else None,
        min_memory_bytes=predicted.min_memory_bytes if predicted else None,
        disk_bytes=predicted.disk_bytes if predicted else None,
        fits=predicted.fits if predicted else True,
        durations_s=model.durations_s(recipe, steps),
    )
    return Surveyed(job, outlook, recipe, found.revision, predicted)


def _stopped(job: Job, plan: Plan, why: Failure) -> Surveyed:
    outlook = Outlook(
        name=job.name,
        directory=str(job.directory),
        steps=_asked(plan),
        reason="not made yet",
        failure=why,
    )
    return Surveyed(job, outlook, job.recipe, None, None)


def _recommended(job: Job, found: Source) -> Recipe:
    from llmcompress.loaders.recommended import recommended_recipe

    assert job.recommended is not None
    recipe = recommended_recipe(found, job.recommended, job.overrides)
    return recipe.model_copy(update={"name": job.recipe_name})


def _asked(plan: Plan) -> tuple[Step, ...]:
    wanted = {
        "compress": True,
        "evaluate": plan.evaluation is not None,
        "benchmark": plan.benchmark is not None,
        "card": plan.card,
        "push": plan.push is not None,
    }
    return tuple(step for step in STEPS if wanted[step])


def _steps(job: Job, recipe: Recipe, plan: Plan, model: _Model) -> tuple[tuple[Step, ...], str]:
    """What is left to do for a job, and why the first of it."""
    asked = _asked(plan)
    local = recipe.calibration is not None and recipe.calibration.dataset_path() is not None
    windows = (lambda: model.calibration(recipe)) if local else None
    reason = compress_reason(job.directory, recipe, model.original, windows)
    if reason is not None:
        return asked, reason
    reasons: dict[Step, str | None] = {}
    if plan.evaluation is not None:
        # A dataset of the Hub is pinned.
        text = (lambda: model.token_ids_sha256) if plan.evaluation.dataset_path() is not None else None
        reasons["evaluate"] = evaluate_reason(job.directory, plan.evaluation, plan.gate, model.original, text)
    if plan.benchmark is not None:
        reasons["benchmark"] = benchmark_reason(job.directory, plan.benchmark)
    again = any(reasons.values())
    if plan.card:
        reasons["card"] = "the reports change" if again else card_reason(job.directory)
    if plan.push is not None:
        assert job.repo_id is not None
        changed = any(reasons.values())
        pushed = push_reason(job.directory, job.repo_id, private=plan.push.private)
        reasons["push"] = "what is pushed changes" if changed else pushed
    left = tuple(step for step in asked if reasons.get(step) is not None)
    return left, next((reason for reason in reasons.values() if reason is not None), "")


def _check_context(found: Source, plan: Plan) -> None:
    longest = longest_context(found)
    if longest is None:
        return
    wanted = {"evaluation.seq_len": plan.evaluation.seq_len if plan.evaluation else 0}
    if plan.benchmark is not None:
        shapes = plan.benchmark.shapes()
        wanted["benchmark"] = max(shape.depth + shape.prompt_tokens + shape.new_tokens for shape in shapes)
    for field, num_tokens in wanted.items():
        if num_tokens > longest:
            raise UsageError(
                f"{num_tokens} tokens at once were asked for, the model's context is {longest}",
                where=f"{found.id or found.path.name}: {field}",
                hint="take fewer tokens, or leave this model out",
            )


def _check_machine(plan: Plan) -> None:
    devices = [
        *([plan.evaluation.device] if plan.evaluation else []),
        *(plan.benchmark.devices if plan.benchmark else ()),
    ]
    for device in devices:
        check_device(device)
    genai = plan.benchmark is not None and plan.benchmark.engine == "genai"
    if genai and importlib.util.find_spec("openvino_genai") is None:
        raise ResourceError(
            "engine genai needs openvino-genai, which is not installed",
            where="benchmark.engine",
            hint='pip install "llmcompress[genai]"',
        )
