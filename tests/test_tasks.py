"""Task scores by lm-evaluation-harness on a task of our own, against torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_fixture import spec_of

import llmcompress
from llmcompress.errors import DataError, ModelError, ResourceError, UsageError

QUESTIONS = (
    ("The sky is", ("blue", "xylophone"), 0),
    ("He opened the", ("qqqq", "door"), 1),
    ("It was one of the most", ("important", "of"), 1),
    ("Two and two are", ("the", "zebra"), 0),
)
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUESTIONS]
    data = tmp_path / "tiny.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK.format(data=data))
    return tmp_path


def accuracy_by_torch(model_dir: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    right = 0
    for question, choices, answer in QUESTIONS:
        scores = []
        for choice in choices:
            context = tokenizer(question)["input_ids"]
            whole = tokenizer(f"{question} {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
            start = len(context)
            scores.append(sum(float(logits[i - 1, whole[i]]) for i in range(start, len(whole))))
        right += scores.index(max(scores)) == answer
    return right / len(QUESTIONS)


@pytest.mark.slow
def test_a_task_is_scored_and_stored(
    tasks: Path, artifact: Callable[[str], Path], ref_model: Path, wikitext: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    report = llmcompress.evaluate(
        artifact("int8"), spec_of(wikitext, num_windows=1), tasks=["tiny_choice"], task_path=tasks
    )
    (score,) = report.tasks
    assert (score.task, score.metric, score.num_samples, score.version) == ("tiny_choice", "acc", 4, "1.0")
    assert score.value == accuracy_by_torch(ref_model) == 0.75


@pytest.mark.parametrize("word", ["<|added|>", "blue"])
def test_a_task_whose_text_has_tokens_without_an_embedding(word: str) -> None:
    """Refused as it is encoded, one text or a batch; the harness's encoder is the tokenizer's."""
    import torch

    from llmcompress.evaluation import tasks as room

    ids = {"blue": [1, 2], "<|added|>": [1, 512]}

    class Harness:
        def __init__(self, **options: Any) -> None:
            assert options == {"pretrained": "model", "device": "cpu"}

        def tok_encode(self, text: str, left_truncate_len: int | None = None) -> list[int]:
            return ids[text]

        def tok_batch_encode(self, texts: list[str]) -> Any:
            return torch.tensor([ids[text] for text in texts]), None

    source = SimpleNamespace(path="model", config={"vocab_size": 512})
    model = room.ModelOnDevice(SimpleNamespace(source=source), "CPU", {})  # type: ignore[arg-type]
    harness = room._harness_model(Harness, model)
    calls = (
        lambda: harness.tok_encode(word, left_truncate_len=9),
        lambda: harness.tok_batch_encode([word])[0].tolist(),
    )
    for call in calls:
        if word == "blue":
            assert call() in ([1, 2], [[1, 2]])
        else:
            with pytest.raises(ModelError, match=r"a task's text gives token ids .* not have: 512; it has 512"):
                call()


@pytest.mark.parametrize(
    ("error", "message", "names"),
    [
        (UsageError, "has no task no_such_task", ["no_such_task"]),
        pytest.param(DataError, "stopped: ", ["tiny_choice"], marks=pytest.mark.slow),
    ],
)
def test_tasks_that_cannot_be_had(
    error: type[Exception], message: str, names: list[str], tasks: Path, artifact: Callable[[str], Path], wikitext: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    (tasks / "tiny.jsonl").unlink()
    with pytest.raises(error, match=message):
        llmcompress.evaluate(artifact("int8"), spec_of(wikitext, num_windows=1), tasks=names, task_path=tasks)


def test_what_tasks_need(
    artifact: Callable[[str], Path], ref_model: Path, wikitext: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "lm_eval" else find_spec(name, *more)

    with pytest.raises(UsageError, match="task scores are measured on an OpenVINO directory, this is a checkpoint"):
        llmcompress.evaluate(ref_model, spec_of(wikitext), tasks=["x"])
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ResourceError, match="need lm-evaluation-harness, which is not installed"):
        llmcompress.evaluate(artifact("int8"), spec_of(wikitext), tasks=["x"])
