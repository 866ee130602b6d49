"""Every contradiction and every option without effect: the field that is named, and the words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llmcompress.errors import RecipeError
from llmcompress.spec import Recipe, load_recipe

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"
TEXT = {"dataset": "/data/text.txt"}
INT4 = {"mode": "int4_sym"}

AWQ = {**INT4, "awq": True}
LONG = [float(value) for value in range(17)]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # int8 modes
    ({"weights": {"mode": "int8_asym", "group_size": 64}}, "weights.group_size", "has one group per channel"),
    ({"weights": {"mode": "int8_sym", "ratio": 0.8}}, "weights.ratio", "compresses every layer"),
    ({"weights": {"mode": "int8_sym", "ratio": 0.0}}, "weights.ratio", "compresses every layer"),
    ({"weights": {"mode": "int8_sym", "all_layers": True}}, "weights.all_layers", "no effect with mode int8_sym"),
    ({"weights": {"mode": "int8_sym", "backup_mode": "none"}}, "weights.backup_mode", "no effect with mode"),
    (
        {"weights": {"mode": "int8_sym", "sensitivity_metric": "weight_quantization_error"}},
        "weights.sensitivity_metric",
        "no effect with mode",
    ),
    ({"weights": {"mode": "int8_sym", "group_size_fallback": "adjust"}}, "weights.group_size_fallback", "no effect"),
    ({"weights": {"mode": "int8_sym", "awq": True}}, "weights.awq", "no effect with mode int8_sym"),
    (
        {"weights": {"mode": "int8_sym", "scale_estimation": True}, "calibration": TEXT},
        "weights.scale_estimation",
        "no",
    ),
    ({"weights": {"mode": "int8_sym", "gptq": True}, "calibration": TEXT}, "weights.gptq", "no effect"),
    ({"weights": {"mode": "int8_sym", "lora_correction": True}}, "weights.lora_correction", "no effect"),
    (
        {"weights": {"mode": "int8_sym", "advanced": {"gptq_params": {"block_size": 64}}}},
        "weights.advanced",
        "no effect",
    ),
    # group size
    ({"weights": {"mode": "mxfp4", "group_size": 64}}, "weights.group_size", "mode mxfp4 has groups of 32"),
    ({"weights": {"mode": "mxfp8_e4m3", "group_size": -1}}, "weights.group_size", "groups of 32"),
    ({"weights": {"mode": "nvfp4", "group_size": 32}}, "weights.group_size", "mode nvfp4 has groups of 16"),
    ({"weights": {"mode": "mxfp4", "group_size_fallback": "adjust"}}, "weights.group_size_fallback", "groups of 32"),
    ({"weights": {"mode": "int8_sym", "statistics_precision": "bf16"}}, "weights.statistics_precision", "no effect"),
    (
        {"weights": {**INT4, "awq": True, "statistics_precision": "bf16"}},
        "weights.statistics_precision",
        "without calibration data",
    ),
    (
        {"weights": {**INT4, "gptq": True, "statistics_precision": "bf16"}, "calibration": {"dataset": "text.txt"}},
        "weights.statistics_precision",
        "nothing here goes by statistics",
    ),
    (
        {"weights": {**INT4, "group_size": -1, "group_size_fallback": "adjust"}},
        "weights.group_size_fallback",
        "no effect with one group per channel",
    ),
    ({"weights": {"mode": "cb4", "group_size_fallback": "ignore"}}, "weights.group_size_fallback", "no effect"),
    (
        {"weights": {**INT4, "advanced": {"min_adjusted_group_size": 16}}},
        "weights.advanced.min_adjusted_group_size",
        "without group_size_fallback: adjust",
    ),
    ({"weights": {**INT4, "group_size": 0}}, "weights.group_size", "a positive number or -1"),
    ({"weights": {**INT4, "group_size": -2}}, "weights.group_size", "greater than or equal to -1"),
    # methods
    *(
        (
            {"weights": {"mode": mode, method: True}, "calibration": TEXT},
            f"weights.{method}",
            f"no {method} for mode {mode}",
        )
        for mode in ("mxfp4", "mxfp8_e4m3", "fp8_e4m3", "fp4", "nvfp4")
        for method in ("awq", "scale_estimation", "gptq", "lora_correction")
    ),
    *(
        (
            {"weights": {"mode": mode, "lora_correction": True, "advanced": {"codebook": book}}, "calibration": TEXT},
            "weights.lora_correction",
            "no lora_correction for mode",
        )
        for mode, book in (("cb4", None), ("codebook", [0.0, 1.0]), ("adaptive_codebook", None))
    ),
    (
        {"weights": {**INT4, "gptq": True, "lora_correction": True}, "calibration": TEXT},
        "weights.lora_correction",
        "cannot be combined with gptq",
    ),
    (
        {"weights": {"mode": "nf4", "gptq": True, "scale_estimation": True}, "calibration": TEXT},
        "weights.scale_estimation",
        "no effect beside gptq with mode nf4",
    ),
    ({"weights": {**AWQ, "ratio": 0.0}}, "weights.awq", "no effect at ratio 0.0"),
    (
        {"weights": {**INT4, "lora_correction": True, "all_layers": True}, "calibration": TEXT},
        "weights.all_layers",
        "lora_correction cannot handle embeddings",
    ),
    (
        {"weights": {"mode": "adaptive_codebook", "all_layers": True}, "calibration": TEXT},
        "weights.all_layers",
        "mode cannot handle embeddings",
    ),
    # which layers
    ({"weights": {"mode": "fp8_e4m3", "ratio": 0.5}}, "weights.ratio", "mode and backup_mode are both fp8_e4m3"),
    ({"weights": {"mode": "mxfp8_e4m3", "all_layers": True}}, "weights.all_layers", "are both mxfp8_e4m3"),
    (
        {"weights": {**INT4, "sensitivity_metric": "max_activation_variance"}, "calibration": TEXT},
        "weights.sensitivity_metric",
        "no effect at ratio 1.0",
    ),
    (
        {"weights": {**INT4, "sensitivity_metric": "weight_quantization_error", "ratio": 0.0}},
        "weights.sensitivity_metric",
        "no effect at ratio 0.0",
    ),
    ({"weights": {**INT4, "ratio": 1.5}}, "weights.ratio", "less than or equal to 1"),
    # codebooks
    ({"weights": {"mode": "codebook"}}, "weights.advanced.codebook", "mode codebook needs it"),
    (
        {"weights": {**INT4, "advanced": {"codebook": [0.0, 1.0]}}},
        "weights.advanced.codebook",
        "no effect with mode int4_sym",
    ),
    (
        {"weights": {"mode": "codebook", "advanced": {"codebook": [1.0, 0.0]}}},
        "weights.advanced.codebook",
        "not ascending",
    ),
    (
        {"weights": {"mode": "codebook", "advanced": {"codebook": [1.0, 1.0 + 1e-12]}}},
        "weights.advanced.codebook",
        "not ascending",
    ),
    (
        {"weights": {"mode": "codebook", "advanced": {"codebook": [1.0, 1e39]}}},
        "weights.advanced.codebook",
        "not ascending",
    ),
    ({"weights": {"mode": "codebook", "advanced": {"codebook": [1.0]}}}, "weights.advanced.codebook", "at least 2"),
    (
        {"weights": {"mode": "codebook", "awq": True, "advanced": {"codebook": LONG}}},
        "weights.awq",
        "more than 16 values",
    ),
    (
        {
            "weights": {"mode": "codebook", "scale_estimation": True, "advanced": {"codebook": LONG}},
            "calibration": TEXT,
        },
        "weights.scale_estimation",
        "more than 16 values",
    ),
    (
        {
            "weights": {
                "mode": "adaptive_codebook",
                "advanced": {"codebook": LONG, "adaptive_codebook_params": {"num_elements": 17}},
            },
            "calibration": TEXT,
        },
        "weights.advanced.codebook",
        "of more than 16 values is not adapted",
    ),
    (
        {"weights": {"mode": "adaptive_codebook", "advanced": {"codebook": [0.0, 1.0]}}, "calibration": TEXT},
        "weights.advanced.adaptive_codebook_params.num_elements",
        "is 16, and the codebook has 2 values",
    ),
    (
        {
            "weights": {
                "mode": "adaptive_codebook",
                "group_size": 64,
                "advanced": {
                    "adaptive_codebook_params": {"across_blocks": True},
                },
            },
            "calibration": TEXT,
        },
        "weights.advanced.adaptive_codebook_params.across_blocks",
        "needs one group per channel",
    ),
    # advanced parameters of what is off
    *(
        (
            {"weights": {**INT4, "advanced": {f"{method}_params": {"subset_size": 3}}}},
            f"weights.advanced.{method}_params",
            f"no effect without {method}",
        )
        for method in ("awq", "scale_estimation", "gptq", "lora_correction")
    ),
    (
        {"weights": {**INT4, "advanced": {"adaptive_codebook_params": {"across_blocks": True}}}},
        "weights.advanced.adaptive_codebook_params",
        "no effect with mode int4_sym",
    ),
    (
        {
            "weights": {
                **INT4,
                "gptq": True,
                "scale_estimation": True,
                "advanced": {"scale_estimation_params": {"scale_steps": 9}},
            },
            "calibration": TEXT,
        },
        "weights.advanced.scale_estimation_params",
        "no effect beside gptq",
    ),
    (
        {"weights": {**AWQ, "advanced": {"awq_params": {"steps": 9}}}},
        "weights.advanced.awq_params",
        "without calibration data",
    ),
    (
        {
            "weights": {
                **AWQ,
                "gptq": True,
                "advanced": {"awq_params": {"steps": 9, "prefer_data_aware_scaling": False}},
            },
            "calibration": TEXT,
        },
        "weights.advanced.awq_params",
        "besides prefer_data_aware_scaling",
    ),
    (
        {"weights": {**AWQ, "advanced": {"awq_params": {"alpha_min": 0.9, "alpha_max": 0.5}}}, "calibration": TEXT},
        "weights.advanced.awq_params.alpha_min",
        "larger than alpha_max",
    ),
    (
        {"weights": {**INT4, "advanced": {"scale_estimation_params": {"weight_penalty": -0.5}}}},
        "weights.advanced.scale_estimation_params.weight_penalty",
        "neither -1 nor positive",
    ),
    (
        {"weights": {**INT4, "advanced": {"scale_estimation_params": {"initial_steps": 0, "scale_steps": 0}}}},
        "weights.advanced.scale_estimation_params.scale_steps",
        "nothing is estimated",
    ),
    ({"weights": {**INT4, "advanced": {"lora_adapter_rank": 8}}}, "weights.advanced.lora_adapter_rank", "FQ_LORA"),
    ({"weights": {**INT4, "advanced": {"backend_params": {}}}}, "weights.advanced.backend_params", "no effect"),
    ({"weights": {**INT4, "advanced": {"statistics_path": "x"}}}, "weights.advanced.statistics_path", "is a cache"),
    (
        {"weights": {**INT4, "advanced": {"group_size_fallback_mode": "error"}}},
        "weights.advanced.group_size_fallback_mode",
        "has a field of its own",
    ),
    # ignored scope
    ({"weights": {**INT4, "ignored_scope": {"names": ["a", "a"]}}}, "weights.ignored_scope.names", "every entry once"),
    (
        {"weights": {**INT4, "ignored_scope": {"patterns": ["("]}}},
        "weights.ignored_scope.patterns",
        "regular expressions",
    ),
    (
        {"weights": {**INT4, "ignored_scope": {"types": [""]}}},
        "weights.ignored_scope.types[0]",
        "at least one character",
    ),
    # data
    ({"weights": {**INT4, "scale_estimation": True}}, "calibration", "scale_estimation needs calibration data"),
    ({"weights": {**INT4, "gptq": True}}, "calibration", "gptq needs calibration data"),
    ({"weights": {**INT4, "lora_correction": True}}, "calibration", "lora_correction needs calibration data"),
    ({"weights": {"mode": "adaptive_codebook"}}, "calibration", "mode adaptive_codebook needs calibration data"),
    (
        {"weights": {**INT4, "ratio": 0.8, "sensitivity_metric": "hessian_input_activation"}},
        "calibration",
        "sensitivity_metric hessian_input_activation needs calibration data",
    ),
    ({"weights": INT4, "calibration": TEXT}, "calibration", "nothing in this recipe looks at data"),
    ({"weights": {"mode": "int8_asym"}, "calibration": TEXT}, "calibration", "nothing in this recipe looks at data"),
    (
        {"weights": {**INT4, "ratio": 0.8, "sensitivity_metric": "weight_quantization_error"}, "calibration": TEXT},
        "calibration",
        "nothing in this recipe looks at data",
    ),
    (
        {"weights": {**AWQ, "advanced": {"awq_params": {"prefer_data_aware_scaling": False}}}, "calibration": TEXT},
        "calibration",
        "nothing in this recipe looks at data",
    ),
    # calibration
    (
        data := {"weights": {**INT4, "gptq": True}, "calibration": {"dataset": "wikitext"}},
        "calibration.dataset",
        "without a namespace",
    ),
    ({**data, "calibration": {"dataset": "Salesforce/wikitext"}}, "calibration.dataset", "without a revision"),
    ({**data, "calibration": {"dataset": "Salesforce/wikitext@main"}}, "calibration.dataset", "not a commit"),
    ({**data, "calibration": {"dataset": "a/b/c.csv"}}, "calibration.dataset", ".txt, .jsonl or .parquet"),
    ({**data, "calibration": {"dataset": "https://me:secret@x.org/a.txt"}}, "calibration.dataset", "a URL is not read"),
    ({**data, "calibration": {"dataset": f"a/b@{COMMIT}"}}, "calibration.split", "a Hub dataset needs it"),
    ({**data, "calibration": {**TEXT, "split": "train"}}, "calibration.split", "no effect with a local file"),
    (
        {**data, "calibration": {"dataset": "x.jsonl", "subset": "x"}},
        "calibration.subset",
        "no effect with a local file",
    ),
    ({**data, "calibration": {**TEXT, "text_field": "body"}}, "calibration.text_field", "no effect with a .txt file"),
    ({**data, "calibration": {**TEXT, "num_samples": 0}}, "calibration.num_samples", "greater than or equal to 1"),
    ({**data, "calibration": {**TEXT, "seq_len": 1}}, "calibration.seq_len", "greater than or equal to 2"),
    # methods of the recipe
    ({}, "weights", "method weights needs it"),
    ({"method": "none", "weights": INT4}, "weights", "no effect with method none"),
    ({"method": "none", "calibration": TEXT}, "calibration", "nothing in this recipe looks at data"),
    ({"weights": INT4, "activations": {}}, "activations", "no effect with method weights"),
    ({"method": "activations", "activations": {}}, "calibration", "activations need data"),
    ({"method": "weights_and_activations", "weights": INT4, "calibration": TEXT}, "activations", "needs it"),
    (
        act := {"method": "activations", "calibration": TEXT, "activations": {"mode": "fp8_e4m3", "preset": "mixed"}},
        "activations.preset",
        "has no asymmetric form",
    ),
    (
        {**act, "activations": {"mode": "fp8_e5m2", "accuracy_control": {"metric": "perplexity", "max_drop": 1}}},
        "activations.accuracy_control",
        "NNCF has none for mode fp8_e5m2",
    ),
    ({**act, "activations": {"smooth_quant_alpha": -0.5}}, "activations.smooth_quant_alpha", "0 to 1, or -1 for off"),
    # target npu
    ({"target": "npu", "method": "none"}, "method", "target npu accepts weights, not none"),
    (
        {"target": "npu", "weights": {"mode": "int4_asym"}},
        "weights.mode",
        "accepts int4_sym and int8_sym, not int4_asym",
    ),
    ({"target": "npu", "weights": {**INT4, "group_size": 64}}, "weights.group_size", "groups of 128 or -1, not 64"),
    ({"target": "npu", "weights": {**INT4, "ratio": 0.8}}, "weights.ratio", "accepts 1.0, not 0.8"),
    (
        {"target": "npu", "weights": {**INT4, "group_size_fallback": "adjust"}},
        "weights.group_size_fallback",
        "adjust makes others",
    ),
    ({"target": "npu", "weights": {**INT4, "backup_mode": "fp8_e4m3"}}, "weights.backup_mode", "not fp8_e4m3"),
    # runtime, gate
    (
        {"weights": INT4, "runtime": {"kv_cache_precision": "f16", "key_cache_group_size": 32}},
        "runtime.key_cache_group_size",
        "no effect on a cache in f16",
    ),
    (
        {"weights": INT4, "runtime": {"value_cache_precision": "bf16", "value_cache_group_size": 32}},
        "runtime.value_cache_group_size",
        "no effect on a cache in bf16",
    ),
    (
        {"weights": INT4, "runtime": {"dynamic_quantization_group_size": -1}},
        "runtime.dynamic_quantization_group_size",
        "0",
    ),
    (
        {"weights": {"mode": "int8_asym"}, "runtime": {"dynamic_quantization_group_size": "weights"}},
        "runtime.dynamic_quantization_group_size",
        "the weights of this recipe have no groups",
    ),
    (
        {"weights": {"mode": "nf4"}, "runtime": {"dynamic_quantization_group_size": "weights"}},
        "runtime.dynamic_quantization_group_size",
        "no groups of integers",
    ),
    (
        {"method": "none", "runtime": {"dynamic_quantization_group_size": "weights"}},
        "runtime.dynamic_quantization_group_size",
        "no groups",
    ),
    ({"weights": INT4, "gate": {"max_kl": 0}}, "gate.max_kl", "greater than 0"),
    # texts
    ({"weights": INT4, "name": "../evil"}, "name", "letters, digits"),
    ({"weights": INT4, "name": "a\nb"}, "name", "without control characters"),
    ({"weights": INT4, "description": "two\nlines"}, "description", "one line without control characters"),
    ({"weights": INT4, "description": "use hf_" + "a" * 30}, "description", "looks like a Hugging Face token"),
]


@pytest.mark.parametrize(
    ("fields", "field", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_refused_with_field_and_words(fields: dict[str, Any], field: str, words: str, tmp_path: Path) -> None:
    fields = {"name": "mine", **fields}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where.startswith(f"{path}")
    assert caught.value.where.endswith(f": {field}")
    assert words in caught.value.message
    assert caught.value.hint
    assert "secret" not in str(caught.value)
    assert "hf_aaaa" not in str(caught.value)
    with pytest.raises(ValidationError) as direct:
        Recipe.model_validate(fields)
    assert "hf_aaaa" not in str(direct.value)
