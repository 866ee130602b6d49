"""Optimum's quantization configurations as plain fields, and which kind of configuration each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from llmcompress.errors import RecipeError
from llmcompress.spec.validation import shown

Fields = dict[str, Any]

WHERE = "quantization_config"
STEPS = ("weight_quantization_config", "full_quantization_config")
PASSES = ("quantization_config1", "quantization_config2")
_WEIGHTS_ONLY = {
    *("group_size", "ratio", "all_layers", "sensitivity_metric", "quant_method", "scale_estimation", "gptq"),
    *("lora_correction", "backup_precision", "statistics_path", "group_size_fallback", "dq_group_size"),
}
_FULL_ONLY = {"model_type", "fast_bias_correction", "overflow_fix", "smooth_quant_alpha"}


def kind_and_fields(config: object) -> tuple[str, Fields]:
    """Return which kind of configuration it is, weights, full, mixed or passes, and what it sets.

    Raises:
        RecipeError: A recipe cannot follow it.
    """
    if isinstance(config, Mapping):
        return _kind_of_mapping(config), flat(config)
    classes = [base.__name__ for base in type(config).__mro__]
    for class_name, kind in (
        ("OVWeightQuantizationConfig", "weights"),
        ("OVQuantizationConfig", "full"),
        ("OVMixedQuantizationConfig", "mixed"),
    ):
        if class_name in classes:
            return kind, flat(vars(config))
    if "OVPipelineQuantizationConfig" in classes:
        raise _pipeline()
    if "_GPTOSSQuantizationConfig" in classes:
        return "passes", flat(vars(config))
    raise RecipeError(
        f"got {type(config).__name__}; accepted: OVWeightQuantizationConfig, OVQuantizationConfig, "
        "OVMixedQuantizationConfig, a dictionary of one, or OVRecipeConfig",
        where=WHERE,
        hint="see: llmcompress recipes",
    )


def _kind_of_mapping(config: Mapping[str, Any]) -> str:
    """By the rules of Optimum, which tells its classes apart by the keys; what it only guesses is refused."""
    keys = {key for key, value in config.items() if value is not None}
    if set(STEPS) <= keys:
        return "mixed"
    if "quantization_configs" in keys or "default_config" in keys:
        raise _pipeline()
    if set(PASSES) <= keys:
        return "passes"
    if keys == {"bits"}:
        problem = "bits alone stand for Optimum's settings for the model at hand, and which that is, is not known here"
        raise refused("bits", problem, "take the recipe optimum-default, or add sym and group_size")
    if keys & _WEIGHTS_ONLY:
        return "weights"
    full = keys & _FULL_ONLY or config.get("weight_only") is False or str(config.get("dtype")).startswith("f8")
    return "full" if full else "weights"


def _pipeline() -> RecipeError:
    problem = "a pipeline of several models; recipes are for causal language models, which are one"
    return refused("quantization_configs", problem, "give the language model's configuration alone")


def flat(config: Mapping[str, Any]) -> Fields:
    """Return the fields that are set, those that Optimum keeps in kwargs with the others."""
    fields = {**config, **(config.get("kwargs") or {})}
    for bookkeeping in ("kwargs", "weight_only"):
        fields.pop(bookkeeping, None)
    return {
        key: value if key in (*STEPS, *PASSES) else plain(value) for key, value in fields.items() if value is not None
    }


def plain(value: Any) -> Any:
    """Enumerations as their values; dataclasses and NNCF's records as dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and dataclasses.fields(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return getattr(value, "value", value)


def part_of(fields: Fields, name: str) -> Mapping[str, Any]:
    """Take the configuration of one step or pass out of the fields, as a dictionary."""
    part = fields.pop(name)
    if not isinstance(part, Mapping) and not hasattr(part, "to_nncf_dict"):
        raise refused(name, f"got {shown(part)}; accepted: a configuration or its dictionary", "give one of these")
    return part if isinstance(part, Mapping) else vars(part)


def merge_scopes(target: Fields, shared: Fields) -> None:
    """Add an ignored scope to the one that a record's fields have."""
    for kind, values in shared.get("ignored_scope", {}).items():
        own = target.setdefault("ignored_scope", {}).get(kind, [])
        target["ignored_scope"][kind] = [*own, *(value for value in values if value not in own)]


def ignored_scope(fields: Fields) -> Fields:
    """Take the ignored scope out of the fields; returns that of a recipe, or nothing."""
    given = fields.pop("ignored_scope", None) or {}
    if not isinstance(given, Mapping):
        problem = f"got {shown(given)}; accepted: a dictionary with names, patterns and types"
        raise refused("ignored_scope", problem, "write it so")
    scope = dict(given)
    if scope.pop("subgraphs", None):
        problem = "a recipe names nodes one by one, by pattern, or by type"
        raise refused("ignored_scope.subgraphs", problem, "write names or patterns")
    if scope.pop("validate", True) is not True:
        problem = "a recipe's ignored scope has to be found in the model"
        raise refused("ignored_scope.validate", problem, "remove it, and the names that the model may not have")
    for kind, values in scope.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise refused(f"ignored_scope.{kind}", f"got {shown(values)}; accepted: a list", "write a list")
    kept = {kind: list(values) for kind, values in scope.items() if values}
    return {"ignored_scope": kept} if kept else {}


def refuse_leftovers(fields: Fields, place: str = "") -> None:
    """Refuse the first field that nothing has taken."""
    for leftover in sorted(fields):
        raise refused(f"{place}{leftover}", "a recipe has no such setting", "remove it")


def refused(field: str, problem: str, hint: str) -> RecipeError:
    """Return the error that names a field of the configuration."""
    return RecipeError(problem, where=f"{WHERE}.{field}", hint=hint)
