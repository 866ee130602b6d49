"""Stand-ins for the architectures whose classes are code of their repositories, for ``benchmarks/architectures.py``.

Each has the names, shapes and cache that Optimum's exporter looks for in a model of its type; the rest is as simple as
it can be. A copy of this file goes into a checkpoint, and is run as the code of its repository.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

LOWEST = torch.finfo(torch.float16).min


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer without a bias."""
    return nn.Linear(inputs, outputs, bias=False)


def rotated(states: Any, cos: Any, sin: Any) -> Any:
    """Turn the halves of heads against each other."""
    left, right = states.chunk(2, -1)
    return states * cos + torch.cat((-right, left), -1) * sin


class Norm(nn.Module):
    """By the root of the mean square."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, states: Any) -> Any:
        return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Rotary(nn.Module):
    """The cosines and sines of all positions."""

    def __init__(self, size: int, num_positions: int) -> None:
        super().__init__()
        speeds = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(num_positions).float(), speeds).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, states: Any = None, seq_len: Any = None) -> Any:
        return self.cos, self.sin


class Feed(nn.Module):
    """Gated."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Any) -> Any:
        return self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))


class Experts(nn.Module):
    """As DeepSeek's: tokens are sorted by the expert that takes them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ep_rank, self.experts_per_rank = 0, 4
        self.gate = linear(config.hidden_size, 4)
        self.experts = nn.ModuleList(Feed(config) for _ in range(4))

    def forward(self, states: Any) -> Any:
        flat = states.reshape(-1, states.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(2, dim=-1)
        return self.moe_infer(flat, chosen, weights).reshape(states.shape)

    def moe_infer(self, states: Any, chosen: Any, weights: Any) -> Any:
        shares = torch.zeros(states.shape[0], 4).scatter(1, chosen, weights)
        return sum(expert(states) * shares[:, i : i + 1] for i, expert in enumerate(self.experts))


class Attention(nn.Module):
    """With a tuple of keys and values as its cache."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        per_layer = getattr(config, "num_key_value_heads_per_layer", None)
        self.config, self.hidden_size, self.pretraining_tp = config, config.hidden_size, 1
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.num_key_value_heads = per_layer[index] if per_layer else config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.rotary_emb = Rotary(self.head_dim, config.max_position_embeddings)
        self.add_projections()

    def add_projections(self) -> None:
        self.q_proj = linear(self.hidden_size, self.hidden_size)
        self.k_proj = linear(self.hidden_size, self.num_key_value_heads * self.head_dim)
        self.v_proj = linear(self.hidden_size, self.num_key_value_heads * self.head_dim)
        self.o_proj = linear(self.hidden_size, self.hidden_size)

    def project(self, states: Any) -> Any:
        found = (self.q_proj(states), self.k_proj(states), self.v_proj(states))
        return (each.unflatten(-1, (-1, self.head_dim)) for each in found)

    def project_back(self, states: Any) -> Any:
        return self.o_proj(states)

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        use_cache: bool = False,
    ) -> Any:
        query, key, value = (each.transpose(1, 2) for each in self.project(hidden_states))
        cos, sin = (each[position_ids].unsqueeze(1) for each in self.rotary_emb(value))
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if past_key_value is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(past_key_value, (key, value), strict=True))
        cache = (key, value)
        key, value = (each.repeat_interleave(self.num_key_value_groups, 1) for each in cache)
        found = functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return self.project_back(found.transpose(1, 2).flatten(-2)), None, cache if use_cache else None


class PackedAttention(Attention):
    """As Baichuan's: one matrix for queries, keys and values."""

    def add_projections(self) -> None:
        self.W_pack = linear(self.hidden_size, 3 * self.hidden_size)
        self.o_proj = linear(self.hidden_size, self.hidden_size)

    def project(self, states: Any) -> Any:
        return (each.unflatten(-1, (-1, self.head_dim)) for each in self.W_pack(states).chunk(3, -1))


class GroupedAttention(Attention):
    """As InternLM2's: one matrix, whose rows are the queries of a group, then its keys and its values."""

    def add_projections(self) -> None:
        heads = self.num_heads + 2 * self.num_key_value_heads
        self.wqkv = linear(self.hidden_size, heads * self.head_dim)
        self.wo = linear(self.hidden_size, self.hidden_size)

    def project(self, states: Any) -> Any:
        groups = self.wqkv(states).unflatten(-1, (-1, self.num_key_value_groups + 2, self.head_dim))
        return groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]

    def project_back(self, states: Any) -> Any:
        return self.wo(states)


class LatentAttention(nn.Module):
    """As DeepSeek's and MiniCPM3's: keys and values of a small common vector, and a cache object."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.layer_idx, self.is_causal, self.attention_dropout = index, True, 0.0
        self.hidden_size, self.num_heads = config.hidden_size, config.num_attention_heads
        self.q_lora_rank, self.kv_lora_rank = 32, 32
        self.qk_nope_head_dim, self.qk_rope_head_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.q_head_dim, self.v_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim, config.v_head_dim
        self.q_a_proj, self.q_a_layernorm = linear(self.hidden_size, self.q_lora_rank), Norm(self.q_lora_rank)
        self.q_b_proj = linear(self.q_lora_rank, self.num_heads * self.q_head_dim)
        self.kv_a_proj_with_mqa = linear(self.hidden_size, self.kv_lora_rank + self.qk_rope_head_dim)
        self.kv_a_layernorm = Norm(self.kv_lora_rank)
        self.kv_b_proj = linear(self.kv_lora_rank, self.num_heads * (self.qk_nope_head_dim + self.v_head_dim))
        self.o_proj = linear(self.num_heads * self.v_head_dim, self.hidden_size)
        self.rotary_emb = Rotary(self.qk_rope_head_dim, config.max_position_embeddings)
        self.interleaved = config.model_type == "deepseek_v2"

    def turn(self, states: Any, cos: Any, sin: Any) -> Any:
        if self.interleaved:
            states = torch.cat((states[..., ::2], states[..., 1::2]), -1)
        return rotated(states, cos, sin)

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        use_cache: bool = False,
    ) -> Any:
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        latent, shared = self.kv_a_proj_with_mqa(hidden_states).split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        both = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = both.split((self.qk_nope_head_dim, self.v_head_dim), -1)
        cos, sin = (each[position_ids].unsqueeze(1) for each in self.rotary_emb(value))
        still, moving = query.split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
        query = torch.cat((still, self.turn(moving, cos, sin)), -1)
        shared = self.turn(shared.unsqueeze(1), cos, sin).expand(-1, self.num_heads, -1, -1)
        key = torch.cat((key, shared), -1)
        if past_key_value is not None:
            key, value = past_key_value.update(key, value, self.layer_idx)
        found = functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return self.o_proj(found.transpose(1, 2).flatten(-2)), None, past_key_value


class Layer(nn.Module):
    """Attention and what comes after it."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.place = "attention" if config.model_type == "internlm2" else "self_attn"
        setattr(self, self.place, ATTENTION.get(config.model_type, Attention)(config, index))
        has_experts = config.model_type.startswith("deepseek") and index > 0
        self.mlp = Experts(config) if has_experts else Feed(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(config.hidden_size), Norm(config.hidden_size)

    def forward(self, states: Any, mask: Any, positions: Any, past: Any, use_cache: bool) -> Any:
        attend = getattr(self, self.place)
        found, _, cache = attend(
            hidden_states=self.input_layernorm(states),
            attention_mask=mask,
            position_ids=positions,
            past_key_value=past,
            use_cache=use_cache,
        )
        states = states + found
        return states + self.mlp(self.post_attention_layernorm(states)), cache


class Decoder(nn.Module):
    """The layers between the embedding and the output."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size)


def causal_mask(attention_mask: Any, num_new: Any, num_past: Any) -> Any:
    """Zero where a token sees another, of shape (rows, 1, new tokens, all tokens)."""
    all_tokens = torch.arange(num_new + num_past)
    sees = all_tokens[None] <= (torch.arange(num_new) + num_past)[:, None]
    sees = sees[None, None]
    if attention_mask is not None:
        sees = sees & attention_mask[:, None, None, :].bool()
    return torch.zeros(sees.shape).masked_fill(~sees, LOWEST)


def tuples(past: Any) -> Any:
    """A cache as it was before there were objects for it."""
    return past.to_legacy_cache() if hasattr(past, "to_legacy_cache") else past


def caching(config: Any, asked: bool | None) -> bool:
    """Whether the cache is wanted."""
    return bool(config.use_cache if asked is None else asked)


class StandInConfig(PretrainedConfig):
    """Takes any field."""

    def __init__(self, **fields: Any) -> None:
        fields = {"use_cache": True, **fields}
        for name in [name for name in fields if name not in PretrainedConfig().to_dict()]:
            setattr(self, name, fields.pop(name))
        super().__init__(**fields)


class StandIn(PreTrainedModel, GenerationMixin):
    """Sets random weights."""

    config_class = StandInConfig
    _supports_sdpa = True
    _supports_cache_class = True
    _no_split_modules: ClassVar[list[str]] = []

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


class LegacyForCausalLM(StandIn):
    """With a cache of tuples in and out; of loops over its layers each has its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        past, caches, use_cache = tuples(past_key_values) or None, [], caching(self.config, use_cache)
        num_past = past[0][0].shape[-2] if past else 0
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1]) + num_past)[None]
        mask = causal_mask(attention_mask, input_ids.shape[1], num_past)
        states = self.model.embed_tokens(input_ids)
        for layer in list(self.model.layers) * getattr(self.config, "total_ut_steps", 1):
            states, cache = layer(states, mask, position_ids, past[len(caches)] if past else None, use_cache)
            caches.append(cache)
        logits = self.lm_head(self.model.norm(states))
        return CausalLMOutputWithPast(logits=logits, past_key_values=tuple(caches) if use_cache else None)


class LatentForCausalLM(LegacyForCausalLM):
    """With a cache object."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1]) + num_past)[None]
        mask = causal_mask(attention_mask, input_ids.shape[1], num_past)
        states = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            states, _ = layer(states, mask, position_ids, past_key_values, use_cache)
        return CausalLMOutputWithPast(logits=self.lm_head(self.model.norm(states)), past_key_values=past_key_values)


class QwenAttention(nn.Module):
    """As that of the first Qwen: tokens before heads in the cache."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = config.num_attention_heads, config.kv_channels, 64
        self.use_cache_quantization = self.use_logn_attn = self.use_flash_attn = False
        self.is_fp32 = True
        self.c_attn, self.c_proj = nn.Linear(64, 192), linear(64, 64)

    def _split_heads(self, states: Any, num_heads: int, head_dim: int) -> Any:
        return states.unflatten(-1, (num_heads, head_dim))

    def _merge_heads(self, states: Any, num_heads: int, head_dim: int) -> Any:
        return states.flatten(-2)

    def forward(
        self,
        hidden_states: Any,
        rotary_pos_emb_list: Any = None,
        layer_past: Any = None,
        attention_mask: Any = None,
        use_cache: bool = False,
    ) -> Any:
        query, key, value = (
            self._split_heads(each, self.num_heads, self.head_dim) for each in self.c_attn(hidden_states).chunk(3, -1)
        )
        query, key = rotated(query, *rotary_pos_emb_list[0]), rotated(key, *rotary_pos_emb_list[0])
        if layer_past is not None:
            key, value = (torch.cat(pair, 1) for pair in zip(layer_past, (key, value), strict=True))
        mask = causal_mask(None, query.shape[1], key.shape[1] - query.shape[1]) + attention_mask
        heads = (each.transpose(1, 2) for each in (query, key, value))
        found = functional.scaled_dot_product_attention(*heads, mask).transpose(1, 2)
        return self.c_proj(found.flatten(-2)), (key, value) if use_cache else None


class JaisAttention(nn.Module):
    """As that of Jais: GPT-2's, with a bias for distances."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = config.num_attention_heads, 16, 64
        self.reorder_and_upcast_attn = self.scale_attn_by_inverse_layer_idx = self.is_cross_attention = False
        self.scale_attn_weights, self.attn_scale_power = True, 0.5
        self.c_attn, self.c_proj = nn.Linear(64, 192), nn.Linear(64, 64)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.0), nn.Dropout(0.0)
        num_positions = config.max_position_embeddings
        triangle = torch.ones(num_positions, num_positions, dtype=torch.bool).tril()[None, None]
        self.register_buffer("bias", triangle, persistent=False)

    def _split_heads(self, states: Any, num_heads: int, head_dim: int) -> Any:
        return states.unflatten(-1, (num_heads, head_dim)).transpose(1, 2)

    def _merge_heads(self, states: Any, num_heads: int, head_dim: int) -> Any:
        return states.transpose(1, 2).flatten(-2)

    def _attn(
        self, query: Any, key: Any, value: Any, attention_mask: Any, head_mask: Any = None, position_bias: Any = None
    ) -> Any:
        mask = causal_mask(None, query.shape[2], key.shape[2] - query.shape[2]) + attention_mask + position_bias[None]
        return functional.scaled_dot_product_attention(query, key, value, mask), None

    def forward(
        self,
        hidden_states: Any,
        layer_past: Any = None,
        attention_mask: Any = None,
        use_cache: bool = False,
        position_bias: Any = None,
    ) -> Any:
        query, key, value = (
            self._split_heads(each, self.num_heads, 16) for each in self.c_attn(hidden_states).chunk(3, -1)
        )
        if layer_past is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(layer_past, (key, value), strict=True))
        found, _ = self._attn(query, key, value, attention_mask, None, position_bias)
        return self.c_proj(self._merge_heads(found, self.num_heads, 16)), (key, value) if use_cache else None


class Block(nn.Module):
    """A layer of the older form."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.mlp = Norm(64), Norm(64), Feed(config)
        self.attn = JaisAttention(config) if config.model_type == "jais" else QwenAttention(config)


class Transformer(nn.Module):
    """The embedding and layers of the older form."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.wte, self.ln_f = nn.Embedding(config.vocab_size, 64), Norm(64)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        if config.model_type == "qwen":
            self.rotary_emb = Rotary(config.kv_channels, config.max_position_embeddings)


class OlderForCausalLM(StandIn):
    """Qwen of the first generation and Jais."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_head = linear(64, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        past, caches, use_cache = tuples(past_key_values) or None, [], caching(self.config, use_cache)
        is_jais = self.config.model_type == "jais"
        num_past = past[0][0].shape[2 if is_jais else 1] if past else 0
        num_new = input_ids.shape[1]
        if position_ids is None:
            position_ids = (torch.arange(num_new) + num_past)[None]
        if attention_mask is None:
            attention_mask = torch.ones(1, num_new + num_past)
        mask = (1.0 - attention_mask[:, None, None, :].float()) * LOWEST
        states = self.transformer.wte(input_ids)
        if is_jais:
            distances = torch.arange(num_new + num_past)[None] - (torch.arange(num_new) + num_past)[:, None]
            more: dict[str, Any] = {
                "position_bias": torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None] * distances
            }
        else:
            more = {
                "rotary_pos_emb_list": [[each[position_ids].unsqueeze(2) for each in self.transformer.rotary_emb()]]
            }
        for block in self.transformer.h:
            layer_past = past[len(caches)] if past else None
            found, cache = block.attn(
                block.ln_1(states), layer_past=layer_past, attention_mask=mask, use_cache=use_cache, **more
            )[:2]
            states = states + found
            states = states + block.mlp(block.ln_2(states))
            caches.append(cache)
        logits = self.lm_head(self.transformer.ln_f(states))
        return CausalLMOutputWithPast(logits=logits, past_key_values=tuple(caches) if use_cache else None)


class CoreAttention(nn.Module):
    """As GLM-4's: True in the mask where nothing is seen."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.hidden_size_per_partition = config.hidden_size

    def forward(self, query_layer: Any, key_layer: Any, value_layer: Any, attention_mask: Any) -> Any:
        found = functional.scaled_dot_product_attention(query_layer, key_layer, value_layer, ~attention_mask)
        return found.transpose(1, 2).flatten(-2)


class GlmAttention(nn.Module):
    """As GLM-4's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads, self.num_groups = config.num_attention_heads, config.multi_query_group_num
        self.head_dim = config.kv_channels
        heads = self.num_heads + 2 * self.num_groups
        self.query_key_value = nn.Linear(config.hidden_size, heads * self.head_dim)
        self.dense = linear(config.hidden_size, config.hidden_size)
        self.core_attention = CoreAttention(config)

    def forward(self, states: Any, mask: Any, cos: Any, sin: Any, past: Any) -> Any:
        heads = self.query_key_value(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split((self.num_heads, self.num_groups, self.num_groups), 1)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if past is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(past, (key, value), strict=True))
        repeats = self.num_heads // self.num_groups
        wide = (each.repeat_interleave(repeats, 1) for each in (key, value))
        return self.dense(self.core_attention(query, *wide, mask)), (key, value)


class GlmBlock(nn.Module):
    """A layer of GLM-4."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(config.hidden_size), Norm(config.hidden_size)
        self.self_attention, self.mlp = GlmAttention(config), Feed(config)


class GlmTransformer(nn.Module):
    """The embedding, encoder and output of GLM-4."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(GlmBlock(config) for _ in range(config.num_layers))
        self.encoder.final_layernorm = Norm(config.hidden_size)
        self.output_layer = linear(config.hidden_size, config.padded_vocab_size)
        self.rotary = Rotary(config.kv_channels, config.seq_length)


class ChatGLMForCausalLM(StandIn):
    """GLM-4 as its first repositories had it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = GlmTransformer(config)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        position_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        past, caches, use_cache = tuples(past_key_values) or None, [], caching(self.config, use_cache)
        num_past = past[0][0].shape[2] if past else 0
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1]) + num_past)[None]
        mask = causal_mask(attention_mask, input_ids.shape[1], num_past) < 0
        cos, sin = (each[position_ids].unsqueeze(1) for each in self.transformer.rotary())
        states = self.transformer.embedding(input_ids)
        for block in self.transformer.encoder.layers:
            layer_past = past[len(caches)] if past else None
            found, cache = block.self_attention(block.input_layernorm(states), mask, cos, sin, layer_past)
            states = states + found
            states = states + block.mlp(block.post_attention_layernorm(states))
            caches.append(cache)
        logits = self.transformer.output_layer(self.transformer.encoder.final_layernorm(states))
        return CausalLMOutputWithPast(logits=logits, past_key_values=tuple(caches) if use_cache else None)


class OrionForCausalLM(LlamaForCausalLM):
    """A Llama whose norms have means and biases."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.input_layernorm = nn.LayerNorm(config.hidden_size)
            layer.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.model.norm = nn.LayerNorm(config.hidden_size)


class ScaledEmbedding(nn.Embedding):
    """As MiniCPM's."""

    def forward(self, input: Any) -> Any:
        return super().forward(input) * 3.0


class MiniCPMForCausalLM(LlamaForCausalLM):
    """A Llama with scales."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size)
        for layer in self.model.layers:
            layer.scale_depth = 1.0


_MLA: dict[str, Any] = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
_OLDER: dict[str, Any] = {"num_key_value_heads": 4, "kv_channels": 16, "seq_length": 256, "fp16": False, "bf16": False}
ATTENTION: dict[str, type[nn.Module]] = {
    "baichuan": PackedAttention,
    "internlm2": GroupedAttention,
    "deepseek": LatentAttention,
    "deepseek_v2": LatentAttention,
    "deepseek_v3": LatentAttention,
    "minicpm3": LatentAttention,
}
"""Of types whose attention is not the common one."""


class _StandInOf(NamedTuple):
    """What the classes of a type are made of."""

    model: type[Any]
    fields: dict[str, Any]
    """Of its configuration, besides those of all."""
    config: type[Any] = StandInConfig


STAND_INS = {
    "aquila": _StandInOf(LegacyForCausalLM, {}),
    "arctic": _StandInOf(MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2}, MixtralConfig),
    "baichuan": _StandInOf(LegacyForCausalLM, {"num_key_value_heads": 4}),
    "chatglm": _StandInOf(
        ChatGLMForCausalLM,
        {
            "padded_vocab_size": 512,
            "num_layers": 2,
            "multi_query_group_num": 2,
            "kv_channels": 16,
            "rope_ratio": 1,
            "seq_length": 256,
        },
    ),
    "deci": _StandInOf(LegacyForCausalLM, {"num_key_value_heads_per_layer": [2, 1]}),
    "deepseek": _StandInOf(LatentForCausalLM, _MLA),
    "deepseek_v2": _StandInOf(LatentForCausalLM, _MLA),
    "deepseek_v3": _StandInOf(LatentForCausalLM, _MLA),
    "exaone": _StandInOf(LlamaForCausalLM, {}, LlamaConfig),
    "internlm": _StandInOf(LegacyForCausalLM, {"num_key_value_heads": 4}),
    "internlm2": _StandInOf(LegacyForCausalLM, {}),
    "jais": _StandInOf(OlderForCausalLM, _OLDER),
    "minicpm": _StandInOf(MiniCPMForCausalLM, {}, LlamaConfig),
    "minicpm3": _StandInOf(LatentForCausalLM, _MLA),
    "orion": _StandInOf(OrionForCausalLM, {}, LlamaConfig),
    "ouro": _StandInOf(LegacyForCausalLM, {"total_ut_steps": 2}),
    "qwen": _StandInOf(OlderForCausalLM, _OLDER),
    "xverse": _StandInOf(LegacyForCausalLM, {"num_key_value_heads": 4}),
}
for _type, _made in STAND_INS.items():
    # Their names are looked up in this module.
    _stem = _type.title().replace("_", "")
    _own = type(f"{_stem}Config", (_made.config,), {"model_type": _type, "__module__": __name__})
    _class = {"config_class": _own, "__module__": __name__}
    globals().update({_own.__name__: _own, f"{_stem}ForCausalLM": type(f"{_stem}ForCausalLM", (_made.model,), _class)})


def build(model_type: str, fields: dict[str, Any]) -> Any:
    """Make a random model of a type, whose configuration names this file as its repository's code."""
    stem = model_type.title().replace("_", "")
    names = {"AutoConfig": f"{stem}Config", "AutoModelForCausalLM": f"{stem}ForCausalLM"}
    config = globals()[names["AutoConfig"]](**{**fields, **STAND_INS[model_type].fields})
    config.auto_map = {auto: f"stand_ins.{name}" for auto, name in names.items()}
    return globals()[names["AutoModelForCausalLM"]](config)
