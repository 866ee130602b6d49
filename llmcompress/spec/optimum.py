"""Optimum's quantization configurations -> recipes: other names for the same things, and a refusal for the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from llmcompress.errors import RecipeError
from llmcompress.spec.dataset import Calibration
from llmcompress.spec.optimum_config import (
    PASSES,
    STEPS,
    WHERE,
    Fields,
    flat,
    ignored_scope,
    kind_and_fields,
    merge_scopes,
    part_of,
    plain,
    refuse_leftovers,
    refused,
)
from llmcompress.spec.recipe import Recipe
from llmcompress.spec.validation import Location, dotted, shown, validated

TEXTS: dict[str, Fields] = {
    "wikitext2": {
        "dataset": "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
        "subset": "wikitext-2-raw-v1",
        "split": "train",
    },
}
"""Optimum's names of texts that a recipe can name as well, pinned."""

# Optimum's own defaults for these texts, which its documentation of the field ``dataset`` states.
DEFAULT_SEQ_LEN = 32
DEFAULT_NUM_SAMPLES = 128

_WEIGHT_FORMATS = ("int4", "int8", "mxfp4", "nf4", "cb4")
ACTIVATION_MODES = {"int8": "int8", "f8e4m3": "fp8_e4m3", "f8e5m2": "fp8_e5m2"}
_SAME_NAME = (
    *("group_size", "ratio", "all_layers", "sensitivity_metric"),
    *("scale_estimation", "gptq", "lora_correction", "group_size_fallback"),
)
_OPTIMUM_NAMES = {
    "mode": "dtype",
    "backup_mode": "backup_precision",
    "awq": "quant_method",
    "advanced": "advanced_parameters",
    "preset": "sym",
    "seq_len": "dataset",
    "dynamic_quantization_group_size": "dq_group_size",
}
_TO_OWN_TEXT = (
    "give the text as calibration=Calibration(dataset='FILE.jsonl'), or `overrides` calibration.dataset=FILE.jsonl"
)


def recipe_from_quantization_config(
    config: object, *, name: str = "optimum", calibration: Calibration | None = None
) -> Recipe:
    """Return the recipe that does what an Optimum configuration does.

    Args:
        config: An ``OVWeightQuantizationConfig``, ``OVQuantizationConfig`` or ``OVMixedQuantizationConfig``, a
            dictionary of one, or an ``OVRecipeConfig``.
        name: The recipe's name.
        calibration: The text to look at instead of the configuration's dataset.

    Texts that Optimum names are taken at a pinned commit, with Optimum's number and length of windows; which windows
    are drawn is for the recipe's seed to say.

    Raises:
        RecipeError: names the field that a recipe cannot express.
    """
    own = _own_recipe(config)
    if own is not None:
        if calibration is not None:
            raise refused("calibration", "has no effect on a configuration that holds a recipe", "change its recipe")
        return own
    kind, fields = kind_and_fields(config)
    data: Fields = {"name": name}
    if kind == "passes":
        data |= _passes(fields, calibration)
    elif kind == "mixed":
        data |= {"method": "weights_and_activations", **_mixed(fields, calibration)}
    elif kind == "full":
        text = _calibration(fields, calibration)
        data |= {"method": "activations", "activations": _activations(fields), **text}
    else:
        text = _calibration(fields, calibration)
        data |= {**_weights(fields), **text}
    refuse_leftovers(fields)
    return validated(Recipe, data, _optimum_place)


def advanced_fields(parameters: Any, where: str) -> Fields:
    """Translate ``nncf.AdvancedCompressionParameters``, as a dictionary, to fields of ``weights``.

    Raises:
        RecipeError: names the parameter, below ``where``, that a recipe does not have.
    """
    if not isinstance(parameters, Mapping):
        problem = f"got {shown(parameters)}; accepted: nncf.AdvancedCompressionParameters"
        raise RecipeError(problem, where=where, hint="give such an object, or its dictionary")
    given = dict(parameters)
    for field, default in (("statistics_path", None), ("lora_adapter_rank", 256), ("backend_params", {})):
        if given.pop(field, default) != default:
            raise RecipeError("a recipe has no such setting", where=f"{where}.{field}", hint="remove it")
    fields: Fields = {}
    fallback = plain(given.pop("group_size_fallback_mode", "error"))
    if fallback != "error":
        fields["group_size_fallback"] = fallback
    codebook = given.pop("codebook", None)
    if codebook is not None:
        # An array of numpy's or torch's, or a list.
        given["codebook"] = codebook.tolist() if hasattr(codebook, "tolist") else codebook
    return {**fields, "advanced": {field: plain(value) for field, value in given.items()}}


def _own_recipe(config: object) -> Recipe | None:
    """The recipe of an ``OVRecipeConfig``, of its dictionary, or of what Optimum made of that dictionary."""
    if isinstance(config, Mapping):
        given = dict(config)
    elif isinstance(getattr(config, "kwargs", None), Mapping):
        # Optimum keeps keys that it does not know in kwargs, and the others as attributes.
        names = ("num_samples", "ignored_scope")
        kwargs = {"recipe": getattr(config, "recipe", None), **config.kwargs}  # type: ignore[attr-defined]
        given = {**kwargs, **{name: getattr(config, name) for name in names if hasattr(config, name)}}
    else:
        return None
    recipe = given.pop("recipe", None)
    if recipe is None:
        return None
    fields: Fields = recipe.model_dump(exclude_defaults=True) if isinstance(recipe, Recipe) else copy.deepcopy(recipe)
    if not isinstance(fields, dict):
        raise refused("recipe", f"got {shown(recipe)}; accepted: the fields of a recipe", "see: llmcompress recipes")
    if (num_samples := given.pop("num_samples", None)) is not None and "calibration" in fields:
        fields["calibration"]["num_samples"] = num_samples
    if "ignored_scope" in given:
        changed = ignored_scope(given)
        parts = [part for part in ("weights", "activations") if part in fields]
        for part in parts:
            # Of two steps each has a scope of its own, and this one is for both.
            if len(parts) == 1:
                fields[part].pop("ignored_scope", None)
            merge_scopes(fields[part], changed)
    refuse_leftovers(given)
    return validated(Recipe, fields, lambda place: f"{WHERE}.recipe.{dotted(place)}")


def _passes(fields: Fields, calibration: Calibration | None) -> Fields:
    """Take the passes of a configuration that has several; returns fields of a recipe."""
    passes: list[Fields] = []
    for name in PASSES:
        part = flat(part_of(fields, name))
        result = {**_weights(part), **_calibration(part, None if passes else calibration)}
        refuse_leftovers(part, f"{name}.")
        passes.append(result)
    first, *others = passes
    for name, other in zip(PASSES[1:], others, strict=True):
        if other.keys() != {"weights"}:
            problem = "only the first pass of a recipe says what the model looks at and how it runs"
            raise refused(name, problem, "remove dataset and dq_group_size from it")
    return {**first, "further_weights": [other["weights"] for other in others]}


def _weights(fields: Fields) -> Fields:
    """Take the fields that say how weights are compressed; returns fields of a recipe."""
    weights: Fields = {"mode": _weight_mode(fields), **ignored_scope(fields)}
    method = fields.pop("quant_method", "default")
    if method not in ("default", "awq"):
        raise refused("quant_method", f"got {shown(method)}; accepted: default, awq", "remove it")
    if method == "awq":
        weights["awq"] = True
    if fields.get("ratio") == 0:
        problem = "0.0 is read as 1.0 by NNCF when it comes from Optimum"
        raise refused("ratio", problem, "write 1.0, or a recipe with ratio 0.0")
    advanced = fields.pop("advanced_parameters", None)
    if advanced is not None:
        weights |= advanced_fields(advanced, f"{WHERE}.advanced_parameters")
    for name in _SAME_NAME:
        # What is switched off is not said: 8-bit modes of a recipe refuse even that.
        if (value := fields.pop(name, None)) is not None and value is not False:
            weights[name] = _real(value) if name == "ratio" else value
    if (backup := fields.pop("backup_precision", None)) is not None:
        weights["backup_mode"] = backup
    if fields.pop("statistics_path", None) is not None:
        raise refused("statistics_path", "is a cache and no part of a recipe", "remove it; statistics are cached")
    if fields.pop("compression_format", "dequantize") != "dequantize":
        raise refused("compression_format", "an OpenVINO model has dequantize only", "remove it")
    result: Fields = {"weights": weights}
    if (group_size := fields.pop("dq_group_size", None)) is not None:
        result["runtime"] = {"dynamic_quantization_group_size": group_size}
    return result


def _weight_mode(fields: Fields) -> str:
    bits, sym = fields.pop("bits", 8), fields.pop("sym", False)
    dtype = fields.pop("dtype", None) or fields.pop("weight_format", None)
    if bits not in (4, 8):
        raise refused("bits", f"got {shown(bits)}; accepted: 4, 8", "write the recipe's weights.mode instead")
    dtype = dtype or f"int{bits}"
    if dtype not in _WEIGHT_FORMATS:
        raise refused("dtype", f"got {shown(dtype)}; accepted: {', '.join(_WEIGHT_FORMATS)}", "write one of these")
    if not dtype.startswith("int"):
        return str(dtype)
    return f"{dtype}_{'sym' if sym else 'asym'}"


def _activations(fields: Fields) -> Fields:
    """Take the fields of full quantization; returns the fields of a recipe's ``activations``."""
    dtype = fields.pop("dtype", None) or fields.pop("activation_format", None) or "int8"
    if dtype not in ACTIVATION_MODES:
        raise refused("dtype", f"got {shown(dtype)}; accepted: {', '.join(ACTIVATION_MODES)}", "write one of these")
    for name, accepted in (("bits", 8), ("model_type", "transformer"), ("overflow_fix", "disable")):
        if (value := fields.pop(name, accepted)) != accepted:
            raise refused(name, f"got {shown(value)}; accepted: {accepted}", "remove it")
    # Where a configuration says nothing of the method, transformers' base class says "default".
    fields.pop("quant_method", None)
    activations: Fields = {"mode": ACTIVATION_MODES[dtype], **ignored_scope(fields)}
    if fields.pop("sym", False) and dtype == "int8":
        activations["preset"] = "performance"
    if (alpha := fields.pop("smooth_quant_alpha", None)) is not None:
        if alpha == 0:
            raise refused("smooth_quant_alpha", "0 is read as not given by Optimum", "write a small number, or -1")
        activations["smooth_quant_alpha"] = _real(alpha)
    if not fields.pop("fast_bias_correction", True):
        activations["fast_bias_correction"] = False
    return activations


def _mixed(fields: Fields, calibration: Calibration | None) -> Fields:
    weights, full = (flat(part_of(fields, name)) for name in STEPS)
    shared = ignored_scope(fields)
    parts = (fields, weights, full)
    counts, datasets, options = (
        [part.pop(name) for part in parts if name in part] for name in ("num_samples", "dataset", "_dataset_kwargs")
    )
    text: Fields = {
        "num_samples": max(filter(None, counts), default=None),
        "dataset": next(iter(datasets), None),
        "_dataset_kwargs": next(filter(None, options), None),
    }
    for part in parts:
        _refuse_tokenizer(part)
    result = _weights(weights)
    activations = _activations(full)
    if activations["mode"] != "int8":
        # As Optimum does it: what 4 bits leave is quantized with the activations, to 8-bit floats.
        result["weights"].setdefault("backup_mode", "none")
    for part, name in zip((weights, full), STEPS, strict=True):
        refuse_leftovers(part, f"{name}.")
    for target in (result["weights"], activations):
        merge_scopes(target, shared)
    given = {name: value for name, value in text.items() if value is not None}
    return {**result, "activations": activations, **_calibration(given, calibration)}


def _calibration(fields: Fields, calibration: Calibration | None) -> Fields:
    """Take the fields that name a text; returns the recipe's ``calibration``, or nothing."""
    _refuse_tokenizer(fields)
    dataset, num_samples = fields.pop("dataset", None), fields.pop("num_samples", None)
    options = dict(fields.pop("_dataset_kwargs", None) or {})
    if isinstance(dataset, str):
        dataset, _, text = dataset.partition(":")
        key, _, value = text.partition("=")
        if text and (key != "seq_len" or not value.isdecimal()):
            raise refused("dataset", f"got the option {shown(text)}; accepted: seq_len=NUMBER", "correct it")
        options |= {"seq_len": int(value)} if text else {}
    counts = {"num_samples": num_samples, "seq_len": options.pop("seq_len", None)}
    if options:
        raise refused("dataset", f"got the options {', '.join(options)}; accepted: seq_len", "remove the others")
    if calibration is not None:
        # What it leaves open, the configuration may say.
        said = {name: count for name, count in counts.items() if count and name not in calibration.model_fields_set}
        return {"calibration": {**calibration.model_dump(exclude_defaults=True), **said}}
    if dataset is None:
        if num_samples is not None:
            raise refused("num_samples", "has no effect without a dataset", "remove it")
        return {}
    if not isinstance(dataset, str):
        raise refused("dataset", "a recipe names its text and does not hold it", _TO_OWN_TEXT)
    if dataset not in TEXTS:
        problem = f"no recipe draws the samples that Optimum calls {shown(dataset)}; accepted: {', '.join(TEXTS)}"
        raise refused("dataset", problem, _TO_OWN_TEXT)
    defaults = {"num_samples": DEFAULT_NUM_SAMPLES, "seq_len": DEFAULT_SEQ_LEN}
    return {"calibration": {**TEXTS[dataset], **{name: counts[name] or default for name, default in defaults.items()}}}


def _refuse_tokenizer(fields: Fields) -> None:
    for name in ("tokenizer", "processor"):
        if fields.pop(name, None) is not None:
            raise refused(name, "a recipe uses the model's own", "remove it")


def _real(value: Any) -> Any:
    """A whole number as a real one; the recipe refuses what is not a number."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _optimum_place(location: Location) -> str:
    """A field of a recipe by the name it has in Optimum."""
    part, *inner = [str(step) for step in location] or [""]
    name = _OPTIMUM_NAMES.get(inner[0], inner[0]) if inner else {"calibration": "dataset"}.get(part, part)
    return ".".join([WHERE, name, *inner[1:]])
