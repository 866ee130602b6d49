"""Recipes read back from models: from our manifest, and from what NNCF writes into an IR."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

import llmcompress
from llmcompress import Recipe, load_recipe
from llmcompress.errors import ModelError, RecipeError
from llmcompress.spec import Calibration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def stock_ir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock Optimum's uncompressed export."""
    from optimum.intel import OVModelForCausalLM

    directory = tmp_path_factory.mktemp("stock") / "ir"
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, load_in_8bit=False)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(200)))
    return path


def _calibration(text: Path) -> Calibration:
    return Calibration(dataset=str(text), num_samples=2, seq_len=16)


def _by_nncf(stock_ir: Path, output: Path, recipe: Recipe) -> Path:
    """The recipe, carried out by stock NNCF on stock Optimum's export."""
    import nncf
    import numpy as np
    import openvino as ov

    from llmcompress.compression.nncf.runs import model_inputs
    from llmcompress.compression.nncf.weights import nncf_arguments

    model = ov.Core().read_model(stock_ir / "openvino_model.xml")
    for weights in recipe.weight_passes:
        data = {}
        if recipe.calibration is not None and weights.uses_data:
            windows = np.random.default_rng(0).integers(0, 256, (2, 16))
            data = {"dataset": nncf.Dataset(list(model_inputs(model, windows)))}
        model = nncf.compress_weights(model, **nncf_arguments(weights, num_windows=2 if data else 0), **data)
    output.mkdir()
    # As Optimum does it: the exporter's hint is for uncompressed models.
    options = {key: value for key, value in model.get_rt_info("runtime_options").value.items() if key[0] == "A"}
    model.set_rt_info(options, "runtime_options")
    for name, value in recipe.runtime.properties().items():
        model.set_rt_info(value, ["runtime_options", name])
    ov.save_model(model, output / "openvino_model.xml", compress_to_fp16=False)
    shutil.copy(stock_ir / "config.json", output)
    return output


INT4: dict[str, Any] = {"mode": "int4_sym", "group_size": 32}
WEIGHTS: list[dict[str, Any]] = [
    {"mode": "int8_asym"},
    {"mode": "int8_sym", "ignored_scope": {"types": ["Gather"]}},
    INT4,
    {**INT4, "ratio": 0.5, "scale_estimation": True},
    {"mode": "int4_asym", "group_size": 96, "group_size_fallback": "adjust"},
    {
        **INT4,
        "gptq": True,
        "ignored_scope": {"names": ["__module.lm_head/ov_ext::linear/MatMul"], "patterns": [".*q_"]},
    },
    {"mode": "nf4", "group_size": -1},
    {"mode": "int3_sym", "group_size": 32, "backup_mode": "none"},
]


MORE_WEIGHTS: list[dict[str, Any]] = [
    {**INT4, "ratio": 0.5, "all_layers": True, "backup_mode": "int8_sym"},
    {**INT4, "ratio": 0.5, "sensitivity_metric": "mean_activation_variance"},
    {**INT4, "awq": True, "advanced": {"awq_params": {"steps": 7}}},
    {"mode": "mxfp4"},
    {"mode": "nvfp4"},
]


@pytest.mark.parametrize(
    "weights", [*WEIGHTS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_WEIGHTS)], ids=str
)
def test_what_nncf_recorded(weights: dict[str, Any], stock_ir: Path, text: Path, tmp_path: Path) -> None:
    needs_data = weights.get("scale_estimation") or weights.get("gptq") or "sensitivity_metric" in weights
    data_aware = needs_data or weights.get("advanced")
    fields: dict[str, Any] = {"name": "r", "weights": weights}
    if data_aware:
        fields["calibration"] = _calibration(text)
    recipe = Recipe.model_validate(fields)
    made = _by_nncf(stock_ir, tmp_path / "made", recipe)
    if data_aware:
        with pytest.raises(RecipeError, match="NNCF does not record the text") as caught:
            Recipe.from_artifact(made)
        assert caught.value.where == "openvino_model.xml: calibration"
    calibration = recipe.calibration
    assert Recipe.from_artifact(made, name="r", calibration=calibration) == recipe


def test_runtime_hints_are_read_and_the_exporters_is_not(stock_ir: Path, tmp_path: Path) -> None:
    hints = {"kv_cache_precision": "u4", "dynamic_quantization_group_size": 64}
    recipe = Recipe.model_validate({"name": "r", "weights": {"mode": "int8_sym"}, "runtime": hints})
    assert Recipe.from_artifact(_by_nncf(stock_ir, tmp_path / "made", recipe), name="r") == recipe
    assert Recipe.from_artifact(stock_ir, name="r") == Recipe(name="r", method="none")


def test_our_manifest_says_it_all(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    recipe = load_recipe("int4-awq-se", [f"calibration.dataset={text}", "weights.group_size=32"])
    recipe = recipe.model_copy(update={"calibration": _calibration(text)})
    llmcompress.compress(checkpoint, recipe, tmp_path / "out", tokenizer=False)
    assert Recipe.from_artifact(tmp_path / "out") == recipe.portable()
    assert Recipe.from_artifact(tmp_path / "out", calibration=_calibration(text)) == recipe
    llmcompress.compress(checkpoint, "int8", tmp_path / "int8", tokenizer=False)
    with pytest.raises(RecipeError, match="nothing in this recipe looks at data"):
        Recipe.from_artifact(tmp_path / "int8", calibration=_calibration(text))
    # Without the manifest, NNCF's record in the same file says the same.
    (tmp_path / "int8" / "llmcompress.json").unlink()
    assert Recipe.from_artifact(tmp_path / "int8").weights == load_recipe("int8").weights


def test_optimums_own_file_is_not_trusted(stock_ir: Path, tmp_path: Path) -> None:
    made = _by_nncf(stock_ir, tmp_path / "made", Recipe.model_validate({"name": "r", "weights": INT4}))
    (made / "openvino_config.json").write_text('{"dtype": "int8", "quantization_config": {"bits": 8}}')
    weights = Recipe.from_artifact(made).weights
    assert weights is not None
    assert weights.mode == "int4_sym"


def test_several_passes_are_more_than_the_record_holds(stock_ir: Path, tmp_path: Path) -> None:
    fields = {"name": "r", "weights": {**INT4, "ignored_scope": {"patterns": [".*self_attn.*"]}}}
    recipe = Recipe.model_validate({**fields, "further_weights": [{"mode": "int8_asym"}]})
    with pytest.raises(RecipeError, match="compressed in several passes") as caught:
        Recipe.from_artifact(_by_nncf(stock_ir, tmp_path / "made", recipe))
    assert caught.value.where == "openvino_model.xml: nncf/weight_compression.mode"


def _with_record(stock_ir: Path, output: Path, record: dict[str, str], algorithm: str = "weight_compression") -> Path:
    import openvino as ov

    model = ov.Core().read_model(stock_ir / "openvino_model.xml")
    for name, value in record.items():
        model.set_rt_info(value, ["nncf", algorithm, *name.split("/")])
    output.mkdir()
    ov.save_model(model, output / "openvino_model.xml", compress_to_fp16=False)
    return output


RECORD = {
    "mode": "int4_sym",
    "group_size": "32",
    "ratio": "1",
    "backup_mode": "int8_asym",
    "sensitivity_metric": "weight_quantization_error",
}
UNREADABLE: list[tuple[dict[str, str], str, str, str]] = [
    (
        {**RECORD, "advanced_parameters": "{'codebook': array([-1., 1.])}"},
        "weight_compression",
        "nncf/weight_compression.advanced_parameters",
        "cannot be read back from the text",
    ),
    (
        {**RECORD, "compression_format": "fake_quantize"},
        "weight_compression",
        "nncf/weight_compression.compression_format",
        "is fake_quantize",
    ),
    (
        {**RECORD, "ignored_scope/subgraphs": "[1]"},
        "weight_compression",
        "nncf/weight_compression.ignored_scope.subgraphs",
        "a recipe has none",
    ),
    ({**RECORD, "mode": "int5_sym"}, "weight_compression", "weights.mode", "got 'int5_sym'; accepted: int8_sym"),
    ({**RECORD, "group_size": "x"}, "weight_compression", "nncf/weight_compression.group_size", "which is no number"),
    (
        {key: value for key, value in RECORD.items() if key != "sensitivity_metric"},
        "weight_compression",
        "nncf/weight_compression.sensitivity_metric",
        "is not recorded",
    ),
    (
        {**RECORD, "advanced_parameters": "[1]"},
        "weight_compression",
        "nncf/weight_compression.advanced_parameters",
        "cannot be read back from the text",
    ),
    (
        {**RECORD, "advanced_parameters": "{'lora_adapter_rank': 8}"},
        "weight_compression",
        "nncf/weight_compression.advanced_parameters.lora_adapter_rank",
        "a recipe has no such setting",
    ),
    ({"max_drop": "0.01"}, "quantization", "nncf/quantization.max_drop", "does not record by which metric"),
    ({"subset_size": "2"}, "quantization", "calibration", "activations were measured on a text"),
]


@pytest.mark.parametrize(("record", "algorithm", "field", "problem"), UNREADABLE, ids=lambda value: str(value)[-40:])
def test_what_a_record_does_not_tell_names_the_field(
    record: dict[str, str], algorithm: str, field: str, problem: str, stock_ir: Path, tmp_path: Path
) -> None:
    made = _with_record(stock_ir, tmp_path / "made", record, algorithm)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_artifact(made)
    assert caught.value.where == f"openvino_model.xml: {field}"
    assert problem in caught.value.message
    assert caught.value.hint


def test_records_of_other_versions_and_with_kept_statistics(stock_ir: Path, tmp_path: Path) -> None:
    older = {key: value for key, value in RECORD.items() if key != "backup_mode"}
    advanced = {"advanced_parameters": "{'statistics_path': '/somewhere'}"}
    recipe = Recipe.from_artifact(_with_record(stock_ir, tmp_path / "made", {**older, **advanced, "ratio": "1"}))
    assert recipe.weights is not None
    assert recipe.weights.model_dump(exclude_defaults=True) == {"mode": "int4_sym", "group_size": 32}


def test_a_hint_that_is_no_number(stock_ir: Path, tmp_path: Path) -> None:
    import openvino as ov

    model = ov.Core().read_model(stock_ir / "openvino_model.xml")
    model.set_rt_info("auto", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    ov.save_model(model, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    with pytest.raises(RecipeError, match="is 'auto', which is no number") as caught:
        Recipe.from_artifact(tmp_path)
    assert caught.value.where == "openvino_model.xml: runtime_options.DYNAMIC_QUANTIZATION_GROUP_SIZE"


def test_a_text_for_a_model_that_looked_at_none(stock_ir: Path, text: Path, tmp_path: Path) -> None:
    made = _by_nncf(stock_ir, tmp_path / "made", Recipe.model_validate({"name": "r", "weights": {**INT4, "awq": True}}))
    with pytest.raises(RecipeError, match="the record shows that no data was looked at"):
        Recipe.from_artifact(made, calibration=_calibration(text))


@pytest.mark.slow
def test_no_primary_layers_by_the_stock_class(checkpoint: Path, tmp_path: Path) -> None:
    from optimum.intel import OVModelForCausalLM

    recipe = Recipe.model_validate({"name": "r", "weights": {**INT4, "ratio": 0.0}})
    config = recipe.to_quantization_config()
    OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=config
    ).save_pretrained(tmp_path / "made")
    assert Recipe.from_artifact(tmp_path / "made", name="r") == recipe


def test_other_settings_of_quantized_activations_are_named(stock_ir: Path, text: Path, tmp_path: Path) -> None:
    record = {"subset_size": "2", "advanced_parameters": "{'overflow_fix': 'enable'}"}
    made = _with_record(stock_ir, tmp_path / "made", record, "quantization")
    with pytest.raises(RecipeError, match="is None, a recipe has") as caught:
        Recipe.from_artifact(made, calibration=_calibration(text))
    assert caught.value.where.startswith("openvino_model.xml: nncf/quantization.advanced_parameters.")


def test_compressed_without_a_record(stock_ir: Path, tmp_path: Path) -> None:
    made = _by_nncf(stock_ir, tmp_path / "made", Recipe.model_validate({"name": "r", "weights": INT4}))
    xml = (made / "openvino_model.xml").read_text()
    without = re.sub(r"<nncf>.*?</nncf>", "", xml, flags=re.DOTALL)
    assert without != xml
    (made / "openvino_model.xml").write_text(without)
    with pytest.raises(RecipeError, match="the weights are compressed, and NNCF recorded nothing"):
        Recipe.from_artifact(made)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="OpenVINO could not read the model"):
        Recipe.from_artifact(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "mode"), [("int8", "int8"), ("f8e5m2", "fp8_e5m2")])
def test_quantized_activations(dtype: str, mode: str, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVQuantizationConfig

    stock = OVQuantizationConfig(
        dtype=dtype, dataset=["some text to look at, twice"] * 2, num_samples=2, smooth_quant_alpha=0.5
    )
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, quantization_config=stock)
    model.save_pretrained(tmp_path / "made")
    recipe = Recipe.from_artifact(tmp_path / "made", calibration=_calibration(text))
    assert recipe.method == "activations"
    assert recipe.activations is not None
    assert recipe.activations.model_dump(exclude_defaults=True) == {
        **({} if mode == "int8" else {"mode": mode}),
        "smooth_quant_alpha": 0.5,
    }
    more = _calibration(text).model_copy(update={"num_samples": 3})
    with pytest.raises(RecipeError, match="is 3 in a recipe, NNCF recorded 2"):
        Recipe.from_artifact(tmp_path / "made", calibration=more)
