"""The names that transformers has for modules, by those of GGUF's tensors: of a layer, and of what is in no layer.

GGUF's: https://github.com/ggml-org/llama.cpp, ``gguf-py/gguf/tensor_mapping.py``.
"""

from __future__ import annotations

MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
GATED = {
    **ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMED = {**GATED, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FOUR_NORMS = {
    **NORMED,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
AFTER = {
    **{key: name for key, name in NORMED.items() if key not in ("attn_norm", "ffn_norm")},
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_up_proj.0",
    "ffn_up_exps": "mlp.experts.gate_up_proj.1",
    "ffn_down_exps": "mlp.experts.down_proj",
}
"""Stacks are parameters of the class themselves, gate and up the halves of one."""
ONE_BY_ONE = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps": "block_sparse_moe.input_linear.weight.0",
    "ffn_up_exps": "block_sparse_moe.input_linear.weight.1",
    "ffn_down_exps": "block_sparse_moe.output_linear.weight",
}
"""Stacks of a class that multiplies by one expert after the other; gate and up are one parameter."""
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
FUSED = {
    **GATED,
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_up": "mlp.gate_up_proj",
}
PLAIN = {**ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
UNNORMED = {key: name for key, name in GATED.items() if not key.endswith("norm")}
UNGATED = {key: name for key, name in GATED.items() if key != "ffn_gate"}
GLM4 = {
    **GATED,
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "post_ffw_norm": "post_mlp_layernorm",
}
PHI2 = {**ATTENTION, "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
HUNYUAN = {**GATED, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
NEOX = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
BLOOM = {**NEOX, "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense"}
FALCON = {key: name for key, name in BLOOM.items() if key != "ffn_norm"}
FALCON_WITH_TWO_NORMS = {**FALCON, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
MPT = {
    "attn_norm": "norm_1",
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.out_proj",
    "ffn_norm": "norm_2",
    "ffn_up": "ffn.up_proj",
    "ffn_down": "ffn.down_proj",
}
TRANSFORMER = {"output_norm": "transformer.ln_f", "output": "lm_head"}
GPT2_MODEL = {**TRANSFORMER, "token_embd": "transformer.wte", "position_embd": "transformer.wpe"}
FALCON_MODEL = {**TRANSFORMER, "token_embd": "transformer.word_embeddings"}
BLOOM_MODEL = {**FALCON_MODEL, "token_embd_norm": "transformer.word_embeddings_layernorm"}
MPT_MODEL = {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"}
NEOX_MODEL = {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"}
