"""What GGUF's metadata and tensor names say, in the words of transformers: a configuration, and where tensors go.

Names of keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What a model is without a key of its own is
what llama.cpp computes without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.packed import ORIGINAL
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

ReadVector = Callable[[str], "NDArray[Any]"]
"""Gives a small tensor of numbers by its name."""

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.([a-z0-9_]+)\.(weight|bias)", re.ASCII)
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_GATED = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED = {**_GATED, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    **_NORMED,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_AFTER = {
    **{key: name for key, name in _NORMED.items() if key not in ("attn_norm", "ffn_norm")},
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_up_proj.0",
    "ffn_up_exps": "mlp.experts.gate_up_proj.1",
    "ffn_down_exps": "mlp.experts.down_proj",
}
"""Stacks are parameters of the class themselves, gate and up the halves of one."""
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FUSED = {
    **_GATED,
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_up": "mlp.gate_up_proj",
}
_PLAIN = {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration holds."""
_MOST = 1 << 31


class Mapped(NamedTuple):
    """Where a tensor goes."""

    name: str
    """Of the tensor in transformers."""
    heads: int | None = None
    """Heads whose rows llama.cpp has put in another order: pairs that are rotated together lie together."""
    less: float = 0.0
    """What is subtracted: norms of Gemma are stored with the 1 that its class adds."""
    is_row: bool = False
    """Whether a vector is a matrix of one row in the class."""


class _Kind(NamedTuple):
    model_type: str
    class_name: str
    names: Mapping[str, str]
    settings: Callable[[_Facts], dict[str, Any]]
    pairs: bool = False
    """Rows of queries and keys are in llama.cpp's order."""
    norms_plus_one: bool = False
    has_experts: bool = False


class _Facts:
    """Metadata of one architecture, each value checked when it is asked for."""

    def __init__(self, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        self.architecture, self.tensors = architecture, tensors
        self._metadata = metadata

    def get(self, key: str) -> Any:
        return self._metadata.get(f"{self.architecture}.{key}")

    def wrong(self, key: str, needed: str) -> ModelError:
        value = self.get(key)
        shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
        return ModelError(
            f"{self.architecture}.{key} is {shown}; {needed} is needed",
            where="metadata",
            hint="download the file again",
        )

    def count(self, key: str, default: int | None = None) -> int:
        """A positive number, also where it is given for each layer and is the same for all."""
        value = self.get(key)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _MOST:
            raise self.wrong(key, "a positive whole number, the same for every layer,")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = default if self.get(key) is None else self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        # Metadata has numbers of 32 bits: the shortest decimal that is the same one.
        return _short(float(value))

    @property
    def num_layers(self) -> int:
        """Those that there are tensors of."""
        return max((int(found[1]) for name in self.tensors if (found := _BLOCK.fullmatch(name))), default=-1) + 1

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.count("attention.key_length", self.count("embedding_length") // self.count("attention.head_count"))

    @property
    def rotated(self) -> int:
        """Channels of a head that are rotated."""
        return self.count("rope.dimension_count", self.head_dim)


def _short(value: float) -> float:
    import numpy as np

    return float(str(np.float32(value)))


def _common(facts: _Facts) -> dict[str, Any]:
    heads = facts.count("attention.head_count")
    return {
        "hidden_size": facts.count("embedding_length"),
        "num_hidden_layers": facts.count("block_count"),
        "intermediate_size": facts.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.count("attention.head_count_kv", heads),
        "max_position_embeddings": facts.count("context_length"),
    }


def _rms(facts: _Facts) -> dict[str, Any]:
    return {"rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon")}


def _llama(facts: _Facts) -> dict[str, Any]:
    return {
        **_rms(facts),
        "head_dim": facts.head_dim,
        "attention_bias": "blk.0.attn_q.bias" in facts.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in facts.tensors,
    }


def _mistral(facts: _Facts) -> dict[str, Any]:
    return {**_rms(facts), "head_dim": facts.head_dim, "sliding_window": facts.count("attention.sliding_window")}


def _qwen2(facts: _Facts) -> dict[str, Any]:
    return {**_rms(facts), "use_sliding_window": False}


def _qwen3(facts: _Facts) -> dict[str, Any]:
    return {**_qwen2(facts), "head_dim": facts.head_dim, "attention_bias": "blk.0.attn_q.bias" in facts.tensors}


def _experts(facts: _Facts) -> dict[str, Any]:
    stack = facts.tensors.get("blk.0.ffn_down_exps.weight")
    width = stack.shape[-1] if stack is not None and len(stack.shape) == 3 else None
    return {
        "num_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
        "moe_intermediate_size": facts.count("expert_feed_forward_length", width),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen2moe(facts: _Facts) -> dict[str, Any]:
    shared = facts.tensors.get("blk.0.ffn_down_shexp.weight")
    width = shared.shape[-1] if shared is not None else None
    return {
        **_qwen2(facts),
        **_experts(facts),
        "shared_expert_intermediate_size": facts.count("expert_shared_feed_forward_length", width),
        "norm_topk_prob": False,
    }


def _qwen3moe(facts: _Facts) -> dict[str, Any]:
    return {**_qwen3(facts), **_experts(facts), "norm_topk_prob": True}


def _granite(facts: _Facts) -> dict[str, Any]:
    return {
        **_llama(facts),
        "embedding_multiplier": facts.number("embedding_scale", 1.0),
        "residual_multiplier": facts.number("residual_scale", 1.0),
        "attention_multiplier": facts.number("attention.scale", facts.head_dim**-0.5),
        "logits_scaling": facts.number("logit_scale", 1.0),
    }


def _smollm3(facts: _Facts) -> dict[str, Any]:
    # llama.cpp rotates nothing in every fourth layer.
    return {**_llama(facts), "no_rope_layer_interval": 4, "use_sliding_window": False, "layer_types": None}


def _gemma(facts: _Facts) -> dict[str, Any]:
    return {**_rms(facts), "head_dim": facts.head_dim, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(facts: _Facts) -> dict[str, Any]:
    return {
        **_gemma(facts),
        "query_pre_attn_scalar": _query_scale(facts, layers_of_largest=46),
        "sliding_window": facts.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
    }


def _gemma3(facts: _Facts) -> dict[str, Any]:
    sees_all = _sees_all(facts)
    cap = facts.get("final_logit_softcapping")
    return {
        **_gemma(facts),
        "query_pre_attn_scalar": _query_scale(facts, layers_of_largest=62),
        "sliding_window": 4096 if all(sees_all) else facts.count("attention.sliding_window"),
        "rope_local_base_freq": facts.number("rope.freq_base_swa", 10_000.0),
        "layer_types": ["full_attention" if whole else "sliding_attention" for whole in sees_all],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": facts.number("final_logit_softcapping") if cap else None,
    }


def _sees_all(facts: _Facts) -> list[bool]:
    """Whether each layer sees the whole text: every sixth, all where there is no window, or as the file says."""
    key = "attention.sliding_window_pattern"
    stated = facts.get(key) if facts.get("attention.sliding_window") else 1
    if isinstance(stated, list):
        if len(stated) != facts.num_layers or not all(each in (0, 1) for each in stated):
            raise facts.wrong(key, f"a number, or yes or no for each of {facts.num_layers} layers,")
        return [not each for each in stated]
    period = 1 if stated == 1 else facts.count(key, 6)
    return [layer % period == period - 1 for layer in range(facts.num_layers)]


def _query_scale(facts: _Facts, layers_of_largest: int) -> int:
    """The 27B models divide by the root of the hidden size's share of a head, all others by that of a head's size."""
    if facts.count("block_count") == layers_of_largest:
        return facts.count("embedding_length") // facts.count("attention.head_count")
    return facts.head_dim


def _phi3(facts: _Facts) -> dict[str, Any]:
    window = facts.get("attention.sliding_window")
    return {
        **_rms(facts),
        "sliding_window": facts.count("attention.sliding_window") if window else None,
        "original_max_position_embeddings": facts.count(
            "rope.scaling.original_context_length", facts.count("context_length")
        ),
        "partial_rotary_factor": facts.rotated / facts.head_dim,
    }


def _starcoder2(facts: _Facts) -> dict[str, Any]:
    return {
        "norm_epsilon": facts.number("attention.layer_norm_epsilon"),
        "use_bias": "blk.0.attn_q.bias" in facts.tensors,
        "sliding_window": None,
    }


def _stablelm(facts: _Facts) -> dict[str, Any]:
    return {
        "layer_norm_eps": facts.number("attention.layer_norm_epsilon"),
        "partial_rotary_factor": facts.rotated / facts.head_dim,
        "use_qkv_bias": "blk.0.attn_q.bias" in facts.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in facts.tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in facts.tensors,
    }


_KINDS: Mapping[str, _Kind] = {
    "llama": _Kind("llama", "LlamaForCausalLM", _GATED, _llama, pairs=True),
    "qwen2": _Kind("qwen2", "Qwen2ForCausalLM", _GATED, _qwen2),
    "qwen3": _Kind("qwen3", "Qwen3ForCausalLM", _NORMED, _qwen3),
    "qwen2moe": _Kind(
        "qwen2_moe", "Qwen2MoeForCausalLM", {**_GATED, **_EXPERTS, **_SHARED_EXPERT}, _qwen2moe, has_experts=True
    ),
    "qwen3moe": _Kind("qwen3_moe", "Qwen3MoeForCausalLM", {**_NORMED, **_EXPERTS}, _qwen3moe, has_experts=True),
    "granite": _Kind("granite", "GraniteForCausalLM", _GATED, _granite, pairs=True),
    "olmo2": _Kind("olmo2", "Olmo2ForCausalLM", _AFTER, _rms),
    "smollm3": _Kind("smollm3", "SmolLM3ForCausalLM", _GATED, _smollm3, pairs=True),
    "gemma": _Kind("gemma", "GemmaForCausalLM", _GATED, _gemma, norms_plus_one=True),
    "gemma2": _Kind("gemma2", "Gemma2ForCausalLM", _FOUR_NORMS, _gemma2, norms_plus_one=True),
    "gemma3": _Kind("gemma3_text", "Gemma3ForCausalLM", _FOUR_NORMS, _gemma3, norms_plus_one=True),
    "phi3": _Kind("phi3", "Phi3ForCausalLM", _FUSED, _phi3),
    "starcoder2": _Kind("starcoder2", "Starcoder2ForCausalLM", _PLAIN, _starcoder2),
    "stablelm": _Kind("stablelm", "StableLmForCausalLM", _GATED, _stablelm),
}
_PARTLY_ROTATED = ("phi3", "stablelm")


def architecture_of(metadata: Mapping[str, Any]) -> str:
    """The architecture that a file names.

    Raises:
        ModelError: None that is read, or experts.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _KINDS:
        raise ModelError(
            f"the architecture {name!r} of this GGUF file is not read; accepted: {', '.join(_KINDS)}",
            where="metadata",
            hint=ORIGINAL,
        )
    if metadata.get(f"{name}.expert_count") and not _KINDS[name].has_experts:
        raise ModelError(
            f"the experts of a GGUF file are not read in the architecture {name}; accepted: "
            + ", ".join(each for each, kind in _KINDS.items() if kind.has_experts),
            where="metadata",
            hint=ORIGINAL,
        )
    return name


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: ReadVector) -> dict[str, Any]:
    """The ``config.json`` of transformers that a file's metadata describes, without the tokens' ids.

    Args:
        metadata: Of the file.
        tensors: Of all files of the model, by GGUF's names.
        read: Gives the tensors of rotary factors.

    Raises:
        ModelError: An architecture that is not read, or metadata that is missing, contradicts the tensors, or says
            what transformers has no setting for.
    """
    architecture = architecture_of(metadata)
    facts = _Facts(architecture, metadata, tensors)
    kind = _KINDS[architecture]
    if architecture == "llama" and facts.get("attention.sliding_window"):
        kind = kind._replace(model_type="mistral", class_name="MistralForCausalLM", settings=_mistral)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("there is no matrix token_embd.weight", where="tensors", hint="download the file again")
    config = {
        "architectures": [kind.class_name],
        "model_type": kind.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "dtype": "float32",
        **_common(facts),
        **kind.settings(facts),
        "rope_theta": facts.number("rope.freq_base", 10_000.0),
    }
    _refuse_other_sizes(facts, config, embedding)
    scaling = _rope_scaling(facts, config, read)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _refuse_other_sizes(facts: _Facts, config: Mapping[str, Any], embedding: TensorInfo) -> None:
    """Hold what the metadata says against the tensors, so that no size is made up."""
    query = facts.tensors.get("blk.0.attn_q.weight")
    for key, stated, there in (
        ("embedding_length", config["hidden_size"], embedding.shape[1]),
        ("block_count", config["num_hidden_layers"], facts.num_layers),
        ("attention.value_length", facts.count("attention.value_length", facts.head_dim), facts.head_dim),
        (
            "attention.head_count",
            config["num_attention_heads"] * facts.head_dim,
            query.shape[0] if query else config["num_attention_heads"] * facts.head_dim,
        ),
        (
            "rope.dimension_count",
            facts.rotated,
            facts.rotated if facts.architecture in _PARTLY_ROTATED else facts.head_dim,
        ),
    ):
        if stated != there:
            raise ModelError(
                f"{facts.architecture}.{key} gives {stated}, and the tensors {there}",
                where="metadata",
                hint="download the file again",
            )
    if facts.rotated > facts.head_dim or facts.head_dim > config["hidden_size"] * 16:
        raise facts.wrong("rope.dimension_count", f"at most {facts.head_dim}")


def _rope_scaling(facts: _Facts, config: Mapping[str, Any], read: ReadVector) -> dict[str, Any] | None:
    kind = facts.get("rope.scaling.type")
    if "rope_factors_long.weight" in facts.tensors:
        return _longrope(facts, read)
    if "rope_freqs.weight" in facts.tensors:
        return _llama3(facts, config, read)
    if kind in (None, "none"):
        return None
    factor = facts.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise facts.wrong("rope.scaling.type", "none, linear, yarn or longrope")
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.count("rope.scaling.original_context_length"),
    }
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if facts.get(f"rope.scaling.{key}") is not None:
            scaling[name] = facts.number(f"rope.scaling.{key}")
    attention = facts.number("rope.scaling.attn_factor", 1.0)
    return scaling if attention == 1 else scaling | {"attention_factor": attention * (0.1 * math.log(factor) + 1)}


def _longrope(facts: _Facts, read: ReadVector) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": facts.count("rope.scaling.original_context_length"),
    }
    for name in ("long", "short"):
        values = _vector(facts, f"rope_factors_{name}.weight", facts.rotated // 2, read)
        scaling[f"{name}_factor"] = [_short(value) for value in values]
    if facts.get("rope.scaling.attn_factor") is not None:
        scaling["attention_factor"] = facts.number("rope.scaling.attn_factor")
    return scaling


def _vector(facts: _Facts, name: str, length: int, read: ReadVector) -> NDArray[Any]:
    import numpy as np

    tensor = facts.tensors.get(name)
    if tensor is None or tensor.dtype != "F32" or tensor.shape != (length,):
        raise ModelError(f"{name} is no vector of {length} numbers", where="tensors", hint="download the file again")
    values = read(name)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ModelError(f"{name} holds other than positive numbers", where="tensors", hint="download the file again")
    return values


def _llama3(facts: _Facts, config: Mapping[str, Any], read: ReadVector) -> dict[str, Any] | None:
    """The settings of Llama 3's scaling, of which the file holds the result: what each frequency is divided by."""
    import numpy as np

    factors = _vector(facts, "rope_freqs.weight", facts.rotated // 2, read)
    if (factors == 1).all():
        return None
    factor, original, low, high = _short(float(factors.max())), 8192, 1.0, 4.0
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, facts.rotated, 2) / facts.rotated)
    share = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    expected = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))
    if not np.allclose(factors, expected, rtol=1e-4):
        raise ModelError(
            "the factors in rope_freqs.weight are not those of Llama 3, and transformers has no setting for others",
            where="tensors",
            hint=ORIGINAL,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def named_tensors(architecture: str, config: Mapping[str, Any], names: Mapping[str, TensorInfo]) -> dict[str, Mapped]:
    """Where each tensor goes, by GGUF's name; rotary factors, which the configuration holds, go nowhere.

    Raises:
        ModelError: A tensor that the architecture does not have.
    """
    kind = _KINDS[architecture]
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found: dict[str, Mapped] = {}
    for name, tensor in names.items():
        if name in ROPE_TENSORS:
            continue
        stem, _, part = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        to = kind.names.get(block[2]) if block else _MODEL.get(stem) if part in ("weight", "bias") else None
        if to is None:
            raise ModelError(
                f"the tensor {name!r} is none of the architecture {architecture}", where=tensor.file, hint=ORIGINAL
            )
        ordered = heads.get(block[2]) if block and kind.pairs else None
        if ordered is not None and tensor.shape[0] % (2 * ordered):
            raise ModelError(
                f"{tensor.shape[0]} rows of the tensor {name!r} are no {ordered} heads of pairs",
                where=tensor.file,
                hint="download the file again",
            )
        less = 1.0 if kind.norms_plus_one and stem.endswith("norm") else 0.0
        prefix = f"model.layers.{int(block[1])}." if block else ""
        is_row = to.endswith("shared_expert_gate") and len(tensor.shape) == 1
        found[name] = Mapped(f"{prefix}{to}" + ("" if ".experts." in to else f".{part}"), ordered, less, is_row)
    return found
