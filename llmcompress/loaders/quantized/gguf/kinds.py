"""The architectures of GGUF files that are read, and what each is in transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.loaders.quantized.gguf import names, settings
from llmcompress.loaders.quantized.gguf.facts import Facts
from llmcompress.loaders.quantized.gguf.names import MODEL
from llmcompress.loaders.safetensors_file import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RowOrder(NamedTuple):
    """Rows that a file has in another order than transformers."""

    heads: int
    key_value_heads: int | None = None
    """Of queries, keys and values in one matrix; None: rows are of one kind."""

    def __str__(self) -> str:
        if self.key_value_heads is None:
            return f"{self.heads} heads of pairs"
        return f"{self.heads} heads of queries and {self.key_value_heads} of keys and values"

    @property
    def parts(self) -> int:
        """What the number of rows is a multiple of."""
        return 2 * self.heads if self.key_value_heads is None else self.heads + 2 * self.key_value_heads

    def places(self, rows: int) -> NDArray[np.intp]:
        """Where the rows lie in a file, in the order of transformers.

        There a head has the first channels of all rotated pairs, then the second ones; llama.cpp puts pairs together.
        In one matrix a head of keys comes after its heads of queries, and then its head of values; llama.cpp has all
        queries, all keys, all values.
        """
        import numpy as np

        if self.key_value_heads is None:
            return np.arange(rows).reshape(self.heads, rows // self.heads // 2, 2).swapaxes(1, 2).reshape(-1)
        channels = np.arange(rows).reshape(self.parts, -1)
        kinds = np.split(channels, [self.heads, self.heads + self.key_value_heads])
        by_head = [part.reshape(self.key_value_heads, -1) for part in kinds]
        return np.concatenate(by_head, axis=1).reshape(-1)


class Kind(NamedTuple):
    """An architecture in transformers."""

    model_type: str
    class_name: str
    names: Mapping[str, str]
    """Of a layer's modules, by GGUF's names."""
    settings: Callable[[Facts], dict[str, Any]]
    outside: Mapping[str, str] = MODEL
    """Of the modules that are in no layer."""
    layers: str = "model.layers"
    own_keys: Mapping[str, str] = {}
    """What the class calls settings that others share."""
    pairs: bool = False
    """Rows of queries and keys have the channels that are rotated together next to each other."""
    fused_by_head: bool = False
    """The class has queries, keys and values of a head together; a file has all queries, all keys, all values."""
    transposed: bool = False
    """The class multiplies by matrices that have input channels first."""
    norms_plus_one: bool = False
    has_experts: bool = False
    rotates: bool = True
    """Whether positions are rotations."""
    rotates_part: bool = False
    """Whether some channels of a head may be left as they are."""

    def row_orders(self, heads: int, key_value_heads: int) -> dict[str, RowOrder]:
        """By GGUF's names, where a file has rows in another order than the class."""
        if self.pairs:
            return {"attn_q": RowOrder(heads), "attn_k": RowOrder(key_value_heads)}
        return {"attn_qkv": RowOrder(heads, key_value_heads)} if self.fused_by_head else {}


_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}

KINDS: Mapping[str, Kind] = {
    "llama": Kind("llama", "LlamaForCausalLM", names.GATED, settings.llama, pairs=True),
    "qwen2": Kind("qwen2", "Qwen2ForCausalLM", names.GATED, settings.qwen2),
    "qwen3": Kind("qwen3", "Qwen3ForCausalLM", names.NORMED, settings.qwen3),
    "qwen2moe": Kind(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**names.GATED, **names.EXPERTS, **names.SHARED_EXPERT},
        settings.qwen2moe,
        has_experts=True,
    ),
    "qwen3moe": Kind(
        "qwen3_moe", "Qwen3MoeForCausalLM", {**names.NORMED, **names.EXPERTS}, settings.qwen3moe, has_experts=True
    ),
    "granite": Kind("granite", "GraniteForCausalLM", names.GATED, settings.granite, pairs=True),
    "granitemoe": Kind(
        "granitemoe",
        "GraniteMoeForCausalLM",
        {**names.GATED, **names.ONE_BY_ONE},
        settings.granitemoe,
        pairs=True,
        has_experts=True,
    ),
    "olmo2": Kind("olmo2", "Olmo2ForCausalLM", names.AFTER, settings.olmo2),
    "smollm3": Kind("smollm3", "SmolLM3ForCausalLM", names.GATED, settings.smollm3, pairs=True),
    "gemma": Kind("gemma", "GemmaForCausalLM", names.GATED, settings.gemma, norms_plus_one=True),
    "gemma2": Kind("gemma2", "Gemma2ForCausalLM", names.FOUR_NORMS, settings.gemma2, norms_plus_one=True),
    "gemma3": Kind("gemma3_text", "Gemma3ForCausalLM", names.FOUR_NORMS, settings.gemma3, norms_plus_one=True),
    "phi3": Kind("phi3", "Phi3ForCausalLM", names.FUSED, settings.phi3, rotates_part=True),
    "starcoder2": Kind("starcoder2", "Starcoder2ForCausalLM", names.PLAIN, settings.starcoder2),
    "stablelm": Kind("stablelm", "StableLmForCausalLM", names.GATED, settings.stablelm, rotates_part=True),
    "command-r": Kind("cohere", "CohereForCausalLM", names.NORMED, settings.cohere),
    "cohere2": Kind("cohere2", "Cohere2ForCausalLM", names.GATED, settings.cohere2),
    "glm4": Kind("glm4", "Glm4ForCausalLM", names.GLM4, settings.glm4, rotates_part=True),
    "hunyuan-dense": Kind("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", names.HUNYUAN, settings.qwen3),
    "olmo": Kind("olmo", "OlmoForCausalLM", names.UNNORMED, settings.olmo, pairs=True),
    "arcee": Kind("arcee", "ArceeForCausalLM", names.UNGATED, settings.llama, pairs=True),
    "phi2": Kind(
        "phi",
        "PhiForCausalLM",
        names.PHI2,
        settings.phi2,
        {**MODEL, "output_norm": "model.final_layernorm"},
        rotates_part=True,
    ),
    "gptneox": Kind(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        names.NEOX,
        settings.gptneox,
        names.NEOX_MODEL,
        "gpt_neox.layers",
        own_keys={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        fused_by_head=True,
        rotates_part=True,
    ),
    "gpt2": Kind(
        "gpt2",
        "GPT2LMHeadModel",
        names.GPT2,
        settings.layer_norm_epsilon,
        names.GPT2_MODEL,
        "transformer.h",
        own_keys=_GPT2_KEYS,
        transposed=True,
        rotates=False,
    ),
    "starcoder": Kind(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        names.GPT2,
        settings.starcoder,
        names.GPT2_MODEL,
        "transformer.h",
        own_keys=_GPT2_KEYS,
        rotates=False,
    ),
    "falcon": Kind(
        "falcon",
        "FalconForCausalLM",
        names.FALCON,
        settings.falcon,
        names.FALCON_MODEL,
        "transformer.h",
        own_keys={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"},
        fused_by_head=True,
    ),
    "bloom": Kind(
        "bloom",
        "BloomForCausalLM",
        names.BLOOM,
        settings.layer_norm_epsilon,
        names.BLOOM_MODEL,
        "transformer.h",
        own_keys={
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "seq_length",
        },
        fused_by_head=True,
        rotates=False,
    ),
    "mpt": Kind(
        "mpt",
        "MptForCausalLM",
        names.MPT,
        settings.mpt,
        names.MPT_MODEL,
        "transformer.blocks",
        own_keys={
            "hidden_size": "d_model",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "max_position_embeddings": "max_seq_len",
        },
        rotates=False,
    ),
}
"""By GGUF's name."""
_MISTRAL = KINDS["llama"]._replace(model_type="mistral", class_name="MistralForCausalLM", settings=settings.mistral)
_MIXTRAL = KINDS["llama"]._replace(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    names={**names.GATED, **names.EXPERTS},
    settings=settings.mixtral,
    has_experts=True,
)


def kind_of(architecture: str, tensors: Mapping[str, TensorInfo], *, has_window: bool = False) -> Kind:
    """Give what a model of an architecture is in transformers, which may depend on the tensors that it has."""
    kind = KINDS[architecture]
    if architecture == "llama":
        return _MIXTRAL if "blk.0.ffn_gate_exps.weight" in tensors else _MISTRAL if has_window else kind
    if architecture == "falcon" and "blk.0.attn_norm_2.weight" in tensors:
        return kind._replace(names=names.FALCON_WITH_TWO_NORMS)
    return kind
