"""Small vocabularies, trained on a few sentences, as GGUF's metadata holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZE = 600
CORPUS = (
    "The quick brown fox jumps over the lazy dog, and it's what they'll do; we don't. 12345 1000 2026 3.14159",
    "def f(x): return {'k': x[0] ** 2}  # note",
    "Hello, world! Hello there.   Many   spaces\n\nparagraphs\n    indented\ttabs",
    "CamelCase HTTPServer THEY'LL naïve café Straße",
    "!!! ... --- === <html> &amp; [INST]",
)


def byte_level(texts: tuple[str, ...]) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    # Merges across what any of the ways to split leaves whole, so that each way gives other tokens.
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 2, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    trained.train_from_iterator((*CORPUS, *texts) * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    tokens += ["<|start|>", "<|end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.padding_token_id": len(tokens) - 1,
    }


def sentencepiece(scratch: Path) -> dict[str, Any]:
    import sentencepiece as sp

    (scratch / "corpus.txt").write_text("\n".join(CORPUS * 3), encoding="utf-8")
    sp.SentencePieceTrainer.train(
        input=str(scratch / "corpus.txt"),
        model_prefix=str(scratch / "pieces"),
        vocab_size=378,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|end|>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    found = sp.SentencePieceProcessor(model_file=str(scratch / "pieces.model"))
    count = found.get_piece_size()

    def kind(number: int) -> int:
        if found.IsUnknown(number):
            return 2
        if found.IsControl(number):
            return 3
        if found.IsByte(number):
            return 6
        return 4 if found.IdToPiece(number) == "<|end|>" else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [found.IdToPiece(number) for number in range(count)],
        "tokenizer.ggml.scores": [float(found.GetScore(number)) for number in range(count)],
        "tokenizer.ggml.token_type": [kind(number) for number in range(count)],
        "tokenizer.ggml.bos_token_id": found.bos_id(),
        "tokenizer.ggml.eos_token_id": found.eos_id(),
        "tokenizer.ggml.unknown_token_id": found.unk_id(),
        "tokenizer.ggml.padding_token_id": found.unk_id(),
    }
