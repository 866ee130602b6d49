"""Model classes beyond plain Llama: the same bytes and answers as stock Optimum's, and every layer in the table."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ARCHITECTURES, build_checkpoint

import llmcompress
from llmcompress import load_recipe
from llmcompress.errors import ModelError
from llmcompress.loaders.environments import LayerMissingError

PROMPT = "the quick brown fox and the lazy dog"

# Precisions, tied and untied embeddings, single files and shards, spread over the classes.
CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tied": True, "dtype": "float16", "max_shard_size": "500KB"}),
    ("qwen2", {"tied": True}),
    ("qwen3", {"dtype": "float32"}),
    ("mistral", {"dtype": "float16"}),
    ("phi3", {}),
    ("gpt_neox", {"dtype": "float32", "max_shard_size": "1MB"}),
    ("gpt2", {"dtype": "float16"}),
    ("opt", {"dtype": "float32"}),
    ("falcon", {}),
    ("bloom", {}),
    ("mixtral", {"max_shard_size": "1MB"}),
    ("qwen3_moe", {"tied": True}),
]
# Each takes some seconds; those whose graphs are like another's wait for `make slow`.
SLOW = {"llama", "qwen3_moe", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox", "opt", "falcon", "bloom", "mixtral"}
RECIPES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "int8": ([], {"bits": 8, "sym": False}),
    "int4-sym": (
        ["weights.group_size=32"],
        {"bits": 4, "sym": True, "group_size": 32, "group_size_fallback": "adjust"},
    ),
}
"""Name -> overrides, and the same by Optimum's words."""


def _answer(model: Any, checkpoint: Path) -> list[int]:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(checkpoint)(PROMPT, return_tensors="pt")
    answer: list[int] = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0].tolist()
    return answer


def test_every_class_of_the_builder_is_here() -> None:
    assert {name for name, _ in CLASSES} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        pytest.param(name, options, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, options in CLASSES
    ],
)
def test_a_class_compresses_as_stock_optimum_does(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    checkpoint = build_checkpoint(tmp_path / "checkpoint", model_type, **options)
    loaded = llmcompress.load(checkpoint)
    exported = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, load_in_8bit=False)
    exported.save_pretrained(tmp_path / "exported")
    for name, (changes, words) in RECIPES.items():
        report = llmcompress.compress(loaded, load_recipe(name, changes), tmp_path / name, tokenizer=False)
        stock = OVModelForCausalLM.from_pretrained(
            tmp_path / "exported", quantization_config=OVWeightQuantizationConfig(**words)
        )
        stock.save_pretrained(tmp_path / f"stock-{name}")
        ours, theirs = (tmp_path / place / "openvino_model.bin" for place in (name, f"stock-{name}"))
        assert filecmp.cmp(ours, theirs, shallow=False)
        assert _answer(OVModelForCausalLM.from_pretrained(tmp_path / name), checkpoint) == _answer(stock, checkpoint)
        _check_layers(report, model_type, "int8_asym" if name == "int8" else "int4_sym")


def _check_layers(report: llmcompress.CompressionReport, model_type: str, mode: str) -> None:
    """Every weight matrix of the checkpoint is in the table, experts included, and most are in the wanted mode."""
    counted = sum(layer.num_parameters for layer in report.layers)
    # Norms, biases and positions are no layers; a tied head may be held twice.
    assert 0.9 * report.num_parameters < counted < 1.2 * report.num_parameters
    wanted = [layer for layer in report.layers if layer.mode == mode]
    assert sum(layer.num_parameters for layer in wanted) > 0.6 * counted
    if "moe" in model_type or model_type == "mixtral":
        experts = [layer for layer in wanted if "expert" in layer.name]
        assert sum(layer.num_parameters for layer in experts) > 0.5 * counted


@pytest.mark.parametrize("layers", ["off", "ask"])
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_a_class_that_the_exporter_refuses_for_its_transformers_version(
    model_type: str, layers: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    config = AutoConfig.for_model(model_type, **sizes, num_attention_heads=2, num_key_value_heads=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma")
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", layers)
    kind = ModelError if layers == "off" else LayerMissingError
    for refusing in (
        lambda: llmcompress.compress(tmp_path / "gemma", "int8", tmp_path / "out"),
        lambda: llmcompress.OVModelForCausalLM.from_pretrained(tmp_path / "gemma", quantization_config="int8"),
    ):
        with pytest.raises(kind, match=rf"converts '{model_type}' only with transformers .*; \S+ is installed"):
            refusing()
    assert not (tmp_path / "out").exists()
