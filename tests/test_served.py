"""Answers as a server gives them: the same as GenAI's on either backend, and what counts as a fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmcompress
from llmcompress.evaluation import served as served_module
from llmcompress.evaluation.measurement import ModelOnDevice
from llmcompress.evaluation.served import Served, ends_in_a_loop, fault, judge_served, script, served_check
from llmcompress.graph.decoding import Generation, generate
from llmcompress.graph.device import PINNED
from llmcompress.system.progress import silent

Artifacts = Callable[[str], Path]
PROMPTS = [list(range(40, 60)), list(range(300, 340)), [5, 17, 300]]


def test_a_loop_is_a_phrase_three_times_over() -> None:
    assert ends_in_a_loop([9, 1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert ends_in_a_loop([7, 7, 7])
    assert not ends_in_a_loop([1, 2, 3, 1, 2, 3, 1, 2, 4])
    assert not ends_in_a_loop([1, 2, 1, 2])
    assert not ends_in_a_loop([])
    assert ends_in_a_loop([*range(32)] * 3)
    assert not ends_in_a_loop([*range(33)] * 3)


def test_the_script_is_that_of_most_letters() -> None:
    assert script("Paris, 巴黎.") == "LATIN"
    assert script("首都 (Paris)") == "LATIN"
    assert script("法国的首都是巴黎") == "CJK"
    assert script("Столица - Париж") == "CYRILLIC"
    assert script("首都はパリです") == "CJK"
    assert script("1, 2, 3!") is None


def letters(token_ids: Any) -> str:
    return "".join(chr(each) for each in token_ids)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Generation((65, 66), True), None),
        # What ends by itself has ended, whatever it repeats.
        (Generation((65,) * 9, True), None),
        (Generation((65, 66) * 9, False), "loops"),
        (Generation(tuple(range(65, 75)), False), "does not end in 10 tokens"),
        (Generation((0x4E00, 0x4E01), True), "is answered in CJK letters, not LATIN ones"),
        (Generation((), True), None),
    ],
)
def test_faults(answer: Generation, found: str | None) -> None:
    original = Generation((65, 66, 67), True)
    assert fault(answer, original, letters) == found
    assert fault(Generation((0x4E00, 0x4E01), True), original, None) is None


def test_one_fault_of_one_backend_fails_the_check() -> None:
    good, bad = Generation((65,), True), Generation((65, 66) * 9, False)
    original = {"Is it?": good, "Is it not?": good}
    check = judge_served({"stateful": Served((good, good), True), "paged": Served((good, bad), True)}, original)
    assert check.passed is False
    assert check.value == "2 of 2 stateful, 1 of 2 paged"
    assert check.detail == "by OpenVINO GenAI; paged: 'Is it not?' loops"
    alone = judge_served({"stateful": Served((good, good), False)}, original)
    assert (alone.passed, alone.detail) == (True, "by our own loop")


def test_what_the_original_does_not_answer_is_not_asked() -> None:
    check = served_check((), PROMPTS, [Generation((1, 2), False)] * 3, frozenset({0}), silent)
    assert check.passed is None
    assert check.detail == "the original answers none to its end"


def test_genai_answers_as_our_loop_does_on_either_backend(artifact: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned, and so without near ties; a frequent token is taken for the end, to have answers that stop."""
    pytest.importorskip("openvino_genai", reason="needs the extra genai")
    monkeypatch.setattr(served_module, "MAX_NEW_TOKENS", 40)
    loaded = llmcompress.load(artifact("int8"))
    free = generate(ModelOnDevice(loaded, "CPU", PINNED).compiled(), PROMPTS[0], eos=frozenset(), max_new_tokens=40)
    eos = frozenset({0, free.token_ids[20]})
    found = []
    for backend in ("stateful", "paged"):
        model = ModelOnDevice(loaded, "CPU", PINNED, backend)  # type: ignore[arg-type]
        by_genai = served_module._answers(model, PROMPTS, eos)
        assert by_genai.decode is not None
        assert by_genai.decode(free.token_ids[:8]).strip()
        monkeypatch.setattr(served_module.importlib.util, "find_spec", lambda name: None)
        ours = served_module._answers(model, PROMPTS, eos)
        monkeypatch.undo()
        monkeypatch.setattr(served_module, "MAX_NEW_TOKENS", 40)
        assert (by_genai.by_genai, ours.by_genai) == (True, False)
        assert by_genai.generations == ours.generations
        found.append(ours.generations)
    assert found[0] == found[1]
    assert any(answer.stopped for answer in found[0])


def test_what_genai_cannot_open_is_asked_by_our_loop(
    artifact: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino_genai = pytest.importorskip("openvino_genai", reason="needs the extra genai")
    bare = tmp_path / "bare"
    ignored = shutil.ignore_patterns("openvino_tokenizer*", "openvino_detokenizer*", "llmcompress.json", "eval.json")
    shutil.copytree(artifact("int8"), bare, ignore=ignored)
    model = ModelOnDevice(llmcompress.load(bare, tokenizer=False), "CPU", {})
    monkeypatch.setattr(served_module, "MAX_NEW_TOKENS", 20)
    # Without a tokenizer of its own it still answers, and only the writing is not looked at.
    found = served_module._answers(model, PROMPTS[:1], frozenset({0}))
    assert (found.by_genai, found.decode) == (True, None)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("unsupported")

    monkeypatch.setattr(openvino_genai, "LLMPipeline", refuse)
    again = served_module._answers(model, PROMPTS[:1], frozenset({0}))
    assert not again.by_genai
    assert len(again.generations[0].token_ids) == 20
