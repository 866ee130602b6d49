"""Recipes as records: what is accepted, compared, resolved and handed to the runtime."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from llmcompress.spec import Quantization, Recipe, Runtime, WeightCompression

TEXT = {"dataset": "/data/text.txt"}
INT4 = {"mode": "int4_sym"}
LONG = [float(value) for value in range(17)]
AWQ = {**INT4, "awq": True}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "mine", **fields})


ACCEPTED = [
    {"weights": {**INT4, "backup_mode": "none"}},
    {"weights": {**INT4, "all_layers": True, "backup_mode": "int8_sym"}},
    {"weights": {**INT4, "ratio": 0.0, "group_size": 64, "group_size_fallback": "adjust"}},
    {"weights": {**INT4, "ratio": 0.5}, "calibration": TEXT},
    {"weights": {**INT4, "scale_estimation": True, "gptq": True, "awq": True}, "calibration": TEXT},
    {"weights": {"mode": "nf4", "lora_correction": True}, "calibration": TEXT},
    {
        "weights": {**INT4, "lora_correction": True, "all_layers": True, "ignored_scope": {"types": ["Gather"]}},
        "calibration": TEXT,
    },
    {"weights": {"mode": "fp8_e4m3", "ratio": 0.5, "backup_mode": "none"}},
    {"weights": {"mode": "mxfp4", "ratio": 0.5, "group_size": 32}},
    {"weights": {"mode": "codebook", "advanced": {"codebook": [-1, 0, 0.5]}}},
    {"weights": {"mode": "codebook", "gptq": True, "advanced": {"codebook": LONG}}, "calibration": TEXT},
    {
        "weights": {"mode": "adaptive_codebook", "advanced": {"adaptive_codebook_params": {"num_elements": 32}}},
        "calibration": TEXT,
    },
    {
        "weights": {**AWQ, "gptq": True, "advanced": {"awq_params": {"prefer_data_aware_scaling": False}}},
        "calibration": TEXT,
    },
    {"method": "weights_and_activations", "weights": {"mode": "int8_sym"}, "activations": {}, "calibration": TEXT},
    {"method": "none", "runtime": {"kv_cache_precision": "f16"}},
    {"target": "npu", "weights": {"mode": "int8_sym"}},
    {"target": "npu", "weights": {**INT4, "group_size": -1, "all_layers": True, "backup_mode": "int8_sym"}},
]


@pytest.mark.parametrize("fields", ACCEPTED)
def test_accepted_hashable_and_picklable(fields: dict[str, Any]) -> None:
    made = recipe(**fields)
    assert made == recipe(**fields)
    assert hash(made) == hash(recipe(**fields))
    assert pickle.loads(pickle.dumps(made)) == made
    assert Recipe.model_validate_json(made.model_dump_json()) == made
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"  # type: ignore[misc]


def test_needs_and_uses_data() -> None:
    def flags(**fields: Any) -> tuple[bool, bool]:
        weights = WeightCompression.model_validate(fields)
        return weights.needs_data, weights.uses_data

    assert flags(mode="int8_sym") == (False, False)
    assert flags(mode="int4_sym") == (False, False)
    assert flags(mode="int4_sym", awq=True) == (False, True)
    assert flags(mode="int4_sym", ratio=0.8) == (False, True)
    assert flags(mode="int4_sym", ratio=0.8, sensitivity_metric="weight_quantization_error") == (False, False)
    assert flags(mode="int4_sym", ratio=0.8, sensitivity_metric="mean_activation_variance") == (True, True)
    assert flags(mode="int4_sym", ratio=0.0) == (False, False)
    for method in ("scale_estimation", "gptq", "lora_correction"):
        assert flags(mode="int4_sym", **{method: True}) == (True, True)
    assert flags(mode="adaptive_codebook") == (True, True)


def test_dynamic_quantization_takes_the_smallest_of_the_weights_groups() -> None:
    """Written as a word until the groups are known."""
    weights = {"mode": "int4_sym", "group_size_fallback": "adjust"}
    asked = {"name": "test", "weights": weights, "runtime": {"dynamic_quantization_group_size": "weights"}}
    recipe = Recipe.model_validate(asked)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    for group_sizes, group_size in (({128}, 128), ({128, 64}, 64), (set(), None)):
        expected = {} if group_size is None else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group_size)}
        assert recipe.runtime.resolved(group_sizes).properties() == expected
    by_hand = Runtime(dynamic_quantization_group_size=32)
    assert by_hand.resolved({128}) == by_hand


def test_runtime_properties_are_names_that_openvino_knows() -> None:
    import openvino as ov

    runtime = Runtime(
        kv_cache_precision="u8",
        value_cache_precision="u4",
        key_cache_group_size=0,
        value_cache_group_size=32,
        dynamic_quantization_group_size=128,
    )
    assert runtime.properties() == {
        "KV_CACHE_PRECISION": "u8",
        "VALUE_CACHE_PRECISION": "u4",
        "KEY_CACHE_GROUP_SIZE": "0",
        "VALUE_CACHE_GROUP_SIZE": "32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
    }
    assert Runtime().properties() == {}
    core = ov.Core()
    assert set(runtime.properties()) <= set(core.get_property("CPU", "SUPPORTED_PROPERTIES"))
    core.set_property("CPU", runtime.properties())


def test_quantization_defaults() -> None:
    made = Quantization()
    assert (made.mode, made.preset, made.smooth_quant_alpha, made.fast_bias_correction) == ("int8", None, None, True)
