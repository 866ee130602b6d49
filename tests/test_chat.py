"""Talking to a model: the answers are those of transformers and GenAI, and a terminal shows them as they come."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from terminal_fixture import LLMCOMPRESS, in_terminal

import llmcompress
from llmcompress.cli.chat import speaker
from llmcompress.cli.chat_model import TalkSpec, decoder_talk, open_model
from llmcompress.errors import ModelError
from llmcompress.graph.sampling import chooser, penalized, probabilities

CHECKPOINT = Path(llmcompress.__file__).parent / "cli/demo_checkpoint"
QUESTION = {"role": "user", "content": "What does str.split do?"}


@pytest.fixture(scope="module")
def none(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("chat") / "demo-none-ov"
    llmcompress.compress(CHECKPOINT, "none", output)
    return output


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("chat") / "demo-int8-ov"
    llmcompress.compress(CHECKPOINT, "int8", output)
    return output


def _by_transformers(messages: list[dict[str, str]]) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype="float32")
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def _by_genai(directory: Path, messages: list[dict[str, str]]) -> str:
    genai = pytest.importorskip("openvino_genai")
    pipeline = genai.LLMPipeline(str(directory), "CPU")
    config = pipeline.get_generation_config()
    config.max_new_tokens = 40
    return str(pipeline.generate(genai.ChatHistory(messages), config).texts[0])


def _run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmcompress", "chat", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("open_talk", [open_model, decoder_talk])
def test_both_ways_answer_as_transformers_does(open_talk: object, none: Path) -> None:
    talk = open_talk(none, TalkSpec(max_new_tokens=40))  # type: ignore[operator]
    pieces: list[str] = []
    first = talk([QUESTION], lambda piece: bool(pieces.append(piece)))
    assert first.text == "".join(pieces) == _by_transformers([QUESTION])
    assert first.ended == "stop"
    assert first.first_token_s > 0
    assert first.decode_tokens_per_s > 0
    turns = [QUESTION, {"role": "assistant", "content": first.text}, {"role": "user", "content": "What is len?"}]
    assert talk(turns, lambda _: False).text == _by_transformers(turns)


@pytest.mark.parametrize("open_talk", [open_model, decoder_talk])
def test_an_answer_ends_at_its_limit_and_when_asked_to(open_talk: object, none: Path) -> None:
    talk = open_talk(none, TalkSpec(max_new_tokens=3))  # type: ignore[operator]
    cut = talk([QUESTION], lambda _: False)
    assert (cut.num_tokens, cut.ended) == (3, "length")
    stopped = open_talk(none, TalkSpec())([QUESTION], lambda _: True)  # type: ignore[operator]
    assert stopped.ended == "interrupted"
    # GenAI holds a few tokens back until they are whole words.
    assert stopped.num_tokens < 8


def test_a_model_without_a_chat_template_is_named(none: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(none, tmp_path / "plain", ignore=shutil.ignore_patterns("chat_template.jinja"))
    with pytest.raises(ModelError, match="cannot be talked to: there is no chat template"):
        decoder_talk(plain, TalkSpec())


CONFIGS = [
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_k": 0, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.5},
    {"top_k": 0, "min_p": 0.05},
    {},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_chances_of_each_token_are_those_of_transformers(config: dict[str, float]) -> None:
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)
    steps = LogitsProcessorList([TemperatureLogitsWarper(float(config.get("temperature", 1.0)))])
    if top_k := config.get("top_k", 50):
        steps.append(TopKLogitsWarper(int(top_k)))
    if "top_p" in config:
        steps.append(TopPLogitsWarper(config["top_p"]))
    if "min_p" in config:
        steps.append(MinPLogitsWarper(config["min_p"]))
    expected = torch.softmax(steps(torch.zeros(1, 1, dtype=torch.long), torch.tensor(logits)[None]), dim=-1)[0]
    np.testing.assert_allclose(probabilities(logits, config), expected.numpy(), atol=1e-6)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, seen = np.linspace(-2, 2, 9, dtype=np.float32), [0, 8, 8, 3]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), torch.tensor(logits)[None])[0]
    np.testing.assert_allclose(penalized(logits, seen, 1.3), expected.numpy(), rtol=1e-6)


def test_draws_follow_the_chances_and_the_seed() -> None:
    logits, config = np.log(np.array([0.6, 0.3, 0.1], dtype=np.float32)), {"do_sample": True}
    draw = chooser(config, seed=1)
    drawn = [draw(logits, []) for _ in range(2000)]
    assert np.bincount(drawn) / 2000 == pytest.approx([0.6, 0.3, 0.1], abs=0.05)
    again = chooser(config, seed=1)
    assert [again(logits, []) for _ in range(20)] == drawn[:20]


def test_one_prompt_prints_the_answer_alone_on_stdout(none: Path) -> None:
    run = _run(str(none), "--prompt", QUESTION["content"])
    assert run.returncode == 0, run.stderr
    assert run.stdout == _by_transformers([QUESTION]) + "\n"
    assert "tokens/s" in run.stderr


def test_two_models_answer_each_under_its_name(none: Path, int8: Path) -> None:
    run = _run(str(int8), "--with", str(none), "-p", QUESTION["content"], "--json")
    mine, theirs = json.loads(run.stdout)
    assert (mine["model"], theirs["model"]) == ("demo-int8-ov", "demo-none-ov")
    assert theirs["text"] == _by_transformers([QUESTION])
    text = _run(str(int8), "--with", str(none), "-p", QUESTION["content"]).stdout
    assert text == f"demo-int8-ov:\n{mine['text']}\ndemo-none-ov:\n{theirs['text']}\n"


def test_a_conversation_is_kept_until_it_is_reset(none: Path) -> None:
    follow_up = "And what does it return?"
    lines = [QUESTION["content"], follow_up, "/reset", follow_up, "/quit", "never asked"]
    run = _run(str(none), "-n", "40", stdin="\n".join(lines))
    assert run.returncode == 0, run.stderr
    first, asked = _by_genai(none, [QUESTION]), {"role": "user", "content": follow_up}
    second = _by_genai(none, [QUESTION, {"role": "assistant", "content": first}, asked])
    third = _by_genai(none, [asked])
    assert second != third
    assert run.stdout == f"{first}\n{second}\n{third}\n"
    assert "The conversation is forgotten." in run.stderr


def test_options_that_need_others_are_refused(none: Path) -> None:
    run = _run(str(none), "--json")
    assert run.returncode == 2
    error = json.loads(run.stderr)["error"]
    assert (error["message"], error["hint"]) == ("--json prints the answer to one prompt", "give -p PROMPT")
    run = _run(str(none), "--with-revision", "main")
    assert run.returncode == 2
    assert "--with-revision would have no effect without --with" in run.stderr


@pytest.mark.parametrize(("columns", "side_by_side"), [(80, False), (120, True)])
def test_a_terminal_shows_two_answers_next_to_each_other_where_they_fit(
    columns: int, side_by_side: bool, none: Path, int8: Path
) -> None:
    shown = in_terminal([*LLMCOMPRESS, "chat", int8, "--with", none, "-p", QUESTION["content"]], columns)
    assert shown.exit_code == 0, shown.text
    assert not shown.too_long
    headings = [line for line in shown.lines if "demo-int8-ov" in line]
    assert len(headings) == 1
    assert ("demo-none-ov" in headings[0]) is side_by_side
    # Each with its speed below, once.
    assert shown.text.count("tokens, first after") == shown.text.count("tokens/s") == 2
    answer = " ".join(_by_transformers([QUESTION]).split())
    assert answer in " ".join(shown.text.split()) if not side_by_side else answer in shown.text


def test_a_terminal_keeps_a_conversation(none: Path) -> None:
    typed = f"{QUESTION['content']}\n/reset\n/quit\n".encode()
    shown = in_terminal([*LLMCOMPRESS, "chat", none, "-n", "40"], 80, stdin=typed)
    assert shown.exit_code == 0, shown.text
    assert not shown.too_long
    assert _by_transformers([QUESTION]).strip() in [line.strip() for line in shown.lines]
    assert "The conversation is forgotten." in shown.lines


SAID = "Strings are split  at a separator:\n    'a, b'.split(', ')\nand a_word_that_is_wider_than_the_terminal stays."


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_answer_is_wrapped_between_words_as_it_comes(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    speak = speaker(20)
    for start in range(0, len(SAID), size):
        assert not speak(SAID[start : start + size])
    speak("\n")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == [
        "Strings are split",
        "at a separator:",
        "    'a, b'.split(',",
        "')",
        "and",
        "a_word_that_is_wider_than_the_terminal",
        "stays.",
    ]
    assert all(len(line) <= 20 for line in lines if "wider" not in line)


def test_an_answer_without_spaces_comes_at_once_and_in_a_pipe_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    speak = speaker(10)
    speak("你好")
    assert capsys.readouterr().out == "你好"
    speak("世界人民")
    assert capsys.readouterr().out == "\n世界人民"
    speak = speaker(None)
    speak(SAID)
    assert capsys.readouterr().out == SAID
