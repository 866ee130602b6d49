"""A tokenizer that has more tokens than the model has embeddings."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.benchmarking.openvino_runtime import random_ids
from llmcompress.errors import ModelError
from llmcompress.loaders.token_ids import num_embeddings
from llmcompress.spec import Calibration, EvalSpec, load_recipe
from llmcompress.system.progress import Progress

NUM_EMBEDDINGS = 266
"""As many as the tokenizer of ``tiny_models`` has tokens; those that a test adds follow."""
TURN = "{% for m in messages %}<|turn|>{{ m['content'] }}<|end|>{% endfor %}"
TEXT = "the quick brown fox and the lazy dog " * 80


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "model", vocab_size=NUM_EMBEDDINGS, num_hidden_layers=1)


def _edit(checkpoint: Path, change: Callable[[Any], object]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    change(tokenizer)
    tokenizer.save_pretrained(checkpoint)


def _write(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _puts_around(tokenizer: Any) -> None:
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|turn|> $A", special_tokens=[("<|turn|>", NUM_EMBEDDINGS)]
    )


USES: dict[str, tuple[Callable[[Any], object], str]] = {
    "template": (lambda tokenizer: setattr(tokenizer, "chat_template", TURN), "its chat template"),
    "eos": (lambda tokenizer: setattr(tokenizer, "eos_token", "<|turn|>"), "its end-of-text token"),
    "frame": (_puts_around, "what it puts around every text"),
}


@pytest.mark.parametrize("use", USES)
def test_a_token_that_is_used_and_has_no_embedding_is_refused_before_the_work(
    use: str, checkpoint: Path, tmp_path: Path
) -> None:
    change, what = USES[use]
    _edit(checkpoint, change)
    stages: list[str] = []

    def note(progress: Progress) -> None:
        stages.append(progress.stage)

    expected = rf"has 266 embeddings: {what} needs '<\|turn\|>' \(id 266\)"
    with pytest.raises(ModelError, match=expected):
        llmcompress.compress(checkpoint, "int8", tmp_path / "out", progress=note)
    assert "load and trace" not in stages
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match=expected) as caught:
        llmcompress.load(checkpoint)
    assert "resize the model's embeddings" in caught.value.hint


def test_a_token_that_nothing_uses_is_warned_of_and_texts_with_it_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    _edit(checkpoint, lambda tokenizer: None)
    command = [sys.executable, "-m", "llmcompress", "compress", checkpoint, "-r", "int8", "-o", tmp_path / "out"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert told.startswith("warning: model: the model has 266 embeddings; the tokenizer has tokens without one")
    assert told.endswith("'<|turn|>' (id 266)\n")
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_text(TEXT)
    marked.write_text(TEXT + "<|turn|>")
    assert llmcompress.evaluate(tmp_path / "out", EvalSpec(dataset=str(plain), seq_len=64, num_windows=2))
    expected = "gives token ids that the model does not have: 266; it has 266 embeddings"
    with pytest.raises(ModelError, match=expected):
        llmcompress.evaluate(tmp_path / "out", EvalSpec(dataset=str(marked), seq_len=64))
    recipe = load_recipe("int4-awq-se", ["calibration.num_samples=2", "calibration.seq_len=32"])
    recipe = recipe.model_copy(update={"calibration": Calibration(dataset=str(marked), num_samples=2, seq_len=32)})
    with pytest.raises(ModelError, match=expected):
        llmcompress.compress(checkpoint, recipe, tmp_path / "calibrated")


def test_a_template_of_an_artifact_is_refused_before_the_model_is_read(checkpoint: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    llmcompress.compress(checkpoint, "int8", foreign, tokenizer=False)
    (foreign / "llmcompress.json").unlink()  # as another tool would have written it
    _edit(checkpoint, lambda tokenizer: setattr(tokenizer, "chat_template", TURN))
    for path in [*checkpoint.glob("tokenizer*"), checkpoint / "chat_template.jinja"]:
        shutil.copy(path, foreign)
    (tmp_path / "text.txt").write_text(TEXT)
    stages: list[str] = []
    with pytest.raises(ModelError, match="does not have: 266"):
        llmcompress.evaluate(
            foreign,
            EvalSpec(dataset=str(tmp_path / "text.txt"), seq_len=64),
            progress=lambda progress: stages.append(progress.stage),
        )
    assert set(stages) == {"read the text"}


@pytest.mark.parametrize("tokenizer", [True, False])
def test_end_of_text_ids_that_the_model_does_not_have(
    tokenizer: bool, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(checkpoint / "config.json", eos_token_id=500)
    _write(checkpoint / "generation_config.json", eos_token_id=[500, 501])
    if not tokenizer:
        with pytest.raises(ModelError, match=r"eos_token_id gives token ids .* not have: 500, 501; it has 266"):
            llmcompress.compress(checkpoint, "int8", tmp_path / "out", tokenizer=False)
        _write(checkpoint / "generation_config.json", eos_token_id=[257, 500])
    with caplog.at_level(logging.WARNING):
        llmcompress.compress(checkpoint, "int8", tmp_path / "out", tokenizer=tokenizer)
    assert "model: the model has 266 embeddings; eos_token_id names 500" in caplog.text


def test_a_benchmark_draws_ids_that_the_model_has(tmp_path: Path) -> None:
    for size, most in ((50, 50), (5000, 1000)):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}))
        ids = random_ids(tmp_path, (2, 5000), 0)
        assert (ids.min(), ids.max()) == (0, most - 1)


def test_the_number_of_embeddings() -> None:
    assert num_embeddings({"vocab_size": 7}) == 7
    assert num_embeddings({"text_config": {"vocab_size": 9}}) == 9
    assert num_embeddings({"vocab_size": 7, "padded_vocab_size": 8}) == 8
    assert num_embeddings({"vocab_size": "many"}) is None
