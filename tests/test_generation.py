"""An artifact opens as it is in Optimum and in OpenVINO GenAI, generates, and stops by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llmcompress
from llmcompress.cli.demo import PROMPT
from llmcompress.graph.decoding import compile_decoder, eos_token_ids, generate

MAX_NEW_TOKENS = 120
# GenAI computes attention in another order; with rounded activations or cache that decides between likely tokens.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.fixture(scope="module")
def artifact(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifacts") / "int8"
    llmcompress.compress(demo_checkpoint, "int8", directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(artifact: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(artifact)


@pytest.fixture(scope="module")
def prompt_ids(tokenizer: Any) -> list[int]:
    messages = [{"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture(scope="module")
def by_optimum(artifact: Path, prompt_ids: list[int]) -> list[int]:
    import torch
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(artifact, ov_config=EXACT)
    output = model.generate(
        input_ids=torch.tensor([prompt_ids]),
        attention_mask=torch.ones((1, len(prompt_ids)), dtype=torch.int64),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
    )
    return [int(token) for token in output[0, len(prompt_ids) :]]


def test_optimum_generates_and_stops(artifact: Path, by_optimum: list[int]) -> None:
    assert 1 < len(by_optimum) < MAX_NEW_TOKENS
    assert by_optimum[-1] in eos_token_ids(artifact)


def test_genai_generates_the_same_and_stops(artifact: Path, tokenizer: Any, by_optimum: list[int]) -> None:
    openvino_genai = pytest.importorskip("openvino_genai", reason="needs the extra genai")
    pipeline = openvino_genai.LLMPipeline(str(artifact), "CPU", **EXACT)
    config = pipeline.get_generation_config()
    assert set(config.stop_token_ids) >= eos_token_ids(artifact)
    config.max_new_tokens = MAX_NEW_TOKENS
    config.do_sample = False
    config.repetition_penalty = 1.0
    config.apply_chat_template = True
    answer = str(pipeline.generate(PROMPT, config))
    assert answer == tokenizer.decode(by_optimum, skip_special_tokens=True)


def test_plain_loop_generates_the_same(artifact: Path, prompt_ids: list[int], by_optimum: list[int]) -> None:
    generation = generate(
        compile_decoder(artifact, properties=EXACT),
        prompt_ids,
        eos=eos_token_ids(artifact),
        max_new_tokens=MAX_NEW_TOKENS,
    )
    assert generation.stopped
    assert [*generation.token_ids] == by_optimum[:-1]


def test_plain_loop_ends_at_the_limit(artifact: Path, prompt_ids: list[int], by_optimum: list[int]) -> None:
    generation = generate(
        compile_decoder(artifact, properties=EXACT), prompt_ids, eos=eos_token_ids(artifact), max_new_tokens=3
    )
    assert not generation.stopped
    assert list(generation.token_ids) == by_optimum[:3]
