"""What a plan says, as a person writes it."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmcompress.errors import UsageError
from llmcompress.spec import BenchSpec, EvalSpec, Gate, TuneSpec
from llmcompress.spec.access import Access
from llmcompress.spec.recipe import NAME
from llmcompress.spec.search import SearchSpec, parse_size
from llmcompress.spec.tuning import Scope, parse_workload, with_budget_s
from llmcompress.spec.validation import MAX_COUNT, Refusal, StrictModel, Text, Texts, did_you_mean, refusal_error, shown

Name = Annotated[Text, Field(pattern=NAME)]
Tracker = Literal["mlflow", "trackio", "wandb", "tensorboard"]
"""What keeps the figures of experiments."""
Settings = dict[str, Any]
"""Dotted fields of a recipe with their values, as after ``--set``."""


class PlanModel(StrictModel):
    """One model."""

    source: Text
    """Hub id, checkpoint directory, GGUF file or OpenVINO IR directory. A relative path in a file starts at its
    folder."""
    name: Name | None = None
    """Of the directory below the output. None: the last part of ``source``."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub source."""
    trust_remote_code: bool = False
    allow_nonfinite: bool = False
    allow_links: bool = False
    merge_adapter: bool = False
    """The source is an adapter's: its base model is loaded, and it is merged into it."""
    max_context: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    requantize: bool = False
    """The source is quantized already: recipes that quantize may do so again."""
    file: Text | None = None
    """The GGUF file that is meant, of a directory or repository that holds several."""
    text_only: bool = False
    """The language model of a vision-language checkpoint alone."""
    exclude: Texts = ()
    """Names of recipes that are not for this model."""
    overrides: dict[str, Settings] = Field(default_factory=dict)
    """Name of a recipe -> fields that are otherwise for this model."""

    def access(self, *, offline: bool) -> Access:
        """Return how the model is opened."""
        return Access(
            self.revision,
            self.trust_remote_code,
            offline,
            self.allow_nonfinite,
            self.allow_links,
            self.merge_adapter,
            self.max_context,
            self.requantize,
            file=self.file,
            text_only=self.text_only,
        )

    @property
    def short_name(self) -> str:
        """``name``, or the last part of ``source``."""
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix(".onnx")


class PlanSearch(SearchSpec):
    """A search whose plan is an artifact of a plan."""

    def spec(self) -> SearchSpec:
        """What a report answers."""
        return SearchSpec(**{name: getattr(self, name) for name in SearchSpec.model_fields})

    @model_validator(mode="before")
    @classmethod
    def _read_short_forms(cls, fields: Any) -> Any:
        """``max_bytes: 800MB``, and ``budget: 5m`` for ``budget_s``."""
        if isinstance(fields, dict) and "max_bytes" in fields:
            fields = {**fields, "max_bytes": _read(parse_size, fields["max_bytes"], "max_bytes")}
        return with_budget_s(fields)

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        if self.front:
            problem = "has no effect in a plan, whose searches of one model share what they make"
            yield Refusal("front", problem, "write a further search for each size")


class PlanRecipe(StrictModel):
    """One recipe: a packaged name or a file, perhaps with fields of its own; or a search for one."""

    recipe: Text | None = None
    """A packaged name, ``optimum-default``, or a .yaml file. A relative path in a file starts at its folder."""
    search: PlanSearch | None = None
    """The limit, the formats and the text of a search, which makes the artifact."""
    name: Name | None = None
    """Of the directory below the model's. None: the recipe's own name."""
    set: Settings = Field(default_factory=dict)

    def _refusals(self) -> Iterator[Refusal]:
        if (self.recipe is None) == (self.search is None):
            got = "neither" if self.recipe is None else "both"
            yield Refusal("recipe", f"got {got} of recipe and search; exactly one is accepted", "write one of the two")
        if self.search is None:
            return
        if self.name is None:
            yield Refusal("name", "is missing; what a search makes has no name of its own", "give it one")
        if self.set:
            yield Refusal("set", "has no effect on a search, which writes the recipe", "remove it")


class Evaluation(EvalSpec):
    """What is measured of every artifact, against the original that it was made from."""

    reference_scores: Literal["auto", "exact", "rounded", "cached"] = "auto"
    """``exact``: the whole vocabulary, both models at once. ``rounded``: the same one after the other, the original's
    logits kept on disk meanwhile, each within 1/1024 of a nat. ``cached``: the original's likeliest tokens, scored once
    for all its artifacts; a lower bound. ``auto``: exact where memory suffices, else rounded where the disk does."""
    num_generations: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    noise_floor: bool = False
    split_damage: bool = False

    def spec(self) -> EvalSpec:
        """The part of it that a report answers."""
        return EvalSpec(**{name: getattr(self, name) for name in EvalSpec.model_fields})

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        if self.reference_scores in ("rounded", "cached"):
            for name in ("noise_floor", "split_damage"):
                if getattr(self, name):
                    problem = f"runs two models at once, which {self.reference_scores} scores avoid"
                    yield Refusal(name, problem, "remove one of the two")
        if self.split_damage and self.precision == "pinned":
            problem = "shows what the runtime adds, and precision pinned takes that away"
            yield Refusal("split_damage", problem, "remove it, or take precision as_used")
        if self.split_damage and self.effective_chunk >= self.seq_len:
            problem = f"needs chunks: {self.effective_chunk} feeds whole windows, in which the cache is not seen"
            yield Refusal("chunk", problem, "remove it, or take a smaller one")


class Tuning(TuneSpec):
    """How the runtime's settings of every artifact are searched; what is found makes a second artifact next to it."""

    scope: Scope = "model"
    reference: Literal["original", "itself"] = "original"
    """What the divergence of the settings is measured from: what the artifact was made from, or the artifact itself in
    exact execution, which takes less memory and tells nothing of what the compression lost."""
    only: Texts = ()
    """Names of the recipes whose artifacts are tuned; none: all."""

    def spec(self) -> TuneSpec:
        """The part of it that a report answers."""
        return TuneSpec(**{name: getattr(self, name) for name in TuneSpec.model_fields})

    @model_validator(mode="before")
    @classmethod
    def _read_short_forms(cls, fields: Any) -> Any:
        """``budget: 5m`` for ``budget_s``, and workloads as on the command line."""
        if not isinstance(fields, dict):
            return fields
        fields = dict(fields)
        workloads = fields.get("workloads")
        if isinstance(workloads, (list, tuple)):
            read = [_read(parse_workload, each, f"workloads.{n}") for n, each in enumerate(workloads)]
            fields["workloads"] = tuple(read)
        return with_budget_s(fields)

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        if self.scope != "model":
            problem = "a plan compares artifacts, and what a model cannot hold is in none"
            yield Refusal("scope", problem, "remove it; llmcompress tune finds a profile of the machine")


class Push(StrictModel):
    """Where finished artifacts go on the Hub."""

    repo_id: Text
    """``namespace/name`` in which ``{model}`` and ``{recipe}`` stand for the job's names."""
    private: bool = False

    def _refusals(self) -> Iterator[Refusal]:
        for problem in _template_problems(self.repo_id):
            yield Refusal("repo_id", problem, "for example me/{model}-{recipe}-ov")

    def repository(self, model: str, recipe: str) -> str:
        """The repository of one job."""
        return self.repo_id.format(model=model, recipe=recipe)


class Plan(StrictModel):
    """Models by recipes, and what is done with each artifact: evaluated, benchmarked, tuned, described, pushed."""

    output: Text | None = None
    """Directory of the artifacts, ``OUTPUT/MODEL/RECIPE``. A relative path in a file starts at its folder."""
    models: Annotated[tuple[PlanModel, ...], Field(strict=False, min_length=1)]
    recipes: Annotated[tuple[PlanRecipe, ...], Field(strict=False, min_length=1)]
    evaluation: Evaluation | None = None
    benchmark: BenchSpec | None = None
    tune: Tuning | None = None
    gate: Gate = Gate()
    """Thresholds, each instead of the recipe's own."""
    log_to: Tracker | None = None
    """Also log the figures of each evaluation and benchmark there."""
    card: bool = False
    push: Push | None = None

    def _refusals(self) -> Iterator[Refusal]:
        if self.log_to is not None and self.evaluation is None and self.benchmark is None:
            problem = "logs the figures of evaluations and benchmarks, and the plan has neither"
            yield Refusal("log_to", problem, "add evaluation: {} or benchmark: {}")
        yield from _gate_refusals(self)
        yield from _name_refusals(self)


def _gate_refusals(plan: Plan) -> Iterator[Refusal]:
    if self_set := plan.gate.model_dump(exclude_none=True):
        if plan.evaluation is None:
            yield Refusal("gate", "is judged by an evaluation, and the plan has none", "add evaluation: {}")
        elif plan.evaluation.reference_scores == "cached" and "max_kl" in self_set:
            problem = "cannot be passed with reference_scores cached, which gives a lower bound"
            yield Refusal("gate.max_kl", problem, "remove reference_scores: cached")
    if self_set and plan.tune is not None and plan.tune.reference == "itself":
        problem = "itself cannot tell what the gate asks: it compares with the original"
        yield Refusal("tune.reference", problem, "remove it, or the gate")


def _name_refusals(plan: Plan) -> Iterator[Refusal]:
    named: dict[str, int] = {}
    for index, model in enumerate(plan.models):
        name = model.short_name
        if model.name is None and not re.fullmatch(NAME, name):
            problem = f"{shown(name)} cannot name a directory of the output"
            yield Refusal(f"models.{index}.source", problem, "give the model a name")
        # File systems that do not tell A from a would put both into one directory.
        if name.lower() in named:
            problem = f"the name {name} is that of models[{named[name.lower()]}] too"
            yield Refusal(f"models.{index}", problem, "give each a name of its own")
        named[name.lower()] = index


def _read(parse: Callable[[str], Any], value: Any, field: str) -> Any:
    """Read a text in its short form; anything else is left to the field itself."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except UsageError as error:
        raise refusal_error(Refusal(field, error.message, error.hint)) from None


def _template_problems(template: str) -> Iterator[str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        yield f"{shown(template)} has a brace too many or too few ({error})"
        return
    for field in fields:
        if field not in ("model", "recipe"):
            nearest = did_you_mean(field, ("model", "recipe"))
            yield f"{{{field}}} stands for nothing; accepted: {{model}}, {{recipe}}{'; ' + nearest if nearest else ''}"
