"""What an OpenVINO model was made by: our manifest, or else what NNCF wrote into the IR.

Optimum's ``openvino_config.json`` is not read: for a causal language model it holds no parameters.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmcompress.artifact import MANIFEST, read_manifest
from llmcompress.compression.nncf.activations import quantize_arguments
from llmcompress.compression.nncf.weights import NO_PRIMARY_LAYERS, OWN_SETTINGS, RULES
from llmcompress.errors import RecipeError
from llmcompress.graph.model import nncf_records, num_elements, read_ir
from llmcompress.report.file_names import MODEL_XML
from llmcompress.spec import Calibration, Quantization, Recipe, Runtime, WeightCompression
from llmcompress.spec.modes import DEFAULT_BACKUP, default_group_size
from llmcompress.spec.optimum import advanced_fields
from llmcompress.spec.validation import Location, dotted, validated

if TYPE_CHECKING:
    import openvino as ov

Fields = dict[str, Any]
NumberT = TypeVar("NumberT", int, float)

WEIGHTS = "nncf/weight_compression"
ACTIVATIONS = "nncf/quantization"
LOW_BITS = frozenset({"u8", "i8", "u4", "i4", "u3", "u2", "nf4", "f4e2m1", "f8e4m3", "f8e5m2", "f8e8m0"})
FEW_BITS = frozenset({"u4", "i4", "u3", "u2", "nf4", "f4e2m1"})
LARGE = 1 << 12
"""Elements from which a constant is taken for a weight."""
NO_DATA_METRIC = "weight_quantization_error"
"""What NNCF records as the sensitivity metric where none was given and there was no data."""
SMOOTH_QUANT_ALPHA = 0.95
"""NNCF's, for linear layers, where none was given."""

_BY_HAND = "write the recipe by hand"


def recipe_from_artifact(
    directory: str | Path, *, name: str = "recorded", calibration: Calibration | None = None
) -> Recipe:
    """Return the recipe that an OpenVINO model was made by: our manifest's, or else the one that NNCF recorded.

    Args:
        directory: An output directory of ``compress``, or any OpenVINO IR directory.
        name: The recipe's name where there is no manifest.
        calibration: The text of a data-aware method: NNCF's record does not hold it, and our manifest holds a local
            one without the folder that it lay in.

    Whether AWQ looked at data is told by the sensitivity metric in the record, whose default is another without data.

    Raises:
        ArtifactError: the manifest is damaged.
        ModelError: there is no OpenVINO model, or it is damaged.
        RecipeError: names the field that the record does not tell.
    """
    directory = Path(directory)
    if (directory / MANIFEST).is_file():
        recipe = read_manifest(directory).recipe
        if calibration is None:
            return recipe
        # A local text is named in the manifest without the folder that it lay in.
        return validated(Recipe, {**recipe.model_dump(exclude_defaults=True), "calibration": calibration}, _place)
    model = read_ir(directory)
    records = nncf_records(model)
    weights, activations = records.get("weight_compression", {}), records.get("quantization", {})
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    formats = {op.get_element_type().get_type_name() for op in constants if num_elements(op) >= LARGE}
    data: Fields = {"name": name, "runtime": _runtime(model, compressed=bool(weights or activations))}
    if weights:
        data["weights"] = _weights(weights)
        if data["weights"]["mode"].startswith("int8") and formats & FEW_BITS:
            problem = "the graph holds formats of fewer bits than the record: it was compressed in several passes, of "
            raise _refuse(f"{WEIGHTS}.mode", problem + "which NNCF records the last", _BY_HAND)
        if not activations:
            _check_data(weights, data["weights"], calibration)
    elif formats & LOW_BITS and not activations:
        raise _refuse(WEIGHTS, "the weights are compressed, and NNCF recorded nothing", _BY_HAND)
    if activations:
        data["activations"] = _activations(activations, model, calibration)
    data["method"] = "_and_".join(part for part in ("weights", "activations") if part in data) or "none"
    if calibration is not None:
        data["calibration"] = calibration
    return validated(Recipe, data, _place)


def _check_data(recorded: Fields, weights: Fields, calibration: Calibration | None) -> None:
    """Hold the record's sensitivity metric, which tells whether there was data, against the calibration given."""
    metric = recorded.get("sensitivity_metric")
    if weights["mode"].startswith("int8"):
        return
    had_data = metric != NO_DATA_METRIC
    if calibration is None and had_data and validated(WeightCompression, weights, _place).uses_data:
        problem = "the model was made by looking at data, and NNCF does not record the text"
        raise _refuse("calibration", problem, "give it as calibration=Calibration(dataset='FILE')")
    # With layers to choose, somebody may have asked for that metric although there was data.
    if calibration is not None and not had_data and not 0 < weights["ratio"] < 1:
        raise _refuse("calibration", "the record shows that no data was looked at", "remove it")


def _place(location: Location) -> str:
    return f"{MODEL_XML}: {dotted(location)}"


def _runtime(model: ov.Model, *, compressed: bool) -> Fields:
    options = dict(model.get_rt_info("runtime_options").value) if model.has_rt_info("runtime_options") else {}
    if not compressed and options.get("KV_CACHE_PRECISION") == "f16":
        # Optimum's exporter writes it into every uncompressed model.
        del options["KV_CACHE_PRECISION"]
    hints = {field.upper(): field for field in Runtime.model_fields if field.upper() in options}
    return {
        field: _number(options, name, "runtime_options", int) if field.endswith("group_size") else options[name]
        for name, field in hints.items()
    }


def _weights(recorded: Fields) -> Fields:
    """NNCF records what it worked with, defaults included; a recipe says only what is not the default."""
    mode: Any = _said(recorded, "mode", WEIGHTS)
    if recorded.get("compression_format", "dequantize") != "dequantize":
        raise _refuse(f"{WEIGHTS}.compression_format", f"is {recorded['compression_format']}", "a recipe has none")
    weights: Fields = {"mode": mode, **_ignored_scope(recorded, WEIGHTS), **_rules(recorded)}
    if mode.startswith("int8"):
        return weights
    group_size, ratio = (_number(recorded, "group_size", WEIGHTS, int), _number(recorded, "ratio", WEIGHTS, float))
    if group_size != default_group_size(mode):
        weights["group_size"] = group_size
    # A version that records no backup mode has one only.
    if (backup := recorded.get("backup_mode", "int8_asym")) != DEFAULT_BACKUP.get(mode, "int8_asym"):
        weights["backup_mode"] = backup
    weights["ratio"] = 0.0 if ratio == NO_PRIMARY_LAYERS else ratio
    for switch in ("all_layers", "awq", "scale_estimation", "gptq", "lora_correction"):
        if recorded.get(switch) == "True":
            weights[switch] = True
    weights |= {name: recorded[name] for name in OWN_SETTINGS if name in recorded}
    # Without layers to choose there is nothing for it to choose by.
    metric = _said(recorded, "sensitivity_metric", WEIGHTS)
    if 0 < ratio < 1 and metric not in (NO_DATA_METRIC, "max_activation_variance"):
        weights["sensitivity_metric"] = metric
    # Where statistics were kept changes no weight.
    advanced = {**_literal(recorded, "advanced_parameters", WEIGHTS), "statistics_path": None}
    return {**weights, **advanced_fields(advanced, f"{MODEL_XML}: {WEIGHTS}.advanced_parameters")}


def _rules(recorded: Fields) -> Fields:
    if RULES not in recorded:
        return {}
    try:
        return {"rules": json.loads(recorded[RULES])}
    except (ValueError, RecursionError):
        raise _refuse(f"{WEIGHTS}.{RULES}", "is not what a compression writes", _BY_HAND) from None


def _activations(recorded: Fields, model: ov.Model, calibration: Calibration | None) -> Fields:
    from nncf.quantization.advanced_parameters import convert_to_dict_recursively

    if "max_drop" in recorded:
        raise _refuse(f"{ACTIVATIONS}.max_drop", "accuracy control: NNCF does not record by which metric", _BY_HAND)
    if calibration is None:
        problem = "activations were measured on a text that NNCF does not record"
        raise _refuse("calibration", problem, "give it as calibration=Calibration(dataset='FILE')")
    advanced = _literal(recorded, "advanced_parameters", ACTIVATIONS)
    alpha = advanced.get("smooth_quant_alphas", {}).get("matmul", SMOOTH_QUANT_ALPHA)
    activations: Fields = {"mode": _activation_mode(model), **_ignored_scope(recorded, ACTIVATIONS)}
    if activations["mode"] == "int8" and recorded.get("preset") == "performance":
        activations["preset"] = "performance"
    if alpha != SMOOTH_QUANT_ALPHA:
        activations["smooth_quant_alpha"] = float(alpha)
    if recorded.get("fast_bias_correction") == "False":
        activations["fast_bias_correction"] = False
    # What the recipe would give NNCF, as NNCF would record it: everything else has to be the same.
    arguments = quantize_arguments(validated(Quantization, activations, _place), num_windows=calibration.num_samples)
    expected = convert_to_dict_recursively(arguments["advanced_parameters"])
    for field in sorted(expected.keys() | advanced.keys()):
        if advanced.get(field) != expected.get(field):
            problem = f"is {advanced.get(field)!r}, a recipe has {expected.get(field)!r}"
            raise _refuse(f"{ACTIVATIONS}.advanced_parameters.{field}", problem, _BY_HAND)
    for place, field, value in (
        ("calibration.num_samples", "subset_size", str(calibration.num_samples)),
        (f"{ACTIVATIONS}.model_type", "model_type", "transformer"),
        (f"{ACTIVATIONS}.target_device", "target_device", "ANY"),
    ):
        if recorded.get(field) != value:
            raise _refuse(place, f"is {value} in a recipe, NNCF recorded {recorded.get(field)}", "give what was used")
    return activations


def _activation_mode(model: ov.Model) -> str:
    """NNCF does not record it; 8-bit floats show in the graph."""
    for op in model.get_ops():
        if op.get_type_name() == "FakeConvert":
            return f"fp8_{op.get_attributes()['destination_type'].removeprefix('f8')}"
    return "int8"


def _ignored_scope(recorded: dict[str, Any], where: str) -> Fields:
    scope = recorded.get("ignored_scope")
    # A string is NNCF's way to write an empty one.
    if not isinstance(scope, dict):
        return {}
    if "subgraphs" in scope:
        raise _refuse(f"{where}.ignored_scope.subgraphs", "a recipe has none", _BY_HAND)
    return {"ignored_scope": {kind: _literal(scope, kind, f"{where}.ignored_scope", list) for kind in scope}}


def _said(recorded: Fields, field: str, where: str) -> str:
    if field not in recorded:
        raise _refuse(f"{where}.{field}", "is not recorded", _BY_HAND)
    return str(recorded[field])


def _number(recorded: Fields, field: str, where: str, kind: type[NumberT]) -> NumberT:
    text = _said(recorded, field, where)
    try:
        return kind(text)
    except ValueError:
        raise _refuse(f"{where}.{field}", f"is {text!r}, which is no number", _BY_HAND) from None


def _literal(recorded: Fields, field: str, where: str, kind: type = dict) -> Any:
    """A dictionary or list as NNCF wrote it: in Python's notation."""
    try:
        value = ast.literal_eval(recorded.get(field, "{}"))
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, kind):
        problem = "cannot be read back from the text that NNCF recorded (a codebook is cut off in it)"
        raise _refuse(f"{where}.{field}", problem, _BY_HAND)
    return value


def _refuse(field: str, problem: str, hint: str) -> RecipeError:
    return RecipeError(problem, where=f"{MODEL_XML}: {field}", hint=hint)
