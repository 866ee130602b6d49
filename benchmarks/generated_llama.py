"""Write a Llama checkpoint of a real shape with random weights: for speed and memory, where the values do not matter.

python benchmarks/generated_llama.py /tmp/llama-1.1b
python benchmarks/generated_llama.py /tmp/llama-0.2b --layers 8 --hidden 1024 --intermediate 2816
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

TOKENIZER = Path(__file__).parent.parent / "llmcompress" / "cli" / "demo_checkpoint"
STANDARD_DEVIATION = 0.02


def generate(
    directory: Path, *, layers: int = 22, hidden: int = 2048, intermediate: int = 5632, vocabulary: int = 32000
) -> Path:
    """Write the checkpoint (bf16, one file) unless it is there already; 22 layers of 2048 are 1.1 B parameters."""
    if (directory / "model.safetensors").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 512),
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        bos_token_id=1,
        eos_token_id=0,
    )
    config.save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    keys_and_values = hidden // config.num_attention_heads * config.num_key_value_heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys_and_values, hidden),
        "self_attn.v_proj": (keys_and_values, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * STANDARD_DEVIATION).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": matrix(config.vocab_size, hidden),
        "lm_head.weight": matrix(config.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = matrix(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(TOKENIZER / name, directory / name)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def body_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how large the model is."""
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)


def main() -> None:
    """Write one checkpoint to the directory given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    body_arguments(parser)
    parser.add_argument("--vocabulary", type=int, default=32000)
    args = parser.parse_args()
    generate(
        args.directory,
        layers=args.layers,
        hidden=args.hidden,
        intermediate=args.intermediate,
        vocabulary=args.vocabulary,
    )


if __name__ == "__main__":
    main()
