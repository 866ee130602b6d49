"""One model by one recipe, with every override applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import RecipeError, UsageError
from llmcompress.spec import RECOMMENDED, Recipe, load_recipe, override_recipe
from llmcompress.spec.access import check_repo_id
from llmcompress.spec.plan.records import Plan, PlanModel, PlanRecipe, Settings, Tuning
from llmcompress.spec.search import SearchSpec
from llmcompress.spec.validation import Location, did_you_mean, dotted

Place = Callable[[Location], str]
"""Names a field of the plan in the person's terms."""


class Job(NamedTuple):
    """One directory to make."""

    model: PlanModel
    recipe_name: str
    recipe: Recipe | None
    """None: it depends on the model, and is looked up by ``recommended``."""
    recommended: str | None
    """A name of ``RECOMMENDED``."""
    overrides: tuple[str, ...]
    """For what is looked up."""
    directory: Path
    """Absolute."""
    repo_id: str | None
    """Where it is pushed."""
    tuned_from: Path | None = None
    """The artifact of another job, whose runtime settings are searched to make this one; None: made from the model."""
    search: SearchSpec | None = None
    """What is searched for to make it; ``recipe`` stands for what that takes."""

    @property
    def name(self) -> str:
        """``MODEL/RECIPE``."""
        return f"{self.model.short_name}/{self.recipe_name}"


TUNED = "-tuned"
"""What the name of a tuned artifact has after that of its recipe."""


class _Entry(NamedTuple):
    name: str
    recipe: Recipe | None
    recommended: str | None
    settings: tuple[str, ...]
    search: SearchSpec | None = None


def planned_jobs(plan: Plan, output_dir: Path, *, place: Place = dotted) -> tuple[Job, ...]:
    """Return the jobs of a plan, model by model, in its order.

    Args:
        plan: The plan.
        output_dir: Where ``MODEL/RECIPE`` directories go.
        place: Names a field in errors.

    Raises:
        RecipeError: A recipe that does not exist, is wrong or contradicts itself, two of one name, an exclude or an
            override of a recipe that the plan does not have, a text that is not there, or a model without a recipe.
        UsageError: A repository that cannot be one, or two artifacts for the same.
    """
    entries = _entries(plan, place)
    if plan.tune is not None:
        _check_tuned(plan.tune, entries, place)
    jobs: list[Job] = []
    for index, model in enumerate(plan.models):
        at: Location = ("models", index)
        for field, names in (("exclude", model.exclude), ("overrides", tuple(model.overrides))):
            for number, name in enumerate(names):
                last: Location = (number,) if field == "exclude" else (name,)
                _check_known(name, entries, place((*at, field, *last)))
        chosen = [entry for entry in entries.values() if entry.name not in model.exclude]
        if not chosen:
            raise RecipeError("every recipe is excluded", where=place((*at, "exclude")), hint="remove the model")
        for name in model.overrides:
            if name in model.exclude:
                where = place((*at, "overrides", name))
                raise RecipeError("has no effect: the recipe is excluded", where=where, hint="remove one of the two")
        for entry in chosen:
            recipe, settings = entry.recipe, entry.settings
            if entry.search is not None:
                _check_searched(model, entry.name, at, place)
            if own := model.overrides.get(entry.name):
                settings = (*settings, *_overrides(own))
                if recipe is not None:
                    recipe = _overridden(recipe, own, (*at, "overrides", entry.name), place)
                    _check_text(recipe, place((*at, "overrides", entry.name)))
            directory = output_dir.absolute() / model.short_name / entry.name
            repo_id = plan.push.repository(model.short_name, entry.name) if plan.push else None
            job = Job(model, entry.name, recipe, entry.recommended, settings, directory, repo_id, search=entry.search)
            jobs.append(job)
            if plan.tune is not None and entry.name in (plan.tune.only or entries):
                _check_gate(job, plan.tune, place(("tune", "reference")))
                jobs.append(_tuned(job, plan))
    _check_repositories(jobs, place(("push", "repo_id")))
    return tuple(jobs)


def _entries(plan: Plan, place: Place) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    lower: dict[str, int] = {}
    for index, planned in enumerate(plan.recipes):
        entry = _entry(planned, ("recipes", index), place)
        if entry.name.lower() in lower:
            raise RecipeError(
                f"the name {entry.name} is that of recipes[{lower[entry.name.lower()]}] too",
                where=place(("recipes", index)),
                hint="give each a name of its own",
            )
        lower[entry.name.lower()] = index
        entries[entry.name] = entry
    return entries


def _entry(planned: PlanRecipe, at: Location, place: Place) -> _Entry:
    if planned.search is not None:
        return _searched_entry(planned, at, place)
    assert planned.recipe is not None
    if planned.recipe in RECOMMENDED:
        name = planned.name or planned.recipe
        return _Entry(name, None, planned.recipe, _overrides(planned.set))
    try:
        recipe = load_recipe(planned.recipe)
    except RecipeError as error:
        # An error inside a recipe's file names that file; one of its name is the plan's.
        inside = planned.recipe.endswith((".yaml", ".yml")) and Path(planned.recipe).is_file()
        where = error.where if inside else place((*at, "recipe"))
        raise RecipeError(error.message, where=where, hint=error.hint) from None
    if planned.set:
        recipe = _overridden(recipe, planned.set, (*at, "set"), place)
    _check_text(recipe, place(at))
    if planned.name is not None:
        recipe = recipe.model_copy(update={"name": planned.name})
    return _Entry(recipe.name, recipe, None, ())


def _searched_entry(planned: PlanRecipe, at: Location, place: Place) -> _Entry:
    assert planned.search is not None
    assert planned.name is not None
    spec = planned.search.spec()
    for part, text in (("dataset", spec), ("calibration", spec.calibration)):
        path = text.dataset_path() if text is not None else None
        if path is not None and not path.is_file():
            where = place((*at, "search", part))
            raise RecipeError(f"there is no file {path}", where=where, hint="check the path")
    weights = {"mode": "int4_sym", "group_size": 128, "group_size_fallback": "adjust"}
    return _Entry(planned.name, Recipe.model_validate({"name": planned.name, "weights": weights}), None, (), spec)


def _check_searched(model: PlanModel, name: str, at: Location, place: Place) -> None:
    """Refuse what a search of a model does not take."""
    if name in model.overrides:
        where = place((*at, "overrides", name))
        raise RecipeError("has no effect on a search, which writes the recipe", where=where, hint="remove it")
    for field in ("merge_adapter", "max_context", "requantize", "file", "text_only"):
        if getattr(model, field):
            raise RecipeError(
                f"the search {name} does not take it: it begins with a whole checkpoint in floating point",
                where=place((*at, field)),
                hint=f"exclude {name} from this model",
            )


def _tuned(job: Job, plan: Plan) -> Job:
    """The job that tunes what another makes."""
    name = job.recipe_name + TUNED
    return job._replace(
        recipe_name=name,
        directory=job.directory.with_name(name),
        repo_id=plan.push.repository(job.model.short_name, name) if plan.push else None,
        tuned_from=job.directory,
        search=None,
    )


def _check_tuned(tuning: Tuning, entries: dict[str, _Entry], place: Place) -> None:
    for number, name in enumerate(tuning.only):
        _check_known(name, entries, place(("tune", "only", number)))
    known = {name.lower(): index for index, name in enumerate(entries)}
    for name in tuning.only or entries:
        if (taken := known.get(name.lower() + TUNED)) is not None:
            raise RecipeError(
                f"the name {name}{TUNED} is that of the tuned {name}",
                where=place(("recipes", taken)),
                hint="give it another name",
            )


def _check_gate(job: Job, tuning: Tuning, where: str) -> None:
    if tuning.reference == "itself" and job.recipe is not None and job.recipe.gate.model_dump(exclude_none=True):
        raise RecipeError(
            f"itself cannot tell what the gate of {job.recipe_name} asks: it compares with the original",
            where=where,
            hint="remove it",
        )


def _check_text(recipe: Recipe, where: str) -> None:
    for text in recipe.texts:
        path = text.dataset_path()
        if path is None or path.is_file():
            continue
        raise RecipeError(f"recipe {recipe.name}: there is no file {path}", where=where, hint="check the path")


def _overridden(recipe: Recipe, settings: Settings, at: Location, place: Place) -> Recipe:
    """Apply settings; an error names the one that is wrong."""
    try:
        return override_recipe(recipe, _overrides(settings))
    except RecipeError as error:
        field = error.where.removeprefix("`overrides` ")
        # The field that is wrong may lie below or above the one that was set, or be another one that it contradicts.
        key = next((key for key in settings if field == key or field.startswith((f"{key}.", f"{key}["))), None)
        where = place(at if key is None else (*at, key))
        about = "" if key == field or not field or field == "`overrides`" else f"{field.partition(': ')[2] or field}: "
        hint = error.hint.replace("`overrides` ", "")
        raise RecipeError(f"{about}{error.message}", where=where, hint=hint) from None


def _overrides(settings: Settings) -> tuple[str, ...]:
    # JSON is YAML, and means the same in both.
    return tuple(f"{field}={json.dumps(value, ensure_ascii=False)}" for field, value in settings.items())


def _check_known(name: str, entries: dict[str, _Entry], where: str) -> None:
    if name not in entries:
        raise RecipeError(
            f"the plan has no recipe {name}; it has {', '.join(entries)}",
            where=where,
            hint=did_you_mean(name, entries) or "write one of these",
        )


def _check_repositories(jobs: list[Job], where: str) -> None:
    used: dict[str, str] = {}
    for job in jobs:
        if job.repo_id is None:
            continue
        try:
            check_repo_id(job.repo_id)
        except UsageError as error:
            message = f"{job.repo_id!r} cannot be a repository's id"
            raise UsageError(message, where=where, hint="write namespace/name") from error
        if "/" not in job.repo_id:
            raise UsageError(f"{job.repo_id!r} has no namespace", where=where, hint="write namespace/name")
        if job.repo_id in used:
            raise UsageError(
                f"{used[job.repo_id]} and {job.name} would both go to {job.repo_id}",
                where=where,
                hint="write {model} and {recipe} into it",
            )
        used[job.repo_id] = job.name
