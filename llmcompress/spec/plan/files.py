"""A plan's YAML file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from llmcompress.errors import RecipeError, UsageError
from llmcompress.spec.access import check_repo_id
from llmcompress.spec.dataset import is_file_name
from llmcompress.spec.files import TEXTS, absolute_path, make_dataset_absolute, part_of, place_in, read_utf8
from llmcompress.spec.plan.jobs import planned_jobs
from llmcompress.spec.plan.records import Plan
from llmcompress.spec.validation import Location, dotted, shown, validated
from llmcompress.spec.yaml_text import Document, read_document

_SHORT = {"models": "source", "recipes": "recipe"}
"""Lists whose items may be written as one text, and the field that it stands for."""


def load_plan(path: str | Path) -> Plan:
    """Return the plan in a .yaml or .yml file; strict YAML, as for recipes.

    Relative paths (models, recipes, texts, the output) start at the file's folder and become absolute. Without
    ``output`` it is the directory next to the file that has its name. All of the plan is checked: also its recipes,
    with every override, and that its texts and directories are there.

    Raises:
        RecipeError: Names the file with line and column, what was got and what is accepted.
        UsageError: A repository or Hub id that cannot be one.
    """
    path = Path(path)
    label = str(path)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError("a plan file ends in .yaml or .yml", where=shown(label), hint="rename the file")
    if not path.is_file():
        raise RecipeError("no such file", where=shown(label), hint="check the path")
    document = read_document(read_utf8(path, label), where=label)
    if not isinstance(document.value, dict):
        raise RecipeError("a plan is a list of fields, 'name: value'", where=label, hint="see docs/plans.md")
    data: dict[str, Any] = copy.deepcopy(document.value)
    for name, field in _SHORT.items():
        items = data.get(name)
        if isinstance(items, list):
            data[name] = [{field: item} if isinstance(item, str) else item for item in items]

    def place(location: Location) -> str:
        return place_in(label, document, location)

    folder = path.absolute().parent
    _make_absolute(data, folder, path.stem)
    plan = validated(Plan, data, place)
    _check_sources(plan, document, label)
    for name, part in (("evaluation", plan.evaluation), ("tune", plan.tune)):
        dataset = part.dataset_path() if part else None
        if dataset is not None and not dataset.is_file():
            raise RecipeError(f"there is no file {dataset}", where=place((name, "dataset")), hint="check the path")
    pictures = plan.evaluation.pictures if plan.evaluation else None
    if pictures is not None and is_file_name(pictures) and not Path(pictures).is_file():
        raise RecipeError(
            f"there is no file {pictures}", where=place(("evaluation", "pictures")), hint="check the path"
        )
    assert plan.output is not None
    planned_jobs(plan, Path(plan.output), place=place)
    return plan


def _make_absolute(data: dict[str, Any], folder: Path, stem: str) -> None:
    """Let relative paths start at the file's folder."""
    output = data.get("output")
    if output is None:
        data["output"] = str(folder / stem)
    elif isinstance(output, str):
        data["output"] = absolute_path(output, folder)
    for model in _records(data.get("models")):
        source = model.get("source")
        if isinstance(source, str) and source and "\0" not in source:
            at = absolute_path(source, folder)
            # As everywhere, an existing path goes before a Hub id of the same spelling.
            if _is_path(source) or Path(at).is_dir():
                model["source"] = at
    for recipe in _records(data.get("recipes")):
        name = recipe.get("recipe")
        if isinstance(name, str) and name.endswith((".yaml", ".yml")):
            recipe["recipe"] = absolute_path(name, folder)
        _make_texts_absolute(recipe.get("set"), folder)
        make_dataset_absolute(recipe.get("search"), "dataset", folder)
        make_dataset_absolute(part_of(recipe, ("search", "calibration")), "dataset", folder)
    for model in _records(data.get("models")):
        overrides = model.get("overrides")
        for settings in overrides.values() if isinstance(overrides, dict) else ():
            _make_texts_absolute(settings, folder)
    for name in ("evaluation", "tune"):
        make_dataset_absolute(data.get(name), "dataset", folder)
    make_dataset_absolute(data.get("evaluation"), "pictures", folder)


def _check_sources(plan: Plan, document: Document, label: str) -> None:
    for index, model in enumerate(plan.models):
        where = place_in(label, document, ("models", index, "source"))
        if _is_path(model.source):
            is_file = model.source.lower().endswith((".gguf", ".onnx")) and Path(model.source).is_file()
            if not is_file and not Path(model.source).is_dir():
                hint = "give an existing directory, or a Hub id in the form namespace/name"
                raise RecipeError(f"there is no directory {model.source}", where=where, hint=hint)
            if model.revision is not None:
                where = place_in(label, document, ("models", index, "revision"))
                raise RecipeError("has no effect on a directory", where=where, hint="remove it")
            continue
        try:
            check_repo_id(model.source)
        except UsageError as error:
            raise UsageError(error.message, where=where, hint=error.hint) from None


def _records(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _make_texts_absolute(settings: object, folder: Path) -> None:
    for text in TEXTS:
        make_dataset_absolute(settings, f"{dotted(text)}.dataset", folder)
        for depth in range(1, len(text) + 1):
            make_dataset_absolute(part_of(settings, (dotted(text[:depth]), *text[depth:])), "dataset", folder)


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "\\" in source or source.endswith("/") or source.count("/") > 1
