"""What in a compression of weights contradicts itself, or NNCF would refuse or ignore."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcompress.spec.advanced import AwqParameters
from llmcompress.spec.modes import CODEBOOKS, DATA_FREE_ONLY, FIXED_GROUP_SIZE, INT8, INTEGER
from llmcompress.spec.validation import Refusal

if TYPE_CHECKING:
    from llmcompress.spec.weights import WeightCompression

METHODS = ("awq", "scale_estimation", "gptq", "lora_correction")
INT8_REFUSES = (
    "all_layers",
    "backup_mode",
    "sensitivity_metric",
    "group_size_fallback",
    "statistics",
    "gptq_order",
    "statistics_precision",
    *METHODS,
    "advanced",
)
REMOVE = "remove it"
FOUR_BIT_ENTRIES = 16


def weight_refusals(weights: WeightCompression) -> Iterator[Refusal]:
    """Yield what is wrong with the compression of weights itself, whatever the rest of the recipe says."""
    yield from _rules(weights)
    if weights.mode in INT8:
        yield from _int8(weights)
        return
    for of_part in (_group_size, _methods, _layer_choice, _codebook, _advanced):
        yield from of_part(weights)


def data_refusals(weights: WeightCompression, *, has_data: bool) -> Iterator[Refusal]:
    """Yield what is wrong with the compression of weights with calibration data, or without."""
    if has_data:
        if _changed(weights, "statistics_precision") and not weights.collects_statistics:
            problem = "has no effect: nothing here goes by statistics of activations"
            yield Refusal("statistics_precision", problem, "remove it, or switch on awq or scale_estimation")
        return
    if weights.needs_data:
        reasons = [name for name in METHODS[1:] if getattr(weights, name)]
        if weights.mode == "adaptive_codebook":
            reasons.append("mode adaptive_codebook")
        reason = ", ".join(reasons) or f"sensitivity_metric {weights.sensitivity_metric}"
        hint = "add calibration: {dataset: FILE.txt}, or `overrides` calibration.dataset=FILE.txt"
        yield Refusal("", f"{reason} needs calibration data", hint)
    if _changed(weights, "statistics_precision"):
        yield Refusal("statistics_precision", "has no effect without calibration data", REMOVE)
    if _changed(weights.advanced, "awq_params"):
        yield Refusal(
            "advanced.awq_params", "has no effect without calibration data: AWQ goes by the weights then", REMOVE
        )


def _rules(weights: WeightCompression) -> Iterator[Refusal]:
    if not weights.rules:
        return
    if weights.lora_correction:
        yield Refusal("rules", "cannot be combined with lora_correction", "write lora_correction: false, or remove it")
    if weights.mode == "adaptive_codebook":
        yield Refusal("rules", "cannot be combined with mode adaptive_codebook", "take another mode, or remove rules")
    first: set[str] = set()
    for number, rule in enumerate(weights.rules):
        if rule.match in first:
            yield Refusal(f"rules.{number}.match", "an earlier rule takes the same weights", "remove one of the two")
        first.add(rule.match)
        if rule.method == "gptq" and (not weights.gptq or rule.mode in (*INT8, *DATA_FREE_ONLY, "none")):
            yield _rule_without_gptq(weights, number)
        elif rule.method is not None and not any(getattr(weights, name) for name in METHODS):
            yield Refusal(f"rules.{number}.method", "has no effect: the recipe asks for no method", REMOVE)
        refused = [name for name in METHODS if getattr(weights, name)] if rule.mode in DATA_FREE_ONLY else []
        if refused and rule.method is None:
            hint = "write method: data_free into the rule, or take mode int4_sym"
            yield Refusal(f"rules.{number}.mode", f"NNCF has no {refused[0]} for mode {rule.mode}", hint)


def _rule_without_gptq(weights: WeightCompression, number: int) -> Refusal:
    if weights.gptq:
        return Refusal(f"rules.{number}.method", f"GPTQ leaves mode {weights.rules[number].mode} as it is", REMOVE)
    hint = "write weights.gptq: true, or remove the method"
    return Refusal(f"rules.{number}.method", "the recipe asks for no GPTQ", hint)


def _int8(weights: WeightCompression) -> Iterator[Refusal]:
    hint = "remove it, or take a mode of fewer bits"
    if weights.group_size not in (None, -1):
        yield Refusal("group_size", f"mode {weights.mode} has one group per channel", hint)
    if weights.ratio != 1.0:
        yield Refusal("ratio", f"mode {weights.mode} compresses every layer", hint)
    for name in INT8_REFUSES:
        if _changed(weights, name):
            yield Refusal(name, f"has no effect with mode {weights.mode}", hint)


def _group_size(weights: WeightCompression) -> Iterator[Refusal]:
    fixed = FIXED_GROUP_SIZE.get(weights.mode)
    if fixed and weights.group_size not in (None, fixed):
        yield Refusal("group_size", f"mode {weights.mode} has groups of {fixed}", REMOVE)
    if fixed and weights.group_size_fallback == "adjust":
        yield Refusal("group_size_fallback", f"mode {weights.mode} has groups of {fixed} only", "write error or ignore")
    if weights.group_size_fallback != "error" and weights.effective_group_size == -1:
        yield Refusal("group_size_fallback", "has no effect with one group per channel (group_size -1)", "write error")
    if weights.group_size_fallback != "adjust" and _changed(weights.advanced, "min_adjusted_group_size"):
        yield Refusal("advanced.min_adjusted_group_size", "has no effect without group_size_fallback: adjust", REMOVE)


def _methods(weights: WeightCompression) -> Iterator[Refusal]:
    for name in METHODS:
        if not getattr(weights, name):
            continue
        if weights.mode in DATA_FREE_ONLY:
            yield Refusal(name, f"NNCF has no {name} for mode {weights.mode}", "write false, or take mode int4_sym")
        if weights.ratio == 0.0:
            yield Refusal(name, f"has no effect at ratio 0.0: no layer takes mode {weights.mode}", "write false")
    if weights.statistics != "compressed" and not weights.gptq:
        yield Refusal("statistics", "has no effect without gptq: others go by the original model anyway", REMOVE)
    if weights.gptq_order != "columns" and not weights.gptq:
        yield Refusal("gptq_order", "has no effect without gptq", REMOVE)
    if weights.gptq and weights.lora_correction:
        yield Refusal("lora_correction", "cannot be combined with gptq", "keep one of the two")
    if weights.lora_correction and weights.mode in CODEBOOKS:
        yield Refusal("lora_correction", f"NNCF has no lora_correction for mode {weights.mode}", "write false")
    if weights.gptq and weights.scale_estimation and weights.mode not in INTEGER:
        yield Refusal(
            "scale_estimation", f"has no effect beside gptq with mode {weights.mode}", "write false for one of the two"
        )
    # NNCF looks up the activations of every compressed layer, and an embedding has none.
    if weights.all_layers and weights.ignored_scope.is_empty:
        for needed in (weights.lora_correction and "lora_correction", weights.mode == "adaptive_codebook" and "mode"):
            if needed:
                hint = "write all_layers: false, or name the embedding in ignored_scope"
                yield Refusal("all_layers", f"{needed} cannot handle embeddings", hint)


def _layer_choice(weights: WeightCompression) -> Iterator[Refusal]:
    if weights.mode == weights.effective_backup_mode:
        same = f"has no effect: mode and backup_mode are both {weights.mode}"
        if weights.ratio != 1.0:
            yield Refusal("ratio", same, "remove it, or write another backup_mode")
        if weights.all_layers:
            yield Refusal("all_layers", same, "remove it, or write another backup_mode")
    if weights.sensitivity_metric is not None and not weights.selects_layers:
        hint = "remove it, or write a ratio between 0 and 1"
        yield Refusal("sensitivity_metric", f"has no effect at ratio {weights.ratio}: no layers are chosen", hint)


def _codebook(weights: WeightCompression) -> Iterator[Refusal]:
    codebook = weights.advanced.codebook
    adaptive = weights.advanced.adaptive_codebook_params
    if weights.mode == "codebook" and codebook is None:
        yield Refusal("advanced.codebook", "mode codebook needs it", "write its values in ascending order")
    # Checked also where it is left at NNCF's start values: it fails in the middle of the clustering then.
    if weights.mode == "adaptive_codebook" and adaptive.across_blocks and weights.effective_group_size != -1:
        field = "advanced.adaptive_codebook_params.across_blocks"
        yield Refusal(field, "needs one group per channel", "write group_size: -1")
    if codebook is None:
        return
    if weights.mode not in ("codebook", "adaptive_codebook"):
        yield Refusal("advanced.codebook", f"has no effect with mode {weights.mode}", "remove it, or mode: codebook")
        return
    if len(codebook) > FOUR_BIT_ENTRIES:
        for name in ("awq", "scale_estimation"):
            if getattr(weights, name):
                problem = f"has no effect with a codebook of more than {FOUR_BIT_ENTRIES} values"
                yield Refusal(name, problem, "write false, or a shorter codebook")
    if weights.mode == "adaptive_codebook":
        if len(codebook) > FOUR_BIT_ENTRIES:
            problem = f"of more than {FOUR_BIT_ENTRIES} values is not adapted"
            yield Refusal("advanced.codebook", problem, "write a shorter one, or mode: codebook")
        if adaptive.num_elements != len(codebook):
            yield Refusal(
                "advanced.adaptive_codebook_params.num_elements",
                f"is {adaptive.num_elements}, and the codebook has {len(codebook)} values",
                "make the two equal",
            )


def _advanced(weights: WeightCompression) -> Iterator[Refusal]:
    advanced = weights.advanced
    for name in METHODS:
        if not getattr(weights, name) and _changed(advanced, f"{name}_params"):
            yield Refusal(f"advanced.{name}_params", f"has no effect without {name}", f"remove it, or {name}: true")
    if weights.mode != "adaptive_codebook" and _changed(advanced, "adaptive_codebook_params"):
        yield Refusal(
            "advanced.adaptive_codebook_params", f"has no effect with mode {weights.mode}", "mode: adaptive_codebook"
        )
    if weights.gptq and _changed(advanced, "scale_estimation_params"):
        problem = "has no effect beside gptq, which estimates scales with fixed settings"
        yield Refusal("advanced.scale_estimation_params", problem, REMOVE)
    awq = advanced.awq_params
    if not awq.prefer_data_aware_scaling and awq != AwqParameters(prefer_data_aware_scaling=False):
        problem = "has no effect besides prefer_data_aware_scaling: AWQ goes by the weights then"
        yield Refusal("advanced.awq_params", problem, "remove the rest")


def _changed(record: object, name: str) -> bool:
    return bool(getattr(record, name) != type(record).model_fields[name].default)  # type: ignore[attr-defined]
