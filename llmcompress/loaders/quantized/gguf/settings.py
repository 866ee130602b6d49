"""The settings of each class of transformers that GGUF's metadata and tensors say.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What a model is without a key of its own is what
llama.cpp computes without it; activations are those of the class, which are the published models'.
"""

from __future__ import annotations

from typing import Any

from llmcompress.loaders.quantized.gguf.facts import Facts


def _rms(facts: Facts) -> dict[str, Any]:
    return {"rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon")}


def _layer_norm(facts: Facts) -> dict[str, Any]:
    return {"layer_norm_eps": facts.number("attention.layer_norm_epsilon")}


def layer_norm_epsilon(facts: Facts) -> dict[str, Any]:
    """The key of ``GPT2Config``, ``GPTBigCodeConfig``, ``FalconConfig``, ``BloomConfig`` and ``MptConfig``."""
    return {"layer_norm_epsilon": facts.number("attention.layer_norm_epsilon")}


def llama(facts: Facts) -> dict[str, Any]:
    """Of ``LlamaConfig`` and ``ArceeConfig``."""
    return {
        **_rms(facts),
        "head_dim": facts.head_dim,
        "attention_bias": "blk.0.attn_q.bias" in facts.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in facts.tensors,
    }


def mistral(facts: Facts) -> dict[str, Any]:
    """Of ``MistralConfig``."""
    return {**_rms(facts), "head_dim": facts.head_dim, "sliding_window": facts.count("attention.sliding_window")}


def qwen2(facts: Facts) -> dict[str, Any]:
    """Of ``Qwen2Config``."""
    return {**_rms(facts), "use_sliding_window": False}


def qwen3(facts: Facts) -> dict[str, Any]:
    """Of ``Qwen3Config`` and ``HunYuanDenseV1Config``."""
    return {**qwen2(facts), "head_dim": facts.head_dim, "attention_bias": "blk.0.attn_q.bias" in facts.tensors}


def _experts(facts: Facts) -> dict[str, Any]:
    stack = facts.tensors.get("blk.0.ffn_down_exps.weight")
    width = stack.shape[-1] if stack is not None and len(stack.shape) == 3 else None
    return {
        "num_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
        "moe_intermediate_size": facts.count("expert_feed_forward_length", width),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def qwen2moe(facts: Facts) -> dict[str, Any]:
    """Of ``Qwen2MoeConfig``."""
    shared = facts.tensors.get("blk.0.ffn_down_shexp.weight")
    width = shared.shape[-1] if shared is not None else None
    return {
        **qwen2(facts),
        **_experts(facts),
        "shared_expert_intermediate_size": facts.count("expert_shared_feed_forward_length", width),
        "norm_topk_prob": False,
    }


def qwen3moe(facts: Facts) -> dict[str, Any]:
    """Of ``Qwen3MoeConfig``."""
    return {**qwen3(facts), **_experts(facts), "norm_topk_prob": True}


def granite(facts: Facts) -> dict[str, Any]:
    """Of ``GraniteConfig``."""
    return {
        **llama(facts),
        "embedding_multiplier": facts.number("embedding_scale", 1.0),
        "residual_multiplier": facts.number("residual_scale", 1.0),
        "attention_multiplier": facts.number("attention.scale", facts.head_dim**-0.5),
        "logits_scaling": facts.number("logit_scale", 1.0),
    }


def granitemoe(facts: Facts) -> dict[str, Any]:
    """Of ``GraniteMoeConfig``."""
    return {
        **granite(facts),
        "num_local_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
    }


def smollm3(facts: Facts) -> dict[str, Any]:
    """Of ``SmolLM3Config``."""
    # llama.cpp rotates nothing in every fourth layer.
    return {**llama(facts), "no_rope_layer_interval": 4, "use_sliding_window": False, "layer_types": None}


def gemma(facts: Facts) -> dict[str, Any]:
    """Of ``GemmaConfig``."""
    return {**_rms(facts), "head_dim": facts.head_dim, "hidden_activation": "gelu_pytorch_tanh"}


def gemma2(facts: Facts) -> dict[str, Any]:
    """Of ``Gemma2Config``."""
    return {
        **gemma(facts),
        "query_pre_attn_scalar": _query_scale(facts, layers_of_largest=46),
        "sliding_window": facts.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
    }


def gemma3(facts: Facts) -> dict[str, Any]:
    """Of ``Gemma3TextConfig``."""
    sees_all = _sees_all(facts, period=6)
    cap = facts.get("final_logit_softcapping")
    return {
        **gemma(facts),
        "query_pre_attn_scalar": _query_scale(facts, layers_of_largest=62),
        "sliding_window": 4096 if all(sees_all) else facts.count("attention.sliding_window"),
        "rope_local_base_freq": facts.number("rope.freq_base_swa", 10_000.0),
        "layer_types": _layer_types(sees_all),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": facts.number("final_logit_softcapping") if cap else None,
    }


def _layer_types(sees_all: list[bool]) -> list[str]:
    return ["full_attention" if whole else "sliding_attention" for whole in sees_all]


def _sees_all(facts: Facts, period: int) -> list[bool]:
    """Whether each layer sees the whole text: the last of a period, all where there is no window, or as is said."""
    key = "attention.sliding_window_pattern"
    stated = facts.get(key) if facts.get("attention.sliding_window") else 1
    if isinstance(stated, list):
        if len(stated) != facts.num_layers or not all(each in (0, 1) for each in stated):
            raise facts.wrong(key, f"a number, or yes or no for each of {facts.num_layers} layers,")
        return [not each for each in stated]
    period = 1 if stated == 1 else facts.count(key, period)
    return [layer % period == period - 1 for layer in range(facts.num_layers)]


def _query_scale(facts: Facts, layers_of_largest: int) -> int:
    """The 27B models divide by the root of the hidden size's share of a head, all others by that of a head's size."""
    if facts.count("block_count") == layers_of_largest:
        return facts.count("embedding_length") // facts.count("attention.head_count")
    return facts.head_dim


def phi3(facts: Facts) -> dict[str, Any]:
    """Of ``Phi3Config``."""
    window = facts.get("attention.sliding_window")
    return {
        **_rms(facts),
        "sliding_window": facts.count("attention.sliding_window") if window else None,
        "original_max_position_embeddings": facts.count(
            "rope.scaling.original_context_length", facts.count("context_length")
        ),
        **_partly_rotated(facts),
    }


def _partly_rotated(facts: Facts) -> dict[str, Any]:
    return {"partial_rotary_factor": facts.rotated / facts.head_dim}


def starcoder2(facts: Facts) -> dict[str, Any]:
    """Of ``Starcoder2Config``."""
    return {
        "norm_epsilon": facts.number("attention.layer_norm_epsilon"),
        "use_bias": "blk.0.attn_q.bias" in facts.tensors,
        "sliding_window": None,
    }


def stablelm(facts: Facts) -> dict[str, Any]:
    """Of ``StableLmConfig``."""
    return {
        **_layer_norm(facts),
        **_partly_rotated(facts),
        "use_qkv_bias": "blk.0.attn_q.bias" in facts.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in facts.tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in facts.tensors,
    }


def mixtral(facts: Facts) -> dict[str, Any]:
    """Of ``MixtralConfig``."""
    return {
        **_rms(facts),
        "head_dim": facts.head_dim,
        "sliding_window": None,
        "num_local_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
    }


def olmo2(facts: Facts) -> dict[str, Any]:
    """Of ``Olmo2Config``; llama.cpp has Olmo 3, with windows, under the same name."""
    if facts.get("attention.sliding_window"):
        raise facts.wrong("attention.sliding_window", "none, as Olmo 3 is not read: 0")
    return _rms(facts)


def olmo(facts: Facts) -> dict[str, Any]:
    """Of ``OlmoConfig``."""
    return {"clip_qkv": _clip(facts)}


def _clip(facts: Facts) -> float | None:
    return facts.number("attention.clamp_kqv") if facts.get("attention.clamp_kqv") else None


def cohere(facts: Facts) -> dict[str, Any]:
    """Of ``CohereConfig``."""
    return {
        **_layer_norm(facts),
        "logit_scale": facts.number("logit_scale"),
        "attention_bias": "blk.0.attn_q.bias" in facts.tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in facts.tensors,
    }


def cohere2(facts: Facts) -> dict[str, Any]:
    """Of ``Cohere2Config``."""
    return {
        **_layer_norm(facts),
        "logit_scale": facts.number("logit_scale"),
        "sliding_window": facts.count("attention.sliding_window"),
        "layer_types": _layer_types(_sees_all(facts, period=4)),
    }


def glm4(facts: Facts) -> dict[str, Any]:
    """Of ``Glm4Config``."""
    if facts.get("rope.dimension_sections") is not None:
        raise facts.wrong("rope.dimension_sections", "a model of text alone: none")
    return {
        **_rms(facts),
        **_partly_rotated(facts),
        "head_dim": facts.head_dim,
        "attention_bias": "blk.0.attn_q.bias" in facts.tensors,
    }


def phi2(facts: Facts) -> dict[str, Any]:
    """Of ``PhiConfig``."""
    return {**_layer_norm(facts), **_partly_rotated(facts)}


def gptneox(facts: Facts) -> dict[str, Any]:
    """Of ``GPTNeoXConfig``."""
    return {
        **_layer_norm(facts),
        **_partly_rotated(facts),
        "use_parallel_residual": facts.flag("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in facts.tensors,
    }


def starcoder(facts: Facts) -> dict[str, Any]:
    """Of ``GPTBigCodeConfig``."""
    if facts.key_value_heads != 1:
        raise facts.wrong("attention.head_count_kv", "1, a head of keys and values that all share,")
    return {**layer_norm_epsilon(facts), "multi_query": True}


def falcon(facts: Facts) -> dict[str, Any]:
    """Of ``FalconConfig``: one head of keys and values, or several in its new architecture."""
    has_two_norms = "blk.0.attn_norm_2.weight" in facts.tensors
    return {
        **layer_norm_epsilon(facts),
        "alibi": False,
        "bias": "blk.0.attn_qkv.bias" in facts.tensors,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": has_two_norms or facts.key_value_heads > 1,
        "num_ln_in_parallel_attn": 2 if has_two_norms else 1,
    }


def mpt(facts: Facts) -> dict[str, Any]:
    """Of ``MptConfig``."""
    if _clip(facts) is not None:
        raise facts.wrong("attention.clamp_kqv", "none, since Optimum's exporter leaves it out: 0")
    largest = facts.number("attention.max_alibi_bias")
    if not largest.is_integer():
        raise facts.wrong("attention.max_alibi_bias", "a positive whole number")
    return {
        **layer_norm_epsilon(facts),
        "attn_config": {"alibi": True, "alibi_bias_max": int(largest)},
    }
