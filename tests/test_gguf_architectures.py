"""Architectures of GGUF files that llama.cpp names and orders in ways of their own, against transformers' classes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_fixture import CONV1D, Array, as_stored, assert_same_logits, shared, write_gguf
from test_quantized_sources import EXACT, run
from tiny_models import ARCHITECTURES, build_checkpoint

import llmcompress
from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.gguf.architectures import architecture_of, gguf_config, named_tensors
from llmcompress.loaders.quantized.gguf.file import read_gguf
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import source_checkpoint

IDS = np.arange(1, 33).reshape(2, 16)
SIZES: dict[str, Any] = {
    "dtype": "float32",
    "vocab_size": 320,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
FALCON: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
ALPHA = {"rope_type": "dynamic", "alpha": 1000.0, "rope_theta": 10_000.0, "factor": 1.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("arcee", SIZES),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "command-r": ("cohere", SIZES),
    "command-r-normed": ("cohere", {**SIZES, "use_qk_norm": True, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**SIZES, "num_hidden_layers": 5, "sliding_window": 8}),
    "falcon": ("falcon", FALCON),
    "falcon-grouped": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-one-norm": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "glm4": ("glm4", {**SIZES, "head_dim": 32}),
    "gpt2": ("gpt2", GPT2),
    "granitemoe": (
        "granitemoe",
        {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.25},
    ),
    "gptneox": ("gpt_neox", {**SIZES, "num_key_value_heads": 4, "use_parallel_residual": False}),
    "hunyuan-dense": ("hunyuan_v1_dense", {**SIZES, "head_dim": 32, "rope_parameters": ALPHA}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "olmo": ("olmo", {**SIZES, "clip_qkv": 0.02}),
    "phi2": ("phi", {**SIZES, "num_key_value_heads": 4}),
    "starcoder": ("gpt_bigcode", GPT2),
}


@pytest.fixture(autouse=True)
def known_to_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, _ in CASES.values():
        monkeypatch.setitem(ARCHITECTURES, kind, {"vocab_size": 320} if kind not in ARCHITECTURES else {})


def checkpoint_of(case: str, directory: Path) -> Path:
    kind, fields = CASES[case]
    return build_checkpoint(directory, kind, **{"vocab_size": 320, "dtype": "float32", **fields})


@pytest.mark.parametrize("case", CASES)
def test_a_file_describes_the_model_that_it_was_made_of(case: str, tmp_path: Path) -> None:
    """With the configuration and the tensors of the file, transformers computes what it did before."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = checkpoint_of(case, tmp_path / "model")
    original = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    source = resolve(write_gguf(checkpoint, tmp_path / "model.gguf"))
    found = source_weights(source, source_checkpoint(source))
    assert found is not None
    assert found.floats is not None
    config = AutoConfig.from_pretrained(source.path)
    assert type(config) is type(original.config)
    vars(config).pop("quantization_config")
    tensors = {name: torch.from_numpy(values.copy()) for name, values in found.floats().items()}
    for name, stack in found.repacked().items():
        place, half = (name.removesuffix(".0").removesuffix(".1"), name[-1])
        values = torch.from_numpy(stack.codes.view("<f4").reshape(stack.shape))
        tensors[place] = torch.cat([tensors[place], values], 1) if half == "1" else values
    assert_same_logits(original, config, tensors)


def stored(name: str, values: Array) -> Any:
    """Matrices in blocks of 32; what is no product stays in floats, as in published files."""
    if "norm" in name or "gate_inp" in name or "position" in name:
        return None
    number = gguf.GGMLQuantizationType[{"attn_v": "Q5_1", "ffn_up": "Q4_0"}.get(name.split(".")[-2], "Q8_0")]
    return gguf.quantize(np.ascontiguousarray(values), number), number


def with_rounded(checkpoint: Path, path: Path, target: Path) -> Path:
    """The checkpoint with the floats that the file's blocks stand for: rows are whole, in whatever order they are."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, target)
    config = shared(json.loads((checkpoint / "config.json").read_text()))
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    tensors = load_file(checkpoint / "model.safetensors")
    for name, values in tensors.items():
        of_stack = re.sub(r"experts\.\d+", "experts", name).replace("input_linear", "input_linear.gate")
        kind = kinds[as_stored(of_stack, values, config)[0]]
        is_turned = config["model_type"] == "gpt2" and name.endswith(CONV1D)
        rows = np.ascontiguousarray(values.T if is_turned else values)
        if kind != gguf.GGMLQuantizationType.F32:
            rows = gguf.dequantize(gguf.quantize(rows, kind), kind)
        tensors[name] = np.ascontiguousarray(rows.T if is_turned else rows)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


QUICK = ("gpt2", "falcon-grouped")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_logits_are_those_of_the_dequantized_weights(case: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = checkpoint_of(case, tmp_path / "model")
    path = write_gguf(checkpoint, tmp_path / "model.gguf", stored)
    rounded = with_rounded(checkpoint, path, tmp_path / "rounded")
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(rounded).eval()(torch.from_numpy(IDS)).logits.numpy()
    loaded = llmcompress.load(path, tokenizer=False)
    logits, executed = run(loaded.model, IDS)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    assert executed & {"i8", "u8", "i4"}
    assert loaded.kept is not None
    assert len(loaded.kept.weights) == len({weight.packed.codes.ctypes.data for weight in loaded.kept.weights.values()})


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("glm4", {"glm4.rope.dimension_sections": [8, 4, 4, 0]}, "glm4.rope.dimension_sections is a list of 4"),
        ("gptneox", {"gptneox.use_parallel_residual": 1}, "gptneox.use_parallel_residual is 1; true or false"),
        ("starcoder", {"starcoder.attention.head_count_kv": 4}, "starcoder.attention.head_count_kv is 4; 1, a head of"),
        ("mpt", {"mpt.attention.max_alibi_bias": 8.5}, "mpt.attention.max_alibi_bias is 8.5; a positive whole number"),
        ("mpt", {"mpt.attention.clamp_kqv": 6.0}, "mpt.attention.clamp_kqv is 6.0; none, since Optimum's exporter"),
        ("mpt", {"mpt.attention.max_alibi_bias": 0.0}, "mpt.attention.max_alibi_bias is 0.0; a positive number"),
        ("falcon", {"falcon.attention.head_count_kv": 2}, r"falcon.attention.head_count_kv gives 128, and the"),
        ("olmo", {"general.architecture": "olmo2", "olmo2.attention.sliding_window": 8}, "Olmo 3"),
        ("command-r", {"command-r.expert_count": 8}, "the experts of a GGUF file are not read in the"),
    ],
)
def test_what_the_class_has_not_is_refused(case: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_gguf(checkpoint_of(case, tmp_path / "model"), tmp_path / "model.gguf")
    found = read_gguf(path)
    metadata = dict(found.metadata) | change
    if (name := change.get("general.architecture")) is not None:
        metadata |= {key.replace(f"{case}.", f"{name}."): value for key, value in found.metadata.items()}
        metadata |= change
    with pytest.raises(ModelError, match=message):
        gguf_config(metadata, found.tensors, lambda name: np.zeros(8))


def test_rows_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    found = read_gguf(write_gguf(checkpoint_of("falcon-grouped", tmp_path / "model"), tmp_path / "model.gguf"))
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tensors = dict(found.tensors)
    tensors["blk.0.attn_qkv.weight"] = tensors["blk.0.attn_qkv.weight"]._replace(shape=(100, 64))
    message = "100 rows of the tensor 'blk.0.attn_qkv.weight' are no 4 heads of queries and 2 of keys and values"
    with pytest.raises(ModelError, match=message):
        named_tensors("falcon", config, tensors)


def test_halves_of_a_stack_that_are_stored_in_two_ways_are_refused(tmp_path: Path) -> None:
    def mixed(name: str, values: Array) -> Any:
        number = gguf.GGMLQuantizationType.Q4_0 if "ffn_up_exps" in name else gguf.GGMLQuantizationType.Q8_0
        return (gguf.quantize(values, number), number) if name.endswith("_exps.weight") else None

    source = resolve(write_gguf(checkpoint_of("granitemoe", tmp_path / "model"), tmp_path / "model.gguf", mixed))
    message = "the halves of model.layers.0.block_sparse_moe.input_linear.weight are not quantized alike: GGUF Q8_0, GG"
    with pytest.raises(ModelError, match=message):
        source_weights(source, source_checkpoint(source))


def test_every_architecture_that_is_not_read_is_named() -> None:
    for name in ("gpt-oss", "qwen35", "mamba", "deepseek2"):
        with pytest.raises(ModelError, match=f"the architecture {name!r} of this GGUF file is not read; accepted: ll"):
            architecture_of({"general.architecture": name})
