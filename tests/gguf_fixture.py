"""GGUF files of tiny checkpoints, with the names, orders and metadata that llama.cpp gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Blocks = tuple[Array, gguf.GGMLQuantizationType]
Store = Callable[[str, Array], Blocks | None]
"""Makes blocks of a matrix, by GGUF's name; None leaves it in f32."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NAMES |= {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
OTHER_EXPERTS = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.input_linear.gate": "ffn_gate_exps",
    "block_sparse_moe.input_linear.up": "ffn_up_exps",
    "block_sparse_moe.output_linear": "ffn_down_exps",
}
ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "cohere": "command-r",
    "hunyuan_v1_dense": "hunyuan-dense",
    "gpt_neox": "gptneox",
    "gpt_bigcode": "starcoder",
    "phi": "phi2",
}
OF_THE_PACKAGE = {
    "arcee", "bloom", "command-r", "cohere2", "falcon", "glm4", "gpt2", "gptneox", "hunyuan-dense", "mpt", "olmo",
    "phi2", "starcoder",
}  # fmt: skip
"""Whose tensors are named by the package's own map."""
FUSED_BY_HEAD = ("bloom", "falcon", "gpt_neox")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""GPT-2's matrices, which have input channels first."""
SHARED_KEYS = {
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
}


def blocks(kind: str) -> Store:
    """Every matrix in one type, by the package's own quantizers."""
    number = gguf.GGMLQuantizationType[kind]
    return lambda name, values: (gguf.quantize(values, number), number)


def write_gguf(
    checkpoint: Path, path: Path, store: Store = lambda name, values: None, *, num_parts: int = 1, **metadata: Any
) -> Path:
    """Write a checkpoint of transformers as one GGUF file, or as the parts of one; ``metadata`` by GGUF's keys."""
    from safetensors.numpy import load_file

    config = shared(json.loads((checkpoint / "config.json").read_text()))
    kind = config["model_type"]
    architecture = ARCHITECTURES.get(kind, kind)
    tensors = {}
    for name, values in _stacked(load_file(checkpoint / "model.safetensors")).items():
        to, values = as_stored(name, values.astype(np.float32), config)
        tensors[to] = values
    tensors |= {f"rope_{name}.weight": values for name, values in _rope_tensors(config).items()}
    writers = []
    names = list(tensors)
    for number in range(num_parts):
        writer = gguf.GGUFWriter(path, architecture)
        writers.append(writer)
        if number == 0:
            for key, value in {
                **_settings(config, architecture),
                **(_tokenizer(checkpoint) if "tokenizer.ggml.model" not in metadata else {}),
                **metadata,
            }.items():
                _add(writer, key, value)
        if num_parts > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", num_parts)
            writer.add_int32("split.tensors.count", len(tensors))
        for name in names[number::num_parts]:
            blocks = store(name, tensors[name]) if tensors[name].ndim > 1 else None
            if blocks is None:
                writer.add_tensor(name, np.ascontiguousarray(tensors[name]))
            else:
                writer.add_tensor(name, blocks[0], raw_dtype=blocks[1])
    for number, writer in enumerate(writers, 1):
        part = path if num_parts == 1 else path.with_name(f"{path.stem}-{number:05}-of-{num_parts:05}.gguf")
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path if num_parts == 1 else path.with_name(f"{path.stem}-00001-of-{num_parts:05}.gguf")


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _stacked(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Each expert's layer in one stack."""
    found: dict[str, Any] = {}
    for name in sorted(tensors, key=lambda each: [int(part) if part.isdigit() else part for part in each.split(".")]):
        module, expert, rest = name.partition(".experts.")
        if "input_linear" in name:
            stem = name.removesuffix(".weight")
            found[f"{stem}.gate.weight"], found[f"{stem}.up.weight"] = np.split(tensors[name], 2, axis=1)
        elif not expert:
            found[name] = tensors[name]
        else:
            found.setdefault(f"{module}.experts.{rest.partition('.')[2]}", []).append(tensors[name])
    return {name: np.stack(values) if isinstance(values, list) else values for name, values in found.items()}


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the keys that most classes have."""
    config |= {key: config[own] for own, key in SHARED_KEYS.items() if own in config}
    config.setdefault("max_position_embeddings", 256)
    if not config.get("intermediate_size"):
        config["intermediate_size"] = 4 * config["hidden_size"]
    if config["model_type"] == "falcon":
        config["num_key_value_heads"] = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
    if config["model_type"] == "gpt_bigcode":
        config["num_key_value_heads"] = 1
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    return config


def _by_the_package(name: str, values: Array, config: Mapping[str, Any], architecture: str) -> tuple[str, Array]:
    """As llama.cpp's converter writes the architectures that it has a small class for."""
    kind, heads, shared = config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]
    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    to = names.get_name(name.removeprefix("transformer.") if kind == "bloom" else name, (".weight", ".bias"))
    assert to is not None, name
    if kind == "gpt2" and name.endswith(CONV1D):
        values = values.T
    if kind in FUSED_BY_HEAD and "query_key_value" in name:
        by_head = values.reshape(shared, heads // shared + 2, config["hidden_size"] // heads, -1)
        parts = by_head[:, :-2], by_head[:, -2], by_head[:, -1]
        values = np.concatenate([part.reshape(-1, by_head.shape[-1]) for part in parts]).reshape(values.shape)
    if kind in ("olmo", "arcee") and name.endswith(("q_proj.weight", "k_proj.weight")):
        values = _in_pairs(values, heads if "q_proj" in name else shared)
    return to, values


def _in_pairs(values: Array, heads: int) -> Array:
    """The two channels that are rotated together come next to each other."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def as_stored(name: str, values: Array, config: Mapping[str, Any]) -> tuple[str, Array]:
    """A tensor by GGUF's name, in the order of a file."""
    stem, part = name.rsplit(".", 1)
    kind = config["model_type"]
    architecture = ARCHITECTURES.get(kind, kind)
    if architecture in OF_THE_PACKAGE:
        return _by_the_package(name, values, config, architecture)
    names = NAMES | OTHER_EXPERTS
    if kind.startswith(("gemma2", "gemma3", "olmo2")):
        names["post_attention_layernorm"] = "post_attention_norm"
    block = ""
    if stem.startswith("model.layers."):
        number, stem = stem.removeprefix("model.layers.").split(".", 1)
        block = f"blk.{number}."
    is_in_pairs = kind in ("llama", "mistral", "mixtral", "granite", "granitemoe", "smollm3")
    if is_in_pairs and stem in ("self_attn.q_proj", "self_attn.k_proj"):
        values = _in_pairs(values, config["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"])
    if stem == "mlp.shared_expert_gate":
        values = values[0]
    if kind.startswith("gemma") and stem.endswith("norm"):
        values = values + 1
    return f"{block}{names[stem]}.{part}", values


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("full_attention", rope)


def _rope_tensors(config: Mapping[str, Any]) -> dict[str, Array]:
    rope = _rope(config)
    if rope.get("rope_type") == "llama3":
        from transformers import AutoConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        made = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](made, "cpu")
        size = 2 * len(scaled)
        plain = rope["rope_theta"] ** -(np.arange(0, size, 2) / size)
        return {"freqs": (plain / scaled.numpy()).astype(np.float32)}
    if rope.get("rope_type") == "longrope":
        return {f"factors_{name}": np.array(rope[f"{name}_factor"], np.float32) for name in ("long", "short")}
    return {}


def _settings(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    rope, heads = _rope(config), config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    found: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
        "rope.freq_base": float(theta),
    }
    if head_dim != config["hidden_size"] // heads or config["model_type"].startswith("gemma"):
        found |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    for key, name in (
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attention.layer_norm_epsilon", "norm_epsilon"),
        ("attention.layer_norm_epsilon", "layer_norm_eps"),
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("logit_scale", "logit_scale"),
        ("attention.clamp_kqv", "clip_qkv"),
    ):
        if config.get(name) is not None:
            found[key] = float(config[name])
    if config["model_type"] in ("mixtral", "granitemoe"):
        found |= {"expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"]}
    if config["model_type"] == "olmo":
        found["attention.layer_norm_epsilon"] = 1e-5
    if config["model_type"] == "mpt":
        found["attention.max_alibi_bias"] = float(config["attn_config"]["alibi_bias_max"])
    if rope.get("alpha"):
        found["rope.freq_base"] = float(theta * rope["alpha"] ** (head_dim / (head_dim - 2)))
    if config["model_type"].endswith("_moe"):
        found |= {
            "expert_count": config.get("num_experts", config.get("num_local_experts")),
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    if "shared_expert_intermediate_size" in config:
        found["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    if config.get("sliding_window"):
        found["attention.sliding_window"] = config["sliding_window"]
    if "use_parallel_residual" in config:
        found["use_parallel_residual"] = config["use_parallel_residual"]
    scaling = rope.get("rope_type", "default")
    if scaling in ("linear", "yarn"):
        found |= {"rope.scaling.type": scaling, "rope.scaling.factor": float(rope["factor"])}
    if "original_max_position_embeddings" in rope and scaling != "llama3":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if scaling == "longrope":
        ratio = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
        attention = (1 + np.log(ratio) / np.log(rope["original_max_position_embeddings"])) ** 0.5
        found["rope.scaling.attn_factor"] = float(attention)
    return {f"{architecture}.{key}": value for key, value in found.items()}


def _tokenizer(checkpoint: Path) -> dict[str, Any]:
    stated = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {token["id"]: token for token in stated["added_tokens"]}
    ids = stated["model"]["vocab"] | {token["content"]: number for number, token in special.items()}
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    tokens = [f"[PAD{number}]" for number in range(size)]
    for token, number in ids.items():
        tokens[number] = token
    config = json.loads((checkpoint / "config.json").read_text())
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if n in special else 1 if n in ids.values() else 5 for n in range(size)],
        "tokenizer.ggml.merges": [" ".join(m) if isinstance(m, list) else m for m in stated["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.add_bos_token": False,
    }
    if config.get("pad_token_id") is not None:
        found["tokenizer.ggml.padding_token_id"] = config["pad_token_id"]
    template = checkpoint / "chat_template.jinja"
    return found | ({"tokenizer.chat_template": template.read_text()} if template.is_file() else {})


def experts_as_transformers(path: Path) -> dict[str, Array]:
    """As ``as_transformers``, of a Qwen-MoE model with biases or norms on queries and keys."""
    names = {to: name for name, to in NAMES.items()}
    names |= {"ffn_norm": "post_attention_layernorm"}
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, stem, part = tensor.name.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        found[f"{prefix}{names[stem]}.{part}"] = values[None] if stem == "ffn_gate_inp_shexp" else values
    for name in [name for name in found if name.endswith("experts.gate_proj.weight")]:
        module = name.removesuffix(".gate_proj.weight")
        gate, up, down = (found.pop(f"{module}.{part}_proj.weight") for part in ("gate", "up", "down"))
        found |= {f"{module}.gate_up_proj": np.concatenate([gate, up], axis=1), f"{module}.down_proj": down}
    return found


def gemma_as_transformers(path: Path) -> dict[str, Array]:
    """As ``as_transformers``, of a model of Gemma's family, whose norms are stored with the 1 that its class adds."""
    names = {to: name for name, to in NAMES.items()}
    names |= {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "post_attention_norm": "post_attention_layernorm"}
    reader = gguf.GGUFReader(path)
    has_four_norms = any(tensor.name == "blk.0.post_ffw_norm.weight" for tensor in reader.tensors)
    names["ffn_norm"] = "pre_feedforward_layernorm" if has_four_norms else "post_attention_layernorm"
    found = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, stem, part = tensor.name.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        found[f"{prefix}{names[stem]}.{part}"] = values - 1 if stem.endswith("norm") else values
    return found


def as_transformers(path: Path, config: Any) -> dict[str, Array]:
    """The tensors of a Llama model by transformers' names, in f32, as the package gguf dequantizes them."""
    names = {to: name for name, to in NAMES.items()}
    names |= {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_norm": "post_attention_layernorm"}
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, stem, part = tensor.name.split(".")
        if stem in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if stem == "attn_q" else config.num_key_value_heads
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        found[f"{prefix}{names[stem]}.{part}"] = np.ascontiguousarray(values)
    return found


def assert_same_logits(original: Any, config: Any, tensors: Mapping[str, Any]) -> None:
    """transformers computes what it did before, with a configuration and tensors that a file gave."""
    import torch

    made, info = type(original).from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        expected, got = original(ids).logits, made.eval()(ids).logits
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
