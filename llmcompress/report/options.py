"""What was measured, as the options of the commands that measure it again."""

from __future__ import annotations

from collections.abc import Iterator

from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import RECIPE
from llmcompress.spec import BenchSpec, EvalSpec, Gate, Recipe, RuntimeProfile, packaged_recipes

_NAMES = {
    "batch_sizes": "batch-size",
    "bits_per_weight": "bits",
    "budget_s": "budget",
    "candidates": "candidate",
    "depths": "depth",
    "devices": "device",
    "engine": "runtime",
    "max_bytes": "size",
    "optimize_for": "for",
    "properties": "property",
    "workloads": "workload",
}
"""Where a field's option does not have the field's name."""


def option_name(field: str) -> str:
    """The option that sets a field of a spec."""
    return f"--{_NAMES.get(field, field.replace('_', '-'))}"


def recipe_option(recipe: Recipe, directory: str) -> str:
    """The packaged recipe's name if it is still that recipe, else the copy that was kept with the model."""
    return recipe.name if recipe in packaged_recipes() else f"{directory}/{RECIPE}"


def spec_options(spec: BenchSpec | EvalSpec) -> Iterator[str]:
    """The fields that differ from their defaults; a runtime profile by the name of its file."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if value == field.default:
            continue
        if value is True:
            yield option_name(name)
            continue
        if isinstance(value, RuntimeProfile):
            value = f"{value.name}.json"
        elif isinstance(value, tuple) and name != "properties":
            value = ",".join(map(str, value))
        for text in value if isinstance(value, tuple) else (value,):
            yield from (option_name(name), str(text))


def eval_options(report: EvalReport, own: Gate) -> Iterator[str]:
    """The spec, and what was measured with it; thresholds of the recipe's own gate go without saying."""
    yield from spec_options(report.spec)
    thresholds = own.model_dump()
    for check in report.gate.checks:
        if check.name in thresholds and thresholds[check.name] != check.required:
            yield from (option_name(check.name), str(check.required))
    if report.noise_floor:
        yield "--noise-floor"
    if report.split_damage:
        yield "--split-damage"
    if report.generations:
        yield from ("--generations", str(report.generations.num_prompts))
    if report.tasks:
        yield from ("--tasks", ",".join(dict.fromkeys(score.task for score in report.tasks)))
