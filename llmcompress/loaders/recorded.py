"""What an OpenVINO model was made by: our manifest, or else what NNCF wrote into the IR.

Optimum's ``openvino_config.json`` is not read: for a causal language model it holds no parameters.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from llmcompress.artifact import MANIFEST, read_manifest
from llmcompress.errors import RecipeError
from llmcompress.loaders.graph import num_elements
from llmcompress.loaders.ir import MODEL_FILE, read_ir
from llmcompress.recipe import Calibration, Recipe, Runtime, WeightCompression
from llmcompress.recipe.modes import DEFAULT_BACKUP, default_group_size
from llmcompress.recipe.optimum import advanced_fields
from llmcompress.recipe.part import Part
from llmcompress.recipe.problems import dotted, recipe_error

if TYPE_CHECKING:
    import openvino as ov

Fields = dict[str, Any]
PartT = TypeVar("PartT", bound=Part)

WEIGHTS = "nncf/weight_compression"
ACTIVATIONS = "nncf/quantization"
LOW_BITS = frozenset({"u8", "i8", "u4", "i4", "u3", "u2", "nf4", "f4e2m1", "f8e4m3", "f8e5m2", "f8e8m0"})
FEW_BITS = frozenset({"u4", "i4", "u3", "u2", "nf4", "f4e2m1"})
LARGE = 1 << 12
"""Elements from which a constant is taken for a weight."""
NO_DATA_METRIC = "weight_quantization_error"
"""What NNCF records as the sensitivity metric where none was given and there was no data."""


def recorded_recipe(directory: Path, *, name: str, calibration: Calibration | None = None) -> Recipe:
    """Return the recipe that a model was made by; as ``Recipe.from_artifact``.

    Raises:
        ArtifactError: the manifest is damaged.
        ModelError: there is no OpenVINO model, or it is damaged.
        RecipeError: names the field that the record does not tell.
    """
    if (directory / MANIFEST).is_file():
        recipe = read_manifest(directory).recipe
        if calibration is None:
            return recipe
        # A local text is named in the manifest without the folder that it lay in.
        return _validated(Recipe, {**recipe.model_dump(exclude_defaults=True), "calibration": calibration})
    model = read_ir(directory)
    weights, activations = _record(model, "weight_compression"), _record(model, "quantization")
    formats = {op.get_element_type().get_type_name() for op in model.get_ops() if _is_large_constant(op)}
    data: Fields = {"name": name, "runtime": _runtime(model, compressed=bool(weights or activations))}
    if weights:
        data["weights"] = _weights(weights)
        if data["weights"]["mode"].startswith("int8") and formats & FEW_BITS:
            problem = "the graph holds formats of fewer bits than the record: it was compressed in several passes, of "
            raise _refuse(f"{WEIGHTS}.mode", problem + "which NNCF records the last", "write the recipe by hand")
        had_data = weights.get("sensitivity_metric", NO_DATA_METRIC) != NO_DATA_METRIC
        if calibration is None and had_data and _validated(WeightCompression, data["weights"]).uses_data:
            problem = "the model was made by looking at data, and NNCF does not record the text"
            raise _refuse("calibration", problem, "give it as calibration=Calibration(dataset='FILE')")
    elif formats & LOW_BITS and not activations:
        problem = "the weights are compressed, and NNCF recorded nothing"
        raise _refuse(WEIGHTS, problem, "write the recipe by hand")
    if activations:
        data["activations"] = _activations(activations, model)
        if calibration is None:
            problem = "activations were measured on a text that NNCF does not record"
            raise _refuse("calibration", problem, "give it as calibration=Calibration(dataset='FILE')")
        if str(calibration.num_samples) != activations.get("subset_size"):
            problem = f"num_samples is {calibration.num_samples}, NNCF recorded {activations.get('subset_size')}"
            raise _refuse("calibration.num_samples", problem, "give the calibration that was used")
    data["method"] = "_and_".join(part for part in ("weights", "activations") if part in data) or "none"
    if calibration is not None:
        data["calibration"] = calibration
    return _validated(Recipe, data)


def _validated(part: type[PartT], data: Fields) -> PartT:
    try:
        return part.model_validate(data)
    except ValidationError as error:
        raise recipe_error(error, part, lambda place: f"{MODEL_FILE}: {dotted(place)}") from None


def _record(model: ov.Model, algorithm: str) -> dict[str, Any]:
    if not model.has_rt_info(["nncf", algorithm]):
        return {}
    recorded: dict[str, Any] = model.get_rt_info(["nncf", algorithm]).value
    return recorded


def _is_large_constant(op: ov.Node) -> bool:
    return op.get_type_name() == "Constant" and num_elements(op) >= LARGE


def _runtime(model: ov.Model, *, compressed: bool) -> Fields:
    options = dict(model.get_rt_info("runtime_options").value) if model.has_rt_info("runtime_options") else {}
    if not compressed and options.get("KV_CACHE_PRECISION") == "f16":
        # Optimum's exporter writes it into every uncompressed model.
        del options["KV_CACHE_PRECISION"]
    hints = {field.upper(): field for field in Runtime.model_fields}
    return {
        field: int(options[name]) if field.endswith("group_size") else options[name]
        for name, field in hints.items()
        if name in options
    }


def _weights(recorded: dict[str, Any]) -> Fields:
    """NNCF records what it worked with, defaults included; a recipe says only what is not the default."""
    mode = recorded["mode"]
    if recorded.get("compression_format", "dequantize") != "dequantize":
        raise _refuse(f"{WEIGHTS}.compression_format", f"is {recorded['compression_format']}", "a recipe has none")
    weights: Fields = {"mode": mode, **_ignored_scope(recorded, WEIGHTS)}
    if mode.startswith("int8"):
        return weights
    group_size, ratio = int(recorded["group_size"]), float(recorded["ratio"])
    if group_size != default_group_size(mode):
        weights["group_size"] = group_size
    if recorded["backup_mode"] != DEFAULT_BACKUP.get(mode, "int8_asym"):
        weights["backup_mode"] = recorded["backup_mode"]
    weights["ratio"] = ratio
    for switch in ("all_layers", "awq", "scale_estimation", "gptq", "lora_correction"):
        if recorded.get(switch) == "True":
            weights[switch] = True
    # Without layers to choose there is nothing for it to choose by.
    metric = recorded["sensitivity_metric"]
    if 0 < ratio < 1 and metric not in (NO_DATA_METRIC, "max_activation_variance"):
        weights["sensitivity_metric"] = metric
    try:
        advanced = ast.literal_eval(recorded.get("advanced_parameters", "{}"))
    except (ValueError, SyntaxError):
        problem = "cannot be read back from the text that NNCF recorded (a codebook is cut off in it)"
        raise _refuse(f"{WEIGHTS}.advanced_parameters", problem, "write the recipe by hand") from None
    return {**weights, **advanced_fields(advanced)}


def _activations(recorded: dict[str, Any], model: ov.Model) -> Fields:
    if "max_drop" in recorded:
        problem = "accuracy control: NNCF does not record by which metric"
        raise _refuse(f"{ACTIVATIONS}.max_drop", problem, "write the recipe by hand")
    advanced = ast.literal_eval(recorded.get("advanced_parameters", "{}"))
    alpha = advanced.get("smooth_quant_alphas", {}).get("matmul", 0.95)
    activations: Fields = {"mode": _activation_mode(model), **_ignored_scope(recorded, ACTIVATIONS)}
    if activations["mode"] == "int8" and "performance" in str(recorded.get("preset")).lower():
        activations["preset"] = "performance"
    if alpha != 0.95:
        activations["smooth_quant_alpha"] = float(alpha)
    if recorded.get("fast_bias_correction") == "False":
        activations["fast_bias_correction"] = False
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
        raise _refuse(f"{where}.ignored_scope.subgraphs", "a recipe has none", "write the recipe by hand")
    return {"ignored_scope": {kind: ast.literal_eval(values) for kind, values in scope.items()}}


def _refuse(field: str, problem: str, hint: str) -> RecipeError:
    return RecipeError(problem, where=f"{MODEL_FILE}: {field}", hint=hint)
