"""Builders of small random checkpoints: config, safetensors (also sharded), byte-level tokenizer, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 512
"""256 bytes, three special tokens, merged pairs and unused rows up to a round number."""

EOS_TOKEN = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {**_DECODER, "num_hidden_layers": 2, "num_experts_per_tok": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 32},
    "mistral": {**_DECODER, "sliding_window": None},
    "phi3": {**_DECODER, "original_max_position_embeddings": 256},
    "gpt_neox": {**{k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}, "intermediate_size": 512},
    "gpt2": {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 128,
        "n_layer": 5,
        "n_head": 4,
        "n_positions": 256,
        "tie_word_embeddings": True,
    },
    "opt": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "word_embed_proj_dim": 128,
        "ffn_dim": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "falcon": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "multi_query": True,
        "parallel_attn": True,
        "alibi": False,
        "bias": False,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "bloom": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "n_layer": 5,
        "n_head": 4,
        "tie_word_embeddings": True,
    },
    "mixtral": {**_EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {
        **_EXPERTS,
        "num_experts": 8,
        "moe_intermediate_size": 128,
        "head_dim": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
"""model_type -> the configuration of a model of one to two million parameters."""


def build_checkpoint(
    directory: Path,
    model_type: str = "llama",
    *,
    dtype: str = "bfloat16",
    max_shard_size: str | int = "5GB",
    tied: bool | None = None,
    seed: int = 0,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint of ``model_type`` and return its directory.

    ``dtype`` is a torch name (bfloat16, float16, float32); ``max_shard_size`` in bytes or as "200KB" makes several
    shards with an index; ``tied`` ties the output head to the embedding (None: as usual for the architecture);
    ``overrides`` replace fields of the configuration. Same arguments, same bytes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        **ARCHITECTURES[model_type],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
        **({} if tied is None else {"tie_word_embeddings": tied}),
        **overrides,
    }
    config = AutoConfig.for_model(model_type, **fields)
    config.dtype = getattr(torch, dtype)
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms of exactly one and biases of zero would be folded out of the graph
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    finally:
        torch.random.set_rng_state(generator_state)
    model.generation_config.eos_token_id = 257
    model.generation_config.pad_token_id = 258
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        write_tokenizer(directory, chat_template=CHAT_TEMPLATE)
    return directory


def write_tokenizer(
    directory: Path, *, chat_template: str | None = CHAT_TEMPLATE, named: dict[str, str] | None = None
) -> Any:
    """Write a byte-level BPE tokenizer (any text round-trips) with bos 256, eos 257, pad 258, and return it.

    ``named`` are further special tokens by what a processor calls them; their ids begin at 266.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(alphabet)}
    merged = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("a", "n"), ("\u0120", "t"), ("\u0120", "a")]
    specials = ("<|begin|>", EOS_TOKEN, "<|pad|>")
    more = tuple((named or {}).values())
    for token in (*specials, *(left + right for left, right in merged), *more):
        vocab[token] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merged))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*specials, *more)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=specials[0],
        eos_token=specials[1],
        pad_token=specials[2],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        **({"extra_special_tokens": named} if named else {}),
    )
    if chat_template is not None:
        fast.chat_template = chat_template
    fast.save_pretrained(directory)
    return fast


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint directory."""
    parsed: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return parsed
