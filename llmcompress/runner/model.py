"""One model of a plan, before anything is made of it: what all its jobs share is found out once."""

from __future__ import annotations

from functools import cached_property

from pydantic import BaseModel

from llmcompress.compression.preparation import recipe_windows, training_windows
from llmcompress.data.protocols import scored_text
from llmcompress.loaders.context import require_context
from llmcompress.loaders.fetching import fetch_side_files
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.record import CalibrationRecord
from llmcompress.runner.durations import remembered
from llmcompress.runner.records import MEASURED, Step
from llmcompress.runner.state import Original
from llmcompress.spec import Recipe
from llmcompress.spec.plan import Job, Plan
from llmcompress.tuning import searched_text


class PlannedModel:
    """A model that is found when its first job is looked at."""

    def __init__(self, plan: Plan, offline: bool) -> None:
        self._plan, self.offline = plan, offline
        self._found: Source | Exception | None = None
        self._loads = False

    def find(self, job: Job) -> None:
        """Find it; raises what was found wrong with it, for each of its jobs again."""
        if self._found is None:
            try:
                self._found = resolve(job.model.source, job.model.access(offline=self.offline), vision=True)
                _check_context(self._found, self._plan)
            except Exception as error:  # noqa: BLE001 - kept for each of its jobs
                self._found = error
        if isinstance(self._found, Exception):
            raise self._found

    @property
    def source(self) -> Source:
        """As found."""
        assert isinstance(self._found, Source)
        return self._found

    @cached_property
    def original(self) -> Original:
        """To be compared with what artifacts say."""
        return Original(self.source)

    @cached_property
    def token_ids_sha256(self) -> str:
        """Of the text that the plan evaluates on, as this model's tokenizer reads it; also shows that it can be had."""
        assert self._plan.evaluation is not None
        spec = self._plan.evaluation.spec()
        return scored_text(fetch_side_files(self.source), spec, offline=self.offline).token_ids_sha256

    @cached_property
    def tuning_token_ids_sha256(self) -> str:
        """As ``token_ids_sha256``, of the text that the plan tunes on."""
        assert self._plan.tune is not None
        spec = self._plan.tune.spec()
        return searched_text(fetch_side_files(self.source), spec, offline=self.offline).token_ids_sha256

    def durations_s(self, recipe: Recipe, steps: tuple[Step, ...]) -> dict[Step, float]:
        """What the steps took last time; with the first artifact to be made comes loading the model."""
        made_by, plan = recipe.portable(), self._plan
        settings: dict[Step, tuple[BaseModel, ...]] = {"compress": (made_by,)}
        if plan.evaluation is not None:
            settings["evaluate"] = (made_by, plan.evaluation)
        if plan.benchmark is not None:
            settings["benchmark"] = (made_by, plan.benchmark)
        if plan.tune is not None:
            settings["tune"] = (made_by, plan.tune)
        known = {step: remembered(step, self.source, settings[step]) for step in steps if step in MEASURED}
        if "compress" in steps and not self._loads:
            self._loads = True
            load = remembered("load", self.source, ())
            known["compress"] = None if load is None or known["compress"] is None else load + known["compress"]
        return {step: duration for step, duration in known.items() if duration is not None}

    def texts(self, recipe: Recipe) -> dict[str, CalibrationRecord]:
        """The windows that the recipe's texts have now, by the names that a manifest gives them."""
        if not recipe.texts:
            return {}
        from llmcompress.loaders.tokenizer import source_tokenizer

        found = fetch_side_files(self.source)
        tokenizer = source_tokenizer(found)
        windows = recipe_windows(found, recipe, tokenizer, offline=self.offline)
        trained_on = training_windows(found, recipe, tokenizer, offline=self.offline)
        records = {} if windows is None else {"calibration": windows.record}
        if trained_on is not None:
            records |= {"training": trained_on.training.record, "validation": trained_on.validation.record}
        return records


def _check_context(found: Source, plan: Plan) -> None:
    wanted = {"evaluation.seq_len": plan.evaluation.seq_len if plan.evaluation else 0}
    if plan.benchmark is not None:
        shapes = plan.benchmark.shapes()
        wanted["benchmark"] = max(shape.depth + shape.prompt_tokens + shape.new_tokens for shape in shapes)
    if plan.tune is not None:
        wanted["tune.seq_len"] = plan.tune.seq_len
        wanted["tune.workloads"] = max(each.prompt_tokens + each.new_tokens for each in plan.tune.workloads)
    for field, num_tokens in wanted.items():
        asked = f"{num_tokens} tokens at once were asked for"
        require_context(found, num_tokens, asked, field=field, hint="take fewer tokens, or leave this model out")
