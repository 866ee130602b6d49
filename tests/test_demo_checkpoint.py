"""The bundled checkpoint is trained, complete, ends its answers, and its README tells what was measured."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmcompress.data.texts import BUNDLED_TEXT

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "llmcompress" / "cli" / "demo_checkpoint"
PROMPTS = (
    "What does `textwrap.wrap` do?",
    "What is `list`?",
    "Explain `shutil.copytree`.",
    "What does str.split do?",
    "What is the `for` statement?",
    "Describe `json.dumps`.",
    "What does os.path.join do?",
    "What is `threading.Lock`?",
)


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


def held_out() -> list[str]:
    return BUNDLED_TEXT.read_text(encoding="utf-8").strip("\n").split("\n\n\n")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def mean_loss(model: Any, sequences: list[list[int]]) -> float:
    """Nats per predicted token, each sequence in pieces of 512 predictions; short pieces are padded on the right."""
    import torch

    pieces = [ids[start : start + 513] for ids in sequences for start in range(0, len(ids) - 1, 512)]
    pieces.sort(key=len)
    losses: list[float] = []
    with torch.no_grad():
        for first in range(0, len(pieces), 16):
            batch = pieces[first : first + 16]
            width = max(map(len, batch))
            told = model(torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])).logits.log_softmax(-1)
            for row, ids in zip(told, batch, strict=True):
                losses += (-row[torch.arange(len(ids) - 1), ids[1:]]).tolist()
    return sum(losses) / len(losses)


def with_ends(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [[*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id] for text in texts]


def test_the_weights_are_small_bfloat16_finite_and_learned_everywhere() -> None:
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}
    count = sum(math.prod(entry["shape"]) for entry in tensors.values())
    assert 2e6 <= count <= 4e6
    assert count == read_json("training.json")["parameters"]
    # Group sizes up to 128 must divide every matrix, or a group-wise recipe would skip layers.
    assert all(entry["shape"][-1] % 128 == 0 for entry in tensors.values())

    from safetensors.torch import load_file

    for name, values in load_file(path).items():
        assert values.float().abs().max() < 100, name  # NaN and infinity fail this too
        assert values.float().std() > 0, name  # a norm that was never trained is all ones


def test_everything_that_a_checkpoint_needs_is_there_and_agrees_about_the_ends() -> None:
    config, generation, tokens = (read_json(f"{n}.json") for n in ("config", "generation_config", "tokenizer_config"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 0)
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 0)
    assert (tokens["bos_token"], tokens["eos_token"]) == ("<s>", "<|endoftext|>")
    assert generation["do_sample"] is False
    vocabulary = read_json("tokenizer.json")["model"]["vocab"]
    assert vocabulary["<s>"] == 1
    assert vocabulary["<|endoftext|>"] == 0
    assert len(vocabulary) == config["vocab_size"]


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x ** 2\n", "naïve — “quoted” 日本語 🎉\t!", "  two  blanks  ", ""]
)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_chat_template_puts_the_start_first_and_ends_the_assistant_turns(tokenizer: Any) -> None:
    chat = [
        {"role": "user", "content": "What is x?"},
        {"role": "assistant", "content": "A name."},
        {"role": "user", "content": "And y?"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s>user: What is x?\nassistant: A name.<|endoftext|>\nuser: And y?\nassistant:"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (ids.count(1), ids.count(0)) == (1, 1)


def test_the_held_out_text_is_predicted_as_recorded_and_far_better_than_from_counts(model: Any, tokenizer: Any) -> None:
    sequences = with_ends(tokenizer, held_out())
    assert sum(len(ids) - 1 for ids in sequences) == read_json("training.json")["heldout"]["tokens"]
    perplexity = math.exp(mean_loss(model, sequences))
    assert perplexity == pytest.approx(read_json("training.json")["heldout_perplexity"], rel=0.01)
    # No model without context can beat the held-out text's own token frequencies.
    counts = Counter(token for ids in sequences for token in ids[1:])
    total = sum(counts.values())
    without_context = math.exp(-sum(n / total * math.log(n / total) for n in counts.values()))
    assert perplexity < without_context / 4


def test_an_untrained_model_of_the_same_shape_would_be_noticed(model: Any, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(model.config).float().eval()
    sequences = with_ends(tokenizer, held_out()[:12])
    assert mean_loss(untrained, sequences) > mean_loss(model, sequences) + 2


def test_a_short_chat_ends_by_itself(model: Any, tokenizer: Any) -> None:
    answers = {}
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        told = model.generate(**ids, max_new_tokens=120)[0, ids["input_ids"].shape[1] :]
        answers[prompt] = tokenizer.decode(told)
    ended = [text for text in answers.values() if text.endswith("<|endoftext|>")]
    assert len(ended) >= 6, answers
    words = [re.findall(r"[A-Za-z]{2,}", text.removesuffix("<|endoftext|>")) for text in ended]
    assert all(len(own) >= 3 for own in words), answers


def test_the_readme_tells_the_recorded_numbers() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    record = read_json("training.json")
    for key in ("train_loss", "heldout_loss", "heldout_perplexity", "heldout_bits_per_byte", "unigram_perplexity"):
        assert f"{record[key]}" in text, key
    assert f"{record['parameters']:,}" in text
    for value in (record["command"], record["python"], record["versions"]["torch"], record["corpus"]["sha256"]):
        assert value in text, value
    for path in (FOLDER / "model.safetensors", BUNDLED_TEXT):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text, path.name
    assert "Python Software Foundation" in (FOLDER / "LICENSE-PYTHON.txt").read_text(encoding="utf-8")


def corpus_of_this_python() -> dict[str, Any]:
    """What `scripts/demo_corpus.py` collects, from a process of its own: parsing must import none of the modules."""
    code = (
        "import json, sys; from demo_corpus import documents, split; corpus = documents(); train, held = split(corpus);"
        "print(json.dumps({'corpus': corpus, 'train': [d.text for d in train], 'held_out': [d.text for d in held],"
        "'imported': sorted(sys.modules)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONIOENCODING": "utf-8"},
    )
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.slow
def test_the_text_comes_from_the_standard_library_and_the_held_out_part_was_not_trained_on() -> None:
    found = corpus_of_this_python()
    assert not {"turtle", "tkinter", "antigravity", "this"} & set(found["imported"])
    trained_lines = {line.strip() for text in found["train"] for line in text.split("\n")}
    for text in found["held_out"]:
        long = {line.strip() for line in text.split("\n")[1:] if len(line.strip()) >= 30}
        assert len(long & trained_lines) <= 0.1 * len(long), text[:80]
    record = read_json("training.json")
    if platform.python_version() != record["python"]:
        pytest.skip(f"the rest needs Python {record['python']}, whose documentation the model was trained on")
    assert hashlib.sha256(json.dumps(found["corpus"]).encode()).hexdigest() == record["corpus"]["sha256"]
    assert found["held_out"] == held_out()
