"""Recipes as Optimum's quantization_config: what arrives at NNCF, what is refused, and that nothing is lost."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_models import build_checkpoint

from llmcompress import OVRecipeConfig, Recipe, load_recipe
from llmcompress.errors import DataError, RecipeError
from llmcompress.spec import Calibration, packaged_recipes
from llmcompress.spec.modes import Mode

NUM_WINDOWS, SEQ_LEN = 3, 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(200)))
    return path


def _with_data(text: Path, **weights: Any) -> Recipe:
    calibration = {"dataset": str(text), "num_samples": NUM_WINDOWS, "seq_len": SEQ_LEN}
    return Recipe.model_validate(
        {"name": "r", "weights": {"mode": "int4_sym", "group_size": 32, **weights}, "calibration": calibration}
    )


def _carried() -> list[Recipe]:
    """The packaged recipes that compress, and one for every other mode of NNCF."""
    special: dict[str, dict[str, Any]] = {
        "codebook": {"advanced": {"codebook": [-1.0, -0.25, 0.0, 0.5, 1.0]}},
        "adaptive_codebook": {},
    }
    modes = [
        Recipe.model_validate(
            {
                "name": mode,
                "weights": {"mode": mode, **special.get(mode, {})},
                **({"calibration": {"dataset": "a/b@" + "0" * 40, "split": "train"}} if "adaptive" in mode else {}),
            }
        )
        for mode in get_args(Mode)
    ]
    scoped = Recipe.model_validate(
        {"name": "scoped", "weights": {"mode": "int4_sym", "ignored_scope": {"patterns": [".*down_proj.*"]}}}
    )
    packaged = [
        recipe
        for recipe in packaged_recipes()
        if recipe.method not in ("none", "keep")
        and recipe.target != "npu"
        and not (recipe.activations and recipe.activations.accuracy_control)
        and recipe.training is None
    ]
    return [*packaged, *modes, scoped]


@pytest.mark.parametrize("recipe", _carried(), ids=lambda recipe: str(recipe.name))
def test_nothing_is_lost_on_the_way_through_json_pickle_and_copies(recipe: Recipe) -> None:
    config = recipe.to_quantization_config()
    again = OVRecipeConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    for other in (again, pickle.loads(pickle.dumps(config)), copy.deepcopy(config), config.clone()):  # type: ignore[attr-defined]
        assert other == config
        assert hash(other) == hash(config)
        assert other.recipe == recipe
        assert type(other) is type(config)
    assert Recipe.from_quantization_config(config.to_dict()) == recipe
    assert Recipe.from_quantization_config({"recipe": config.to_dict()["recipe"]}) == recipe
    assert json.loads(config.to_json_string())["recipe"]["name"] == recipe.name  # type: ignore[attr-defined]


def test_equality_is_that_of_the_recipes() -> None:
    int4, same, other = (OVRecipeConfig.from_recipe(name) for name in ("int4", "int4", "int4-sym"))
    assert int4 == same
    assert len({int4, same, other}) == 2
    assert int4 != other
    assert int4 != {"bits": 4}
    # Stock configurations of 4 and 8 bits are equal, which is why this is worth a test.
    assert OVRecipeConfig.from_recipe("int8") != int4
    changed = int4.clone()  # type: ignore[attr-defined]
    changed.ignored_scope = {"types": ["Gather"]}
    assert changed != int4
    assert OVRecipeConfig.from_dict(changed.to_dict()) == changed


def test_what_optimum_saves_of_it_is_enough(tmp_path: Path) -> None:
    """Optimum makes a class of its own of the saved dictionary; the recipe is in there."""
    from optimum.intel.openvino.configuration import OVConfig

    changes = ["weights.ratio=0.8", "weights.ignored_scope={types: [Gather]}"]
    config = load_recipe("int4", changes).to_quantization_config()
    OVConfig(quantization_config=config).save_pretrained(tmp_path)
    loaded = OVConfig.from_pretrained(tmp_path).quantization_config
    assert Recipe.from_quantization_config(loaded) == config.recipe


def test_what_was_changed_in_a_configuration_is_in_its_recipe(text: Path) -> None:
    config = _with_data(text, scale_estimation=True).to_quantization_config()
    config.ignored_scope = {"types": ["Gather"]}
    config.num_samples = 2
    recipe = Recipe.from_quantization_config(config)
    assert recipe.weights is not None
    assert recipe.calibration is not None
    assert recipe.weights.ignored_scope.types == ("Gather",)
    assert recipe.calibration.num_samples == 2
    assert Recipe.from_quantization_config(config.to_dict()) == recipe


def test_only_its_subclasses_are_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        OVRecipeConfig(load_recipe("int4"))  # type: ignore[abstract]


def test_it_is_one_of_optimums_classes() -> None:
    from optimum.intel import OVMixedQuantizationConfig, OVQuantizationConfig, OVWeightQuantizationConfig
    from optimum.intel.openvino.configuration import OVConfig

    data = {"dataset": "a/b@" + "0" * 40, "split": "train"}
    full = Recipe.model_validate(
        {"name": "f", "method": "activations", "activations": {"mode": "fp8_e4m3"}, "calibration": data}
    )
    mixed = Recipe.model_validate(
        {
            "name": "m",
            "method": "weights_and_activations",
            "weights": {"mode": "int4_sym"},
            "activations": {},
            "calibration": data,
        }
    )
    for recipe, kind, dtype in (
        (load_recipe("int8"), OVWeightQuantizationConfig, "int8_asym"),
        (full, OVQuantizationConfig, "f8e4m3"),
        (mixed, OVMixedQuantizationConfig, "int4_sym_int8"),
    ):
        config = recipe.to_quantization_config()
        assert isinstance(config, kind)
        assert OVConfig(quantization_config=config).dtype == dtype


def _worked_out(arguments: dict[str, Any], *, with_data: bool) -> dict[str, Any]:
    """What NNCF's own function makes of arguments of ``compress_weights``, defaults included."""
    from nncf.quantization.quantize_model import get_weight_compression_configuration

    given = {key: value for key, value in arguments.items() if key != "subset_size"}
    worked_out = get_weight_compression_configuration(**given, dataset=object() if with_data else None)
    worked_out["advanced_parameters"] = dataclasses.asdict(worked_out["advanced_parameters"])
    return dict(worked_out)


STOCK: list[dict[str, Any]] = [
    {"bits": 8, "sym": True},
    {"bits": 8, "sym": False, "group_size": -1, "ratio": 1.0},
    {"bits": 4, "sym": False},
    {"bits": 4, "sym": True, "group_size": 64, "ratio": 0.8, "all_layers": True},
    {"bits": 4, "group_size": -1, "quant_method": "awq"},
    {"bits": 4, "group_size": 64, "backup_precision": "none", "group_size_fallback": "adjust"},
    {"bits": 4, "group_size": 64, "backup_precision": "int8_sym", "sensitivity_metric": None},
    {"bits": 4, "ratio": 0.7, "sensitivity_metric": "weight_quantization_error"},
    {"bits": 4, "dtype": "nf4", "group_size": 64},
    {"bits": 4, "dtype": "mxfp4", "group_size": 32},
    {"bits": 4, "dtype": "cb4"},
    {"bits": 4, "ignored_scope": {"names": ["a"], "patterns": [".*b"], "types": ["Gather"]}},
    {"bits": 4, "sym": True, "dataset": "wikitext2", "scale_estimation": True, "num_samples": 7},
    {"bits": 4, "dataset": "wikitext2:seq_len=64", "gptq": True},
    {"bits": 4, "dataset": "wikitext2", "lora_correction": True},
    {"bits": 4, "ratio": 0.5, "dataset": "wikitext2", "sensitivity_metric": "mean_activation_magnitude"},
    {"bits": 4, "quant_method": "awq", "dataset": "wikitext2", "scale_estimation": True, "dq_group_size": 64},
]


@pytest.mark.parametrize("options", STOCK, ids=str)
@pytest.mark.parametrize("form", ["object", "dictionary", "saved"])
def test_a_stock_configuration_becomes_the_recipe_that_gives_nncf_the_same(options: dict[str, Any], form: str) -> None:
    from optimum.intel import OVWeightQuantizationConfig

    stock = OVWeightQuantizationConfig(**options)
    given = {"object": stock, "dictionary": options, "saved": json.loads(stock.to_json_string())}[form]
    recipe = Recipe.from_quantization_config(given)
    config = recipe.to_quantization_config()
    with_data = "dataset" in options
    if with_data:
        # As from_pretrained does it; no text is needed to see the arguments.
        config.__dict__["_bound"] = type("Bound", (), {"tokenizer": "model", "texts": []})()
    expected = _worked_out(stock.to_nncf_dict(), with_data=with_data)
    assert _worked_out(config.to_nncf_dict(), with_data=with_data) == expected  # type: ignore[attr-defined]
    assert config.dq_group_size == stock.dq_group_size  # type: ignore[attr-defined]
    assert config.bits == stock.bits  # type: ignore[attr-defined]
    if with_data:
        assert recipe.calibration is not None
        assert recipe.calibration.num_samples == (stock.num_samples or 128)
        assert recipe.calibration.seq_len == stock._dataset_kwargs.get("seq_len", 32)
        assert recipe.calibration.dataset.startswith("Salesforce/wikitext@")


def test_advanced_parameters_of_a_stock_configuration_arrive() -> None:
    import nncf
    from optimum.intel import OVWeightQuantizationConfig

    advanced = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    advanced.min_adjusted_group_size = 16
    advanced.awq_params.steps = 7
    stock = OVWeightQuantizationConfig(bits=4, quant_method="awq", dataset="wikitext2", advanced_parameters=advanced)
    recipe = Recipe.from_quantization_config(stock)
    assert recipe.weights is not None
    assert recipe.weights.group_size_fallback == "adjust"
    assert recipe.weights.advanced.min_adjusted_group_size == 16
    assert recipe.weights.advanced.awq_params.steps == 7


def test_full_and_mixed_configurations_become_recipes() -> None:
    from optimum.intel import OVMixedQuantizationConfig, OVQuantizationConfig, OVWeightQuantizationConfig

    full = OVQuantizationConfig(
        sym=True, dataset="wikitext2", num_samples=9, smooth_quant_alpha=0.5, fast_bias_correction=False
    )
    recipe = Recipe.from_quantization_config(full)
    assert recipe.method == "activations"
    assert recipe.activations is not None
    assert recipe.activations.model_dump(exclude_defaults=True) == {
        "preset": "performance",
        "smooth_quant_alpha": 0.5,
        "fast_bias_correction": False,
    }
    assert Recipe.from_quantization_config(full.to_dict()) == recipe
    mixed = OVMixedQuantizationConfig(
        weight_quantization_config=OVWeightQuantizationConfig(bits=4, group_size=64, ignored_scope={"types": ["Add"]}),
        full_quantization_config=OVQuantizationConfig(dtype="f8e4m3", dataset="wikitext2", num_samples=5),
        ignored_scope={"names": ["node"]},
    )
    recipe = Recipe.from_quantization_config(mixed)
    assert recipe.method == "weights_and_activations"
    assert recipe.weights is not None
    assert recipe.activations is not None
    assert recipe.calibration is not None
    assert recipe.weights.model_dump(exclude_defaults=True) == {
        "mode": "int4_asym",
        "group_size": 64,
        "backup_mode": "none",
        "ignored_scope": {"names": ("node",), "types": ("Add",)},
    }
    assert recipe.activations.mode == "fp8_e4m3"
    assert recipe.activations.ignored_scope.names == ("node",)
    assert recipe.calibration.num_samples == 5
    assert Recipe.from_quantization_config(mixed.to_dict()) == recipe


def test_nncf_gets_for_full_quantization_what_optimum_gives_it() -> None:
    from optimum.intel import OVQuantizationConfig

    for options in (
        {},
        {"sym": True},
        {"dtype": "f8e5m2"},
        {"smooth_quant_alpha": -1, "fast_bias_correction": False, "ignored_scope": {"types": ["MatMul"]}},
    ):
        stock = OVQuantizationConfig(dataset="wikitext2", num_samples=6, **options)
        config = Recipe.from_quantization_config(stock).to_quantization_config()
        config.__dict__["_bound"] = type("Bound", (), {"tokenizer": "model", "texts": []})()
        expected = stock.to_nncf_dict()
        assert config.to_nncf_dict() == {**expected, "mode": config.to_nncf_dict()["mode"]}  # type: ignore[attr-defined]
        mode = config.to_nncf_dict()["mode"]  # type: ignore[attr-defined]
        assert (None if mode is None else mode.value) == expected["mode"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"bits": 4}, "bits", "stand for Optimum's settings for the model at hand"),
    ({"bits": 8}, "bits", "stand for Optimum's settings for the model at hand"),
    ({"bits": 3, "sym": True}, "bits", "got 3; accepted: 4, 8"),
    ({"dtype": "int2", "group_size": 4}, "dtype", "got 'int2'; accepted: int4, int8, mxfp4, nf4, cb4"),
    ({"bits": 4, "quant_method": "hybrid"}, "quant_method", "got 'hybrid'; accepted: default, awq"),
    ({"bits": 4, "ratio": 0.0}, "ratio", "0.0 is read as 1.0 by NNCF"),
    ({"bits": 8, "ratio": 0.5}, "ratio", "compresses every layer"),
    ({"bits": 4, "statistics_path": "/s"}, "statistics_path", "is a cache and no part of a recipe"),
    ({"bits": 4, "sym": True, "foo": 1}, "foo", "a recipe has no such setting"),
    ({"bits": 4, "group_size": 0}, "group_size", "a positive number or -1"),
    ({"bits": 4, "backup_precision": "int4"}, "backup_precision", "accepted: none, int8_sym"),
    ({"bits": 4, "group_size": 64, "tokenizer": "gpt2"}, "tokenizer", "a recipe uses the model's own"),
    ({"bits": 4, "group_size": 64, "processor": "clip"}, "processor", "a recipe uses the model's own"),
    ({"bits": 4, "scale_estimation": True}, "dataset", "scale_estimation needs calibration data"),
    ({"bits": 4, "group_size": 64, "dataset": "wikitext2"}, "dataset", "nothing in this recipe looks at data"),
    ({"bits": 4, "gptq": True, "dataset": "auto"}, "dataset", "Optimum calls 'auto'; accepted: wikitext2"),
    ({"bits": 4, "gptq": True, "dataset": ["one text"]}, "dataset", "names its text and does not hold it"),
    ({"bits": 4, "gptq": True, "dataset": "wikitext2:split=test"}, "dataset", "accepted: seq_len=NUMBER"),
    ({"bits": 4, "group_size": 64, "num_samples": 4}, "num_samples", "has no effect without a dataset"),
    ({"bits": 4, "group_size": 64, "compression_format": "fake_quantize"}, "compression_format", "dequantize only"),
    ({"bits": 4, "ignored_scope": {"subgraphs": [1]}}, "ignored_scope.subgraphs", "a recipe names nodes"),
    ({"bits": 4, "ignored_scope": {"names": ["a"], "validate": False}}, "ignored_scope.validate", "has to be found"),
    (
        {"bits": 4, "group_size": 64, "advanced_parameters": {"statistics_path": "/s"}},
        "advanced_parameters.statistics_path",
        "a recipe has no such setting",
    ),
    ({"dtype": "f8e4m3", "bits": 4}, "bits", "got 4; accepted: 8"),
    ({"dtype": "int4", "model_type": "transformer"}, "dtype", "got 'int4'; accepted: int8, f8e4m3, f8e5m2"),
    ({"dtype": "f8e4m3", "overflow_fix": "enable"}, "overflow_fix", "accepted: disable"),
    ({"dtype": "f8e4m3", "smooth_quant_alpha": 0}, "smooth_quant_alpha", "0 is read as not given by Optimum"),
    ({"dtype": "f8e4m3"}, "dataset", "activations need data"),
    ({"quantization_configs": {"lm_model": {"bits": 4}}}, "quantization_configs", "a pipeline of several models"),
    (
        {"quantization_config1": {"bits": 4, "sym": True}, "quantization_config2": {"bits": 8, "dq_group_size": 32}},
        "quantization_config2",
        "only the first pass of a recipe says",
    ),
    (
        {"quantization_config1": 4, "quantization_config2": {"bits": 8}},
        "quantization_config1",
        "a configuration or its",
    ),
    ({"bits": 4, "ratio": "all"}, "ratio", "got 'all'; accepted: a number"),
    ({"dtype": "f8e4m3", "dataset": "wikitext2", "smooth_quant_alpha": "x"}, "smooth_quant_alpha", "got 'x'"),
    ({"bits": 4, "ignored_scope": ["a"]}, "ignored_scope", "a dictionary with names, patterns and types"),
    ({"bits": 4, "ignored_scope": {"names": "abc"}}, "ignored_scope.names", "got 'abc'; accepted: a list"),
    ({"bits": 4, "group_size": 64, "advanced_parameters": "x"}, "advanced_parameters", "got 'x'; accepted: nncf"),
    ({"bits": 4, "gptq": True, "dataset": "wikitext2", "_dataset_kwargs": {"n": 1}}, "dataset", "got the options n"),
    ({"recipe": {"name": "r", "method": "none"}, "bits": 4}, "bits", "a recipe has no such setting"),
    ({"recipe": "int4"}, "recipe", "got 'int4'; accepted: the fields of a recipe"),
    (
        {
            "weight_quantization_config": {"bits": 4, "unknown": 1},
            "full_quantization_config": {"dataset": "wikitext2"},
        },
        "weight_quantization_config.unknown",
        "a recipe has no such setting",
    ),
]


@pytest.mark.parametrize(("config", "field", "problem"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_a_recipe_cannot_express_names_the_field(config: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_quantization_config(config)
    assert caught.value.where == f"quantization_config.{field}"
    assert problem in caught.value.message
    assert caught.value.hint


def test_pipelines_and_foreign_objects_are_refused() -> None:
    from optimum.intel import OVPipelineQuantizationConfig

    for config, where in (
        (OVPipelineQuantizationConfig({"model": {"bits": 4, "sym": True}}), "quantization_config.quantization_configs"),
        (3, "quantization_config"),
    ):
        with pytest.raises(RecipeError) as caught:
            Recipe.from_quantization_config(config)
        assert caught.value.where == where
    assert "got int; accepted: OVWeightQuantizationConfig" in caught.value.message


def test_two_passes_in_one_configuration_become_two_passes() -> None:
    from optimum.intel.openvino.configuration import _GPTOSSQuantizationConfig

    words = (
        {"bits": 4, "sym": True, "group_size": 32, "ignored_scope": {"patterns": [".*attn.*"]}},
        {"bits": 8, "sym": False},
    )
    recipe = Recipe.from_quantization_config(_GPTOSSQuantizationConfig(*words))
    assert [weights.mode for weights in recipe.weight_passes] == ["int4_sym", "int8_asym"]
    assert recipe.weight_passes[0].ignored_scope.patterns == (".*attn.*",)
    names = ("quantization_config1", "quantization_config2")
    assert Recipe.from_quantization_config(dict(zip(names, words, strict=True))) == recipe


def test_a_text_of_ones_own_stands_in_for_optimums(text: Path) -> None:
    own = Calibration(dataset=str(text), num_samples=4)
    words = {"bits": 4, "gptq": True, "dataset": "c4:seq_len=512", "num_samples": 17}
    recipe = Recipe.from_quantization_config(words, name="mine", calibration=own)
    # What the text's record leaves open, the configuration says.
    assert recipe.calibration == own.model_copy(update={"seq_len": 512})
    assert recipe.name == "mine"
    with pytest.raises(RecipeError, match="has no effect on a configuration that holds a recipe"):
        Recipe.from_quantization_config(OVRecipeConfig.from_recipe("int4"), calibration=own)


def test_what_the_stock_path_cannot_carry_is_refused_by_name(text: Path) -> None:
    two = {"name": "two", "weights": {"mode": "int4_sym", "ignored_scope": {"types": ["Gather"]}}}
    controlled = {
        "name": "ac",
        "method": "activations",
        "activations": {"accuracy_control": {"metric": "kl_divergence", "max_drop": 0.1}},
        "calibration": {"dataset": str(text)},
    }
    aware = {"mode": "int4_sym", "awq": True, "statistics_precision": "bf16"}
    short = {"name": "short", "weights": aware, "calibration": {"dataset": str(text)}}
    hinted = {**controlled, "activations": {}, "runtime": {"dynamic_quantization_group_size": 64}}
    cases: list[tuple[Recipe, str, str]] = [
        (load_recipe("none"), "method", "method none is no quantization"),
        (load_recipe("keep"), "method", "method keep is no quantization"),
        (load_recipe("int4", ["runtime.kv_cache_precision=u4"]), "runtime.kv_cache_precision", "does not write this"),
        (Recipe.model_validate({**two, "further_weights": [{"mode": "int8_sym"}]}), "further_weights", "in one pass"),
        (Recipe.model_validate(controlled), "activations.accuracy_control", "has no accuracy control"),
        (Recipe.model_validate(hinted), "runtime.dynamic_quantization_group_size", "does not write this hint"),
        (load_recipe("int4-npu"), "target", "does not check that the device takes every layer"),
        (Recipe.model_validate(short), "weights.statistics_precision", "collects statistics in f32"),
        (load_recipe("int8", ["gate.max_kl=0.1"]), "gate", "keeps no thresholds with the model"),
    ]
    for recipe, field, problem in cases:
        with pytest.raises(RecipeError) as caught:
            recipe.to_quantization_config()
        assert caught.value.where == f"recipe {recipe.name}: {field}"
        assert problem in caught.value.message
        assert caught.value.hint
    for overrides, group_size in (
        (["runtime.dynamic_quantization_group_size=64"], 64),
        ([], 128),
        (["weights.group_size=64"], 64),
        (["runtime=null"], None),
    ):
        carried = load_recipe("int4", overrides).to_quantization_config()
        assert carried.dq_group_size == group_size, overrides  # type: ignore[attr-defined]


def test_a_missing_text_is_said_before_anything_slow(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        _with_data(tmp_path / "absent.txt", gptq=True).to_quantization_config()
    assert "check the path" in caught.value.hint


def test_overrides_are_for_names_and_files(tmp_path: Path) -> None:
    assert OVRecipeConfig.from_recipe("int4", ["weights.group_size=64"]).recipe == load_recipe(
        "int4", ["weights.group_size=64"]
    )
    with pytest.raises(RecipeError, match="overrides are for a recipe's name or file"):
        OVRecipeConfig.from_recipe(load_recipe("int4"), ["weights.group_size=64"])


def test_it_follows_its_recipe_and_nothing_else() -> None:
    config = OVRecipeConfig.from_recipe("int4")
    with pytest.raises(RecipeError, match="group_size cannot be set on a configuration that follows a recipe"):
        config.group_size = 64  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="accepted: recipe, num_samples, ignored_scope"):
        OVRecipeConfig.from_dict({"bits": 4})
    with pytest.raises(RecipeError) as caught:
        OVRecipeConfig.from_dict({"recipe": {"name": "x", "weights": {"mode": "int5"}}})
    assert caught.value.where == "quantization_config.recipe.weights.mode"


def test_the_exact_windows_arrive_as_texts(checkpoint: Path, text: Path) -> None:
    from transformers import AutoTokenizer

    from llmcompress.data import calibration_windows

    recipe = _with_data(text, scale_estimation=True)
    config = recipe.to_quantization_config()
    assert config.dataset is None
    with pytest.raises(RecipeError, match="the calibration text is not tokenized: no model is known"):
        config.to_nncf_dict()  # type: ignore[attr-defined]
    config.tokenizer = str(checkpoint)
    assert config.to_nncf_dict()["subset_size"] == NUM_WINDOWS  # type: ignore[attr-defined]
    assert isinstance(config.dataset, list)
    reader = AutoTokenizer.from_pretrained(config.tokenizer)
    assert recipe.calibration is not None
    expected = calibration_windows(recipe.calibration, AutoTokenizer.from_pretrained(checkpoint)).token_ids
    read = [reader(window, return_tensors="pt") for window in config.dataset]
    assert [window["input_ids"][0].tolist() for window in read] == expected.tolist()
    assert {key for window in read for key in window} == {"input_ids", "attention_mask"}
    # Copies keep them, other processes make them again.
    directory = Path(config.tokenizer)
    copied = config.clone()  # type: ignore[attr-defined]
    assert copied.tokenizer == str(directory)
    assert pickle.loads(pickle.dumps(config)).tokenizer is None
    config.tokenizer = None
    assert directory.is_dir()
    del copied
    assert not directory.exists()
