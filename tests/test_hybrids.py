"""Models of recurrent and attention layers: their traced graphs have nodes that no result needs."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_models import write_tokenizer

import llmcompress
from llmcompress.graph.device import compile_model, decoder_inputs, input_names, properties_of
from llmcompress.loaders.exporter import not_convertible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_TOKENS = 40
COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
}
GRANITE: dict[str, Any] = {
    "shared_intermediate_size": 96,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
    "layer_types": ["mamba", "attention"],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("granitemoehybrid", {**GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0}),
    "granite-moe": (
        "granitemoehybrid",
        {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    ),
    "falcon-mamba": ("falcon_mamba", {"state_size": 8, "expand": 2, "conv_kernel": 4}),
    "mamba": ("mamba", {"state_size": 8, "expand": 2, "conv_kernel": 4}),
    "zamba2": (
        "zamba2",
        {
            "intermediate_size": 96,
            "layers_block_type": ["mamba", "hybrid"],
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "mamba_headdim": 32,
            "num_key_value_heads": 4,
            "chunk_size": 16,
            "num_mem_blocks": 1,
        },
    ),
    "lfm2": ("lfm2", {"intermediate_size": 96, "layer_types": ["conv", "full_attention"]}),
    "lfm2-moe": (
        "lfm2_moe",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}
# Stock's exports of these are not torch's function, or take no prompt in pieces; their weights are compared alone.
NOT_AS_TORCH = {"falcon-mamba", "mamba", "zamba2"}
MAX_ERROR = 1e-4
"""Of logits up to 3, in f32; measured: 2e-6 in most families, 1e-5 in qwen3-next."""


def _checkpoint(directory: Path, model_type: str, fields: dict[str, Any]) -> Any:
    """Write a random f32 checkpoint and return its torch model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**COMMON, **fields, "initializer_range": 0.08})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def _logits(compiled: Any, ids: NDArray[np.int64], sizes: list[int]) -> NDArray[np.float32]:
    """Logits ``[tokens, vocabulary]`` of ids that are fed in calls of these sizes."""
    import numpy as np

    names, request, start, found = input_names(compiled), compiled.create_infer_request(), 0, []
    for size in sizes:
        request.infer(decoder_inputs(ids[:, start : start + size], start, names))
        found.append(request.get_tensor("logits").data[0].copy())
        start += size
    return np.concatenate(found)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name == "granite" else [pytest.mark.slow]) for name in FAMILIES],
)
def test_a_hybrid_compresses_as_stock_does_and_computes_as_torch_does(family: str, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model_type, fields = FAMILIES[family]
    refused = not_convertible(model_type)
    if refused:
        pytest.skip(refused)
    checkpoint = tmp_path / "checkpoint"
    module = _checkpoint(checkpoint, model_type, fields)
    loaded = llmcompress.load(checkpoint)
    llmcompress.compress(loaded, "int8", tmp_path / "ours", tokenizer=False)
    stock = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(bits=8, sym=False)
    )
    stock.save_pretrained(tmp_path / "stock")
    ours, theirs = (tmp_path / name / "openvino_model.bin" for name in ("ours", "stock"))
    assert filecmp.cmp(ours, theirs, shallow=False)
    if family in NOT_AS_TORCH:
        return

    ids = np.random.default_rng(0).integers(3, 256, (1, NUM_TOKENS))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), use_cache=False).logits[0].numpy()
    compiled = compile_model(loaded.clone().model, "CPU", properties_of("CPU", "pinned"))
    for sizes in ([NUM_TOKENS], [13, 20, 7], [1] * NUM_TOKENS):
        np.testing.assert_allclose(_logits(compiled, ids, sizes), expected, rtol=0, atol=MAX_ERROR)
