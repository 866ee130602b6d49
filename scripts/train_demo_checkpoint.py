"""Train the small model that the package carries, on the documentation inside every Python installation.

One topic or docstring is one document, put between `<s>` and `<|endoftext|>`; half of them are also asked about through
the chat template, so that a short chat ends by itself. Some documents are held out for evaluation.

    python scripts/train_demo_checkpoint.py

Same machine, Python, library versions and threads: same weights. Another Python has another text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import shlex
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo_corpus import DOCUMENT_BREAK, Document, answer, documents, split

EOS, BOS = "<|endoftext|>", "<s>"
SHAPE: dict[str, int] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
# No filters and no tests beyond `==`: every chat-template engine renders this alike.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
QUESTIONS = ("What is {}?", "What does {} do?", "Explain {}.", "Describe {}.")
PEAK_RATE, LAST_RATE, WARMUP = 3e-3, 1e-4, 60
BATCH, LENGTH = 2, 512
SHORT = 256  # the first three quarters of the steps see pieces of this length: attention costs less


def train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer that puts `<s>` first, with the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], special_tokens=[EOS, BOS], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair="$A $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The token ids of each text as it stands; `<s>` and `<|endoftext|>` are written in the text."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def epoch(tokenizer: Any, train: list[Document], seed: int) -> Any:
    """Windows [n, LENGTH + 1] of token ids over all documents and chats about half of them, shuffled by the seed."""
    import torch

    rng = random.Random(seed)
    texts = [BOS + document.text + EOS for document in train]
    for document in train:
        told = answer(document)
        if told and rng.random() < 0.5:
            name = rng.choice(("`{}`", "{}")).format(document.name)
            chat = [
                {"role": "user", "content": rng.choice(QUESTIONS).format(name)},
                {"role": "assistant", "content": told},
            ]
            texts.append(tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n"))
    rng.shuffle(texts)
    stream = [token for ids in token_ids(tokenizer, texts) for token in ids]
    windows = torch.tensor(stream[: len(stream) // (LENGTH + 1) * (LENGTH + 1)]).view(-1, LENGTH + 1)
    order = list(range(len(windows)))
    rng.shuffle(order)
    return windows[order]


def held_out_loss(model: Any, tokenizer: Any, texts: list[str]) -> tuple[float, int]:
    """Mean loss in nats per token, and the tokens predicted: every document in pieces of LENGTH, its end included."""
    import torch

    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids in token_ids(tokenizer, [BOS + text + EOS for text in texts]):
            for start in range(0, len(ids) - 1, LENGTH):
                piece = torch.tensor([ids[start : start + LENGTH + 1]])
                logits = model(piece[:, :-1]).logits[0]
                total += torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
                count += piece.shape[1] - 1
    model.train()
    return total / count, count


def unigram_loss(tokenizer: Any, train: list[str], held_out: list[str]) -> float:
    """Nats per token of the best guess without context: the training documents' token counts, plus one each."""
    seen = Counter(token for ids in token_ids(tokenizer, [text + EOS for text in train]) for token in ids)
    told = [token for ids in token_ids(tokenizer, [text + EOS for text in held_out]) for token in ids]
    total = sum(seen.values()) + SHAPE["vocab_size"]
    return -sum(math.log((seen[token] + 1) / total) for token in told) / len(told)


def learning_rate(step: int, steps: int) -> float:
    """A straight rise, then half a cosine."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    fall = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * fall


def train_model(
    model: Any, tokenizer: Any, train: list[Document], held_out: list[str], steps: int, seed: int
) -> list[dict[str, float]]:
    """Train in place; return the curve: the mean loss over the last 100 steps, and every 500 the held-out loss."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    losses: list[float] = []
    curve: list[dict[str, float]] = []
    queue, epochs, began = torch.empty(0, LENGTH + 1, dtype=torch.long), 0, time.monotonic()
    for step in range(steps):
        if len(queue) < BATCH:
            queue, epochs = torch.cat([queue, epoch(tokenizer, train, seed * 1000 + epochs)]), epochs + 1
        batch, queue = queue[:BATCH], queue[BATCH:]
        length = SHORT if step < steps * 3 // 4 else LENGTH
        logits = model(batch[:, :-1].reshape(-1, length)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            recent = losses[-100:]
            point = {"step": step + 1, "train_loss": round(sum(recent) / len(recent), 4)}
            if (step + 1) % 500 == 0 or step + 1 == steps:
                point["heldout_loss"] = round(held_out_loss(model, tokenizer, held_out)[0], 4)
            curve.append(point)
            print(f"epoch {epochs} {point} {time.monotonic() - began:.0f} s", flush=True)
    return curve


def main() -> None:
    """Collect the text, train the tokenizer and the model, write the checkpoint and what it reached."""
    package = Path(__file__).resolve().parents[1] / "llmcompress"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=package / "cli" / "demo_checkpoint")
    parser.add_argument("--held-out-text", type=Path, default=package / "data" / "heldout.txt")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    began = time.monotonic()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time and guards nothing here
    corpus = documents()
    train, held_out = split(corpus)
    train_texts, held_out_texts = [d.text for d in train], [d.text for d in held_out]
    digest = hashlib.sha256(json.dumps(corpus).encode()).hexdigest()
    tokenizer = train_tokenizer(train_texts)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = LlamaConfig(**SHAPE, **ends, rms_norm_eps=1e-6, tie_word_embeddings=False, dtype="float32")
    model = LlamaForCausalLM(config)
    sizes = [sum(len(t.encode()) for t in texts) for texts in (train_texts, held_out_texts)]
    print(f"{len(train)} documents, {sizes[0]} bytes; held out {len(held_out)}, {sizes[1]} bytes", flush=True)
    curve = train_model(model, tokenizer, train, held_out_texts, options.steps, options.seed)

    # What is measured is what is saved: the weights after rounding to bfloat16.
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in sorted(model.state_dict().items())}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    loss, tokens = held_out_loss(model, tokenizer, held_out_texts)
    options.output.mkdir(parents=True, exist_ok=True)
    save_file(weights, options.output / "model.safetensors", metadata={"format": "pt"})
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(options.output)
    GenerationConfig(**ends, do_sample=False, max_new_tokens=128).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    # transformers 5 writes its own name for this class, which 4 does not know; both know the older one.
    named = options.output / "tokenizer_config.json"
    named.write_text(named.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"), newline="\n")
    options.held_out_text.write_text(DOCUMENT_BREAK.join(held_out_texts) + "\n", encoding="utf-8", newline="\n")
    record = {
        "command": shlex.join(["python", "scripts/train_demo_checkpoint.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("safetensors", "tokenizers", "torch", "transformers")},
        "seed": options.seed,
        "threads": options.threads,
        "steps": options.steps,
        "tokens_per_step": BATCH * LENGTH,
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus": {"sha256": digest, "documents": len(corpus), "train_bytes": sizes[0]},
        "heldout": {"documents": len(held_out), "bytes": sizes[1], "tokens": tokens},
        "train_loss": curve[-1]["train_loss"],
        "heldout_loss": round(loss, 4),
        "heldout_perplexity": round(math.exp(loss), 3),
        "heldout_bits_per_byte": round(loss / math.log(2) * tokens / sizes[1], 4),
        "unigram_perplexity": round(math.exp(unigram_loss(tokenizer, train_texts, held_out_texts)), 3),
        "curve": curve,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    text = json.dumps(record, indent=2) + "\n"
    (options.output / "training.json").write_text(text, encoding="utf-8", newline="\n")
    print(text)


if __name__ == "__main__":
    main()
