"""Rules for single weights: each weight's bytes are those that stock NNCF makes of it by one format for all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nncf.quantization.algorithms.layerwise.engine import LayerwiseEngine

import llmcompress
from llmcompress import Recipe
from llmcompress.compression.compressible import require_engine
from llmcompress.compression.forecast import forecast
from llmcompress.compression.layers import layer_table
from llmcompress.compression.nncf import layer_rules
from llmcompress.compression.nncf.runs import model_inputs
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.errors import ModelError, RecipeError
from llmcompress.graph.integer_weights import integer_weights
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.publishing.content import _weights
from llmcompress.spec import Calibration, WeightCompression
from llmcompress.spec.validation import dotted, validated
from llmcompress.training.train import trainable

FIRST = {"match": r"model\.layers\.0\..*", "mode": "int4_asym", "group_size": 32}
DOWN = {"match": r".*\.down_proj\.weight", "mode": "int8_asym"}
HEAD = {"match": "lm_head.weight", "mode": "int4_sym", "group_size": 64}
EMBEDDING = {"match": "Gather", "mode": "none"}
RULES = (FIRST, DOWN, HEAD, EMBEDDING)

Constants = dict[str, tuple[str, bytes]]


@pytest.fixture(scope="module")
def loaded(demo_checkpoint: Path) -> LoadedModel:
    return llmcompress.load(demo_checkpoint)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    return Path(shutil.copy(demo_checkpoint / "LICENSE-PYTHON.txt", tmp_path_factory.mktemp("text") / "text.txt"))


def _compression(**given: Any) -> WeightCompression:
    options = {"mode": "int4_sym", "group_size": 64, **given}
    return WeightCompression.model_validate(options)


def _constants(model: Any) -> Constants:
    """Element type and bytes of each constant, by its name."""
    return {
        op.get_friendly_name(): (op.get_element_type().get_type_name(), op.get_data().tobytes())
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    }


def _of(constants: Constants, name: str) -> Constants:
    """A weight's codes, scales and zero points."""
    return {key: value for key, value in constants.items() if key == name or key.startswith(f"{name}/")}


@pytest.fixture(scope="module")
def stock(loaded: LoadedModel) -> Callable[..., Constants]:
    """The constants that stock NNCF makes of all layers in one format."""
    import nncf

    made: dict[str, Constants] = {}

    def make(**arguments: Any) -> Constants:
        key = repr(arguments)
        if key not in made:
            made[key] = _constants(nncf.compress_weights(loaded.clone().model, **arguments))
        return made[key]

    return make


@pytest.mark.parametrize("engine", ["llmcompress", "nncf"])
def test_each_weight_has_the_bytes_of_its_format(
    loaded: LoadedModel, stock: Callable[..., Constants], engine: str
) -> None:
    import nncf

    mode = nncf.CompressWeightsMode
    model = loaded.clone().model
    compress_weights(model, _compression(rules=RULES), engine=engine)  # type: ignore[arg-type]
    found, kinds = _constants(model), {}
    for layer in layer_table(model):
        name = parameter_name(layer.name)
        if name.startswith("model.layers.0."):
            expected = stock(mode=mode.INT4_ASYM, group_size=32, all_layers=True)
        elif name.endswith("down_proj.weight"):
            expected = stock(mode=mode.INT8_ASYM)
        elif name == "model.embed_tokens.weight":
            expected = _constants(loaded.model)
        else:
            expected = stock(mode=mode.INT4_SYM, group_size=64, all_layers=True)
        assert _of(found, layer.name) == _of(expected, layer.name), layer.name
        kinds[layer.mode, layer.group_size] = len(_of(found, layer.name))
    assert kinds == {("int4_asym", 32): 3, ("int8_asym", -1): 3, ("int4_sym", 64): 2, ("bf16", None): 1}


def test_what_ratio_spares_is_chosen_among_the_others(loaded: LoadedModel) -> None:
    """NNCF's own choice where the weights with a rule are in its ignored scope, as far as it concerns the others."""
    import nncf

    rule = {"match": r"model\.layers\.[01]\..*", "mode": "int8_sym"}
    model, other = loaded.clone().model, loaded.clone().model
    compress_weights(model, _compression(ratio=0.5, rules=[rule]))
    scope = nncf.IgnoredScope(patterns=[r".*layers\.[01]\..*"])
    mode = nncf.CompressWeightsMode.INT4_SYM
    nncf.compress_weights(other, mode=mode, group_size=64, ratio=0.5, ignored_scope=scope)
    found, expected = _constants(model), _constants(other)
    modes = {}
    for layer in layer_table(model):
        modes[layer.name] = layer.mode
        if not parameter_name(layer.name).startswith(("model.layers.0.", "model.layers.1.")):
            assert _of(found, layer.name) == _of(expected, layer.name), layer.name
    assert {"int4_sym", "int8_asym", "int8_sym"} == set(modes.values())


@pytest.mark.slow
def test_methods_leave_out_what_a_rule_says(loaded: LoadedModel, text: Path) -> None:
    import nncf
    import numpy as np

    rule = {"match": r"model\.layers\.0\..*", "mode": "int4_sym", "group_size": 64, "method": "data_free"}
    coarse = {"match": r"model\.layers\.1\..*_proj\.weight", "mode": "int4_asym", "group_size": 32}
    windows = np.random.default_rng(0).integers(3, 400, (3, 24))
    model = loaded.clone().model
    weights = _compression(scale_estimation=True, rules=[rule, coarse])
    compress_weights(model, weights, model_inputs(model, windows))

    def by_nncf(**options: Any) -> Constants:
        other, mode = loaded.clone().model, nncf.CompressWeightsMode
        data = {"dataset": nncf.Dataset(list(model_inputs(other, windows))), "subset_size": 3}
        given = {"mode": mode.INT4_SYM, "group_size": 64, **options}
        return _constants(nncf.compress_weights(other, **given, **(data if "scale_estimation" in options else {})))

    estimated, data_free = by_nncf(scale_estimation=True), by_nncf()
    finer = by_nncf(mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=32, scale_estimation=True)
    found, differing = _constants(model), 0
    for layer in layer_table(model):
        name = parameter_name(layer.name)
        expected = estimated
        if name.startswith("model.layers.0."):
            expected = data_free
            differing += _of(data_free, layer.name) != _of(estimated, layer.name)
        elif name.startswith("model.layers.1."):
            expected = finer
        assert _of(found, layer.name) == _of(expected, layer.name), layer.name
    assert differing


def test_what_the_original_computes_decides_on_one_weight_alone(loaded: LoadedModel) -> None:
    """Against stock NNCF's GPTQ of a late layer while all others are out of its scope."""
    import nncf
    import numpy as np

    name = "model.layers.3.mlp.down_proj.weight"
    windows = np.random.default_rng(0).integers(3, 400, (3, 24))

    def made(*rules: dict[str, Any]) -> Any:
        model = loaded.clone().model
        weights = _compression(mode="int4_asym", gptq=True, statistics="original", rules=rules)
        compress_weights(model, weights, model_inputs(model, windows))
        return model

    early = {"match": r".*layers\.[012]\..*", "mode": "int2_sym", "group_size": 64, "method": "gptq"}
    rounded = {"match": r".*layers\.3\.self_attn.*", "mode": "int4_sym", "group_size": 32, "method": "data_free"}
    alone, among = made({"match": f"(?!{name}).*", "mode": "int8_asym"}), made(early, rounded)
    (constant,) = (each for each in integer_weights(alone) if parameter_name(each) == name)
    assert _of(_constants(alone), constant) == _of(_constants(among), constant)

    stock, mode = loaded.clone().model, nncf.CompressWeightsMode.INT4_ASYM
    scope = nncf.IgnoredScope(patterns=[r"^(?!.*layers\.3\.mlp\.down_proj).*"], validate=False)
    data = {"dataset": nncf.Dataset(list(model_inputs(stock, windows))), "ignored_scope": scope}
    nncf.compress_weights(stock, mode=mode, group_size=64, all_layers=True, gptq=True, **data)
    expected, found = (integer_weights(model)[constant] for model in (stock, among))
    # The first group of a row knows no errors of others. In those behind, sums are rounded otherwise, and what has
    # another code is one code off.
    assert np.array_equal(expected.scales[:, 0], found.scales[:, 0])
    code = float(np.abs(expected.scales.astype(np.float32)).mean())
    assert float(np.abs(expected.values() - found.values()).mean()) < 0.1 * code

    data_free, query = loaded.clone().model, constant.replace("mlp.down_proj", "self_attn.q_proj")
    compress_weights(data_free, _compression(group_size=32))
    assert _of(_constants(among), query) == _of(_constants(data_free), query)


def test_the_forecast_the_manifest_and_the_recipe_know_them(demo_checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="by-rule", weights=_compression(rules=RULES))
    manifest = llmcompress.compress(demo_checkpoint, recipe, tmp_path / "out", tokenizer=False)
    predicted = forecast(llmcompress.load(demo_checkpoint).source, recipe)
    planned = {layer.name: (layer.mode, layer.group_size) for layer in predicted.layers}
    assert planned == {parameter_name(layer.name): (layer.mode, layer.group_size) for layer in manifest.layers}
    assert predicted.size_bytes == pytest.approx((tmp_path / "out" / "openvino_model.bin").stat().st_size, rel=2e-3)
    assert llmcompress.recipe_from_artifact(tmp_path / "out") == recipe
    # From the graph alone as well.
    ir = tmp_path / "ir"
    ir.mkdir()
    for end in ("xml", "bin"):
        shutil.copy(tmp_path / "out" / f"openvino_model.{end}", ir)
    shutil.copy(tmp_path / "out" / "config.json", ir)
    assert llmcompress.recipe_from_artifact(ir, name="by-rule").weights == recipe.weights
    assert _weights(recipe.weights)["rules.0"] == r"model\.layers\.0\..*: int4_asym, 32"  # type: ignore[arg-type]
    assert _weights(recipe.weights)["rules.3"] == "Gather: none"  # type: ignore[arg-type]
    graph = (ir / "openvino_model.xml").read_text()
    (ir / "openvino_model.xml").write_text(graph.replace("int4_asym&quot;", "int4_asym"))
    with pytest.raises(RecipeError, match=r"weight_compression\.rules.*is not what a compression writes"):
        llmcompress.recipe_from_artifact(ir, name="by-rule")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "lm_hea", "mode": "int8_sym"}], r"rules\.0\.match.*got 'lm_hea', which takes no weight"),
        ([{"match": ".*", "mode": "int8_sym"}, DOWN], r"rules\.1\.match.*which takes no weight"),
        ([{"match": ".*down_proj.weight", "mode": "nf4", "group_size": 96}], "group size 96 of rule .* 512 input"),
    ],
)
def test_a_rule_without_a_weight_is_refused_before_and_within_the_work(
    loaded: LoadedModel, rules: list[dict[str, Any]], message: str
) -> None:
    weights = _compression(rules=rules)
    with pytest.raises(RecipeError, match=message):
        forecast(loaded.source, Recipe(name="by-rule", weights=weights))
    with pytest.raises(RecipeError, match=message):
        compress_weights(loaded.clone().model, weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"rules": [{"match": "(", "mode": "int8_sym"}]}, "a Python regular expression is accepted"),
        ({"rules": [{"match": "a", "mode": "codebook"}]}, "got 'codebook'"),
        ({"rules": [{"match": "a", "mode": "int4_sym", "group_size": 0}]}, "a positive number or -1"),
        ({"rules": [{"match": "a", "mode": "int8_sym", "group_size": 64}]}, "int8_sym has one group per channel"),
        ({"rules": [{"match": "a", "mode": "none", "group_size": 64}]}, "has no effect with mode none"),
        ({"rules": [{"match": "a", "mode": "mxfp4", "group_size": 64}]}, "mode mxfp4 has groups of 32"),
        ({"rules": [DOWN, DOWN]}, "an earlier rule takes the same weights"),
        ({"rules": [{**DOWN, "method": "data_free"}]}, "has no effect: the recipe asks for no method"),
        ({"rules": [{"match": "a", "mode": "mxfp4"}], "awq": True}, "NNCF has no awq for mode mxfp4"),
        ({"rules": [{**HEAD, "method": "gptq"}]}, "the recipe asks for no GPTQ"),
        ({"rules": [{**DOWN, "method": "gptq"}], "gptq": True}, "GPTQ leaves mode int8_asym as it is"),
        ({"gptq_order": "activations"}, "gptq_order.*has no effect without gptq"),
        ({"statistics": "original"}, "statistics.*has no effect without gptq"),
        ({"mode": "int8_sym", "statistics": "original"}, "statistics.*has no effect with mode int8_sym"),
        ({"rules": [DOWN], "lora_correction": True}, "cannot be combined with lora_correction"),
        ({"rules": [DOWN], "mode": "adaptive_codebook", "group_size": -1}, "with mode adaptive_codebook"),
    ],
)
def test_refusals(weights: dict[str, Any], message: str) -> None:
    given = {"mode": "int4_sym", **weights}
    needs_data = given.get("lora_correction") or given["mode"] == "adaptive_codebook"
    calibration = {"calibration": Calibration(dataset="text.txt")} if needs_data else {}
    with pytest.raises(RecipeError, match=message):
        validated(Recipe, {"name": "by-rule", "weights": given, **calibration}, dotted)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "a", "mode": "nf4"}, "target npu accepts none, int4_sym, int8_sym and int8_asym, not nf4"),
        ({"match": "a", "mode": "int4_sym", "group_size": 32}, "target npu accepts groups of 128 or -1, not 32"),
    ],
)
def test_the_npu_takes_few(rule: dict[str, Any], message: str) -> None:
    fields = {"name": "by-rule", "target": "npu", "weights": {"mode": "int4_sym", "rules": [rule]}}
    with pytest.raises(RecipeError, match=message):
        validated(Recipe, fields, dotted)


def test_stock_optimum_has_none() -> None:
    calibration = Calibration(dataset="text.txt")
    for given, message in (
        ({"statistics": "original"}, r"weights\.statistics.*activations of the compressed model"),
        ({"gptq_order": "activations"}, r"weights\.gptq_order.*has GPTQ go by columns"),
    ):
        recipe = Recipe(name="own", weights=_compression(gptq=True, **given), calibration=calibration)
        with pytest.raises(RecipeError, match=message):
            llmcompress.to_quantization_config(recipe)
        if "gptq_order" in given:
            with pytest.raises(RecipeError, match=r"weights\.gptq_order.*NNCF's GPTQ goes by columns"):
                require_engine(recipe, "nncf")
        require_engine(recipe, "llmcompress")
    recipe = Recipe(name="by-rule", weights=_compression(rules=RULES))
    with pytest.raises(RecipeError, match=r"weights\.rules.*has one format for all layers"):
        llmcompress.to_quantization_config(recipe)


def test_an_nncf_that_has_moved_is_named(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> None:
    monkeypatch.setattr(layer_rules, "_DECIDED", "_moved")
    with pytest.raises(ModelError, match="the installed NNCF has no _moved"):
        compress_weights(loaded.clone().model, _compression(rules=RULES))
    monkeypatch.delattr(LayerwiseEngine, "create_iterator_through_target_nodes")
    with pytest.raises(ModelError, match="has no create_iterator_through_target_nodes, where GPTQ gets"):
        compress_weights(loaded.clone().model, _compression(gptq=True, statistics="original"))


def test_bits_of_fewer_than_8_are_trained_with_those_of_the_recipe(loaded: LoadedModel) -> None:
    model, weights = loaded.clone().model, _compression(rules=RULES)
    compress_weights(model, weights)
    names = trainable(integer_weights(model), weights, where="demo")
    of_four_bits = {layer.name for layer in layer_table(model) if layer.mode in ("int4_sym", "int4_asym")}
    assert names == of_four_bits
    assert len(of_four_bits) < len(layer_table(model)) - 1


def test_the_rules_in_the_graph_are_json(loaded: LoadedModel) -> None:
    model = loaded.clone().model
    compress_weights(model, _compression(rules=[HEAD]))
    assert json.loads(model.get_rt_info(["nncf", "weight_compression", "rules"]).value) == [HEAD]


def test_a_weight_that_nobody_named_is_called_by_what_takes_it_first() -> None:
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    def table() -> list[tuple[str, int]]:
        start, weight = ops.parameter([1, 4], np.float32), ops.constant(np.ones((4, 4), np.float32))
        values = start
        for name in ("b/MatMul", "a/MatMul"):
            values = ops.matmul(values, weight, False, True)
            values.set_friendly_name(name)
        values = ops.matmul(values, ops.constant(np.zeros((4, 4), np.float32), name="named"), False, True)
        folded = ops.constant(np.ones((4, 8), np.float32))
        folded.set_friendly_name(ops.multiply(values, values).get_friendly_name())
        values = ops.matmul(values, folded, False, False)
        values.set_friendly_name("c/MatMul")
        return [(layer.name, layer.size_bytes) for layer in layer_table(ov.Model([values], [start]))]

    # The runtime's own numbers go on from one model to the next.
    assert table() == table() == [("a/MatMul", 64), ("c/MatMul", 128), ("named", 64)]
