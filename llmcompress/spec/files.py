"""Recipes as YAML: the packaged ones by name, a user's by path, both with overrides."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from llmcompress.errors import RecipeError
from llmcompress.spec.dataset import OF_THE_DATASET, is_file_name
from llmcompress.spec.recipe import Recipe
from llmcompress.spec.validation import Location, did_you_mean, dotted, field_names, shown, validated
from llmcompress.spec.yaml_text import MAX_BYTES, Document, dump_yaml, read_document

RECOMMENDED = {"optimum-default": 4, "optimum-default-8bit": 8}
"""Names that stand for what Optimum recommends for the model at hand, and the bits it is asked for."""

_OVERRIDE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", re.ASCII | re.DOTALL)
TEXTS = (("calibration",), ("training",), ("training", "validation"))
"""Where the parts of a recipe are that name a text."""


def packaged_recipes() -> list[Recipe]:
    """Return the recipes that come with the package, sorted by name."""
    return [load_recipe(name) for name in _packaged()]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the packaged recipe of that name, or the one in that .yaml or .yml file.

    ``overrides`` are ``"field.field=value"`` with the value in YAML. A new ``dataset`` of ``calibration``,
    ``training`` or ``training.validation`` drops ``subset``, ``split`` and ``text_field``, which described the old one;
    they can be overridden together with it. A relative path becomes absolute: from the file's folder where the file
    says it, from the working directory where an override says it.

    Raises RecipeError that names the file with line and column, or the override, and what is accepted there.
    """
    source, folder = _find(name_or_path)
    label = source.name if folder is None else str(name_or_path)
    return _recipe(read_utf8(source, label), label, folder, overrides)


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe with ``overrides``, which are as those of ``load_recipe``.

    Raises RecipeError that names the override, and what is accepted there.
    """
    return _recipe(dump_recipe(recipe), recipe.name, None, overrides) if overrides else recipe


def _recipe(text: str, label: str, folder: Path | None, overrides: Sequence[str]) -> Recipe:
    """Make the recipe of a YAML text; relative paths in it start at ``folder``."""
    document = read_document(text, where=label)
    if document.value is None:
        raise RecipeError("the file is empty", where=label, hint="see: llmcompress recipes show int4")
    if not isinstance(document.value, dict):
        raise RecipeError(
            "a recipe is a list of fields, 'name: value'", where=label, hint="start with: name: my-recipe"
        )
    data: dict[str, Any] = copy.deepcopy(document.value)
    if folder is not None:
        for place in TEXTS:
            make_dataset_absolute(part_of(data, place), "dataset", folder)
    changes = _parse_overrides(overrides)
    _apply(data, changes)

    def where(location: Location) -> str:
        for path in changes:
            if location[: len(path)] == path:
                return f"`overrides` {dotted(location)}"
            if location and path[: len(location)] == location and location not in document.positions:
                return f"`overrides` {dotted(path)}"
        return place_in(label, document, location)

    return validated(Recipe, data, where)


def dump_recipe(recipe: Recipe) -> str:
    """Return YAML that ``load_recipe`` reads back to an equal recipe; fields at their defaults are left out."""
    return dump_yaml(recipe.model_dump(mode="json", exclude_defaults=True))


def _packaged() -> dict[str, Traversable]:
    folder = resources.files("llmcompress.spec") / "recipes"
    files = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return dict(sorted(files.items()))


def _find(name_or_path: str | Path) -> tuple[Traversable, Path | None]:
    """Return the file to read, and its folder unless it is a packaged one."""
    text = str(name_or_path)
    packaged = _packaged()
    if isinstance(name_or_path, str) and text in packaged:
        return packaged[text], None
    if text in RECOMMENDED:
        hint = f"take it with a model: llmcompress compress MODEL --recipe {text} --dry-run"
        raise RecipeError("depends on the model: it is what Optimum recommends for it", where=text, hint=hint)
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        try:
            found = path.is_file()
        except OSError:
            found = False
        if not found:
            nearest = did_you_mean(path.stem, packaged)
            raise RecipeError("no such file", where=shown(text), hint=nearest or "check the path")
        return path, path.parent.absolute()
    if isinstance(name_or_path, Path) or "/" in text or "\\" in text:
        raise RecipeError("a recipe file ends in .yaml or .yml", where=shown(text), hint="rename the file")
    raise RecipeError(
        f"no packaged recipe of this name; accepted: {', '.join(packaged)}, or a .yaml file",
        where=shown(text),
        hint=did_you_mean(text, packaged) or "see: llmcompress recipes",
    )


def read_utf8(source: Traversable, label: str) -> str:
    """Return the text of a YAML file; RecipeError names the line that is not UTF-8."""
    try:
        with source.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=label, hint="check the file") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        # A cut in the middle of a character is only the size limit, which the parser reports.
        if len(content) > MAX_BYTES:
            return content.decode("utf-8", "replace")
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError("not UTF-8", where=f"{label}:{line}", hint="save the file as UTF-8") from None


def _parse_overrides(overrides: Sequence[str]) -> dict[tuple[str, ...], object]:
    changes: dict[tuple[str, ...], object] = {}
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        if match is None:
            raise RecipeError(
                "not of the form field.field=value",
                where="`overrides`",
                hint="for example `overrides` weights.group_size=64",
            )
        where = f"`overrides` {match[1]}"
        path = tuple(match[1].split("."))
        for other in changes:
            if path[: len(other)] == other or other[: len(path)] == path:
                raise RecipeError(f"overlaps `overrides` {dotted(other)}", where=where, hint="keep one of the two")
        changes[path] = _override_value(match[2], where)
    return changes


def _override_value(text: str, where: str) -> object:
    try:
        document = read_document(text, where=where)
    except RecipeError as error:
        raise RecipeError(error.message, where=where, hint=error.hint) from None
    if not text.strip():
        raise RecipeError("no value", where=where, hint="write null to take the default")
    if text[document.end :].strip():
        raise RecipeError("the part from # on would be ignored", where=where, hint="put the value in quotes")
    return document.value


def _apply(data: dict[str, Any], changes: dict[tuple[str, ...], object]) -> None:
    for text in TEXTS:
        described = part_of(data, text)
        if (*text, "dataset") in changes and isinstance(described, dict):
            for name in (*OF_THE_DATASET, "image_field"):
                described.pop(name, None)
    for path, value in changes.items():
        part = data
        for depth, key in enumerate(path[:-1]):
            inner = part.get(key)
            if inner is None:
                inner = part[key] = {}
            if not isinstance(inner, dict):
                problem = f"{dotted(path[: depth + 1])} is one value and has no fields"
                raise RecipeError(
                    problem, where=f"`overrides` {dotted(path)}", hint=f"`overrides` {dotted(path[: depth + 1])}=..."
                )
            part = inner
        if value is None and path[-1] in field_names(Recipe, path[:-1]):
            part.pop(path[-1], None)
        else:
            part[path[-1]] = value
        for text in TEXTS:
            if (*text, "dataset")[: len(path)] == path:
                make_dataset_absolute(part_of(data, text), "dataset", Path.cwd())


def part_of(data: object, place: Sequence[str]) -> object:
    """What is at a place in a record of records; None where there is nothing."""
    for name in place:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def make_dataset_absolute(settings: object, field: str, folder: Path) -> None:
    """Let a text's relative path start at a folder, if there are settings and they name a file."""
    dataset = settings.get(field) if isinstance(settings, dict) else None
    if isinstance(settings, dict) and isinstance(dataset, str) and is_file_name(dataset) and "://" not in dataset:
        settings[field] = absolute_path(dataset, folder)


def absolute_path(text: str, folder: Path) -> str:
    """Return a path that a file in ``folder`` names."""
    path = Path(text)
    return str(folder / (path.expanduser() if text.startswith("~/") else path))


def place_in(label: str, document: Document, location: Location) -> str:
    """Name a field with the line and column of the nearest part of it that the file has."""
    for end in range(len(location), 0, -1):
        if location[:end] in document.positions:
            line, column = document.positions[location[:end]]
            return f"{label}:{line}:{column}: {dotted(location)}"
    return f"{label}: {dotted(location)}" if location else label
