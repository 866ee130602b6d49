"""Write the models next to this file and what is expected of them: llama.cpp's own quantizers, and its tokens.

npm pack @node-llama-cpp/linux-x64@3.21.1, unpacked: LLAMA_CPP=package/bins/linux-x64 python make.py, with the package
gguf (0.19.0) and the tests on the path. Each model has the logits that torch computes from gguf's dequantization.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gguf_fixture import Array, Blocks, write_gguf  # noqa: E402
from llama_cpp import logits, quantized, token_ids  # noqa: E402
from tiny_models import build_checkpoint  # noqa: E402

IDS = np.arange(1, 33).reshape(2, 16)
TYPES = {
    # Blocks of 32.
    "legacy": {
        "token_embd": ("Q8_0",),
        "output": ("IQ4_NL",),
        "attn_q": ("Q4_0", "Q4_1"),
        "attn_k": ("Q5_0", "F16"),
        "attn_v": ("Q5_1", "BF16"),
        "attn_output": ("MXFP4", "Q4_1"),
        "ffn_gate": ("Q4_0", "Q8_0"),
        "ffn_up": ("Q4_1", "Q5_1"),
        "ffn_down": ("IQ4_NL", "Q5_0"),
    },
    # Blocks of 256; the other matrices have shorter rows.
    "k-quants": {
        "token_embd": ("Q6_K",),
        "attn_q": ("Q4_K", "Q2_K"),
        "attn_k": ("Q5_K", "Q6_K"),
        "attn_v": ("Q6_K", "Q3_K"),
        "ffn_gate": ("Q3_K", "Q4_K"),
        "ffn_up": ("Q2_K", "IQ4_XS"),
        "attn_output": ("Q8_0", "Q4_0"),
        "ffn_down": ("Q8_0", "Q5_1"),
    },
    "dequantized": {
        "attn_q": ("IQ2_XXS", "IQ3_XXS"),
        "attn_k": ("IQ1_S", "TQ1_0"),
        "attn_v": ("IQ2_S", "TQ2_0"),
        "ffn_gate": ("IQ3_S", "IQ2_XS"),
        "ffn_up": ("IQ1_M", "Q8_0"),
        "attn_output": ("Q8_0",),
        "ffn_down": ("Q8_0",),
        "token_embd": ("IQ4_XS",),
    },
}
PRE = (
    "default", "llama-bpe", "dbrx", "qwen2", "stablelm2", "gpt-2", "starcoder", "smollm", "falcon", "tekken", "gpt-4o"
)  # fmt: skip
TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  leading and   many spaces ",
    "line\nbreak\n\nparagraph\r\ncrlf\ttab\n \n x",
    "def f(x):\n    return {'k': x[0] ** 2}  # note 12345 67",
    "It's what WE'LL do; they DON'T. i'm CamelCase HTTPServer",
    "naïve café — “quotes” … Straße",
    "日本語のテキスト、你好，世界。한국어 मानक हिन्दी ไทย",
    "😀 👨‍👩‍👧 1,000,000 3.14159 ½ ²³",
    "a<|end|>b <|end|> c",
    "<html>&amp; [INST] !!! ... --- ===",
    "x" * 40,
)


def store(types: dict[str, tuple[str, ...]]) -> object:
    def blocks(name: str, values: Array) -> Blocks | None:
        parts = name.split(".")
        kinds = types.get(parts[-2])
        if kinds is None:
            return None
        kind = gguf.GGMLQuantizationType[kinds[int(parts[1]) % len(kinds) if parts[0] == "blk" else 0]]
        if kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
            return gguf.quantize(values, kind), kind
        elements, size_bytes = gguf.GGML_QUANT_SIZES[kind]
        return quantized(kind.value, values.shape[1] // elements * size_bytes, values), kind

    return blocks


def expected(checkpoint: Path, model: Path) -> Array:
    """Logits of transformers' class with the floats that gguf's own dequantization gives."""
    import torch
    from gguf_fixture import as_transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    tensors = {name: torch.from_numpy(values) for name, values in as_transformers(model, config).items()}
    torch_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch_model.load_state_dict(tensors, strict=False)
    torch_model.tie_weights()
    with torch.no_grad():
        return torch_model(torch.from_numpy(IDS)).logits.numpy()


def sizes(name: str) -> dict[str, int | bool]:
    if name == "legacy":
        return {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "hidden_size": 256, "intermediate_size": 32, "head_dim": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 288,
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, types in TYPES.items():
            fields = {"vocab_size": 320, "num_hidden_layers": 2, "max_position_embeddings": 128, **sizes(name)}
            checkpoint = build_checkpoint(Path(scratch) / name, dtype="float32", **fields)
            model = write_gguf(checkpoint, HERE / f"{name}.gguf", store(types))
            np.save(HERE / f"{name}.npy", expected(checkpoint, model).astype(np.float32))
            theirs = logits(model, IDS[0].tolist(), int(fields["vocab_size"]))
            print(name, model.stat().st_size, np.abs(theirs - np.load(HERE / f"{name}.npy")[0]).max())
        write_tokens(Path(scratch))


def write_tokens(scratch: Path) -> None:
    from gguf_vocabularies import byte_level, sentencepiece

    found = {"texts": TEXTS, "vocabularies": {"gpt2": byte_level(TEXTS), "llama": sentencepiece(scratch)}, "ids": {}}
    told = {pre: ("gpt2", {"tokenizer.ggml.pre": pre}) for pre in PRE}
    told |= {"llama": ("llama", {}), "llama-no-prefix": ("llama", {"tokenizer.ggml.add_space_prefix": False})}
    for name, (kind, more) in told.items():
        vocabulary = found["vocabularies"][kind]
        size = len(vocabulary["tokenizer.ggml.tokens"])
        fields = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        checkpoint = build_checkpoint(scratch / kind, dtype="float32", **fields)
        model = write_gguf(checkpoint, scratch / f"{name}.gguf", **vocabulary, **more)
        found["ids"][name] = token_ids(model, list(TEXTS))
    (HERE / "tokens.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
