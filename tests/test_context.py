"""The context of a model, with its rope scaling, as vLLM reads it; and positions that change with the length."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from llmcompress.errors import UsageError
from llmcompress.evaluation import conversion
from llmcompress.evaluation.conversion import check_conversion
from llmcompress.evaluation.evaluate import evaluate
from llmcompress.loaders.context import ChangingRope, changing_rope, longest_context, require_context
from llmcompress.loaders.convertible import require_convertible
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.spec import EvalSpec
from llmcompress.spec.access import Access
from tests.tiny_models import build_checkpoint

STATED: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 4096}
FACTORS = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}


def source_of(config: dict[str, Any], **fields: Any) -> Source:
    return Source("checkpoint", "checkpoint", Path("m"), config, **fields)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 4096),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, 8192),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 16384),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}}, 32768),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}}, 4096),
        ({"rope_scaling": {"type": "su", "factor": 32.0}, "original_max_position_embeddings": 128}, 4096),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 32.0}}, 4096),
        (
            {"rope_parameters": {"full": {"rope_type": "linear", "factor": 8.0}, "sliding": {"rope_type": "default"}}},
            32768,
        ),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 4096),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": True}}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, 4096),
        ({"rope_scaling": [1]}, 4096),
    ],
)
def test_the_context_follows_the_scaling(config: dict[str, Any], expected: int) -> None:
    assert longest_context(source_of(STATED | config)) == expected


def test_a_configuration_without_a_context_has_none() -> None:
    assert longest_context(source_of({"rope_scaling": {"type": "linear", "factor": 4.0}})) is None
    assert longest_context(source_of({"n_positions": 1024})) == 1024


def test_a_given_context_goes_first_and_is_told_where_it_is_needed(caplog: pytest.LogCaptureFixture) -> None:
    wrong = source_of(STATED, max_context=8192)
    with caplog.at_level(logging.WARNING):
        require_context(wrong, 4096, "x")
        assert not caplog.text
        require_context(wrong, 5000, "x")
    assert "m: 5,000 tokens are more than its context of 4,096 by config.json; `max_context` allows" in caplog.text
    with pytest.raises(UsageError, match="x, the model's context is 8192") as caught:
        require_context(wrong, 9000, "x")
    assert caught.value.hint == "take fewer; if config.json states it wrong, give `max_context`"
    with pytest.raises(UsageError, match="the model's context is 128"):
        require_context(source_of(STATED, max_context=128), 200, "x")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_scaling": {"type": "su", **FACTORS}, "original_max_position_embeddings": 64}, ("longrope", 64)),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32}}, ("longrope", 32)),
        ({"rope_scaling": {"type": "longrope"}}, ("longrope", 4096)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("dynamic", 4096)),
        ({"rope_parameters": {"full": {"rope_type": "dynamic", "factor": 2.0}}}, ("dynamic", 4096)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, None),
        ({}, None),
    ],
)
def test_positions_that_change_with_the_length(config: dict[str, Any], expected: tuple[str, int] | None) -> None:
    assert changing_rope(STATED | config) == (expected and ChangingRope(*expected))


def longrope(directory: Path) -> Path:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **FACTORS}
    sizes = {"max_position_embeddings": 256, "original_max_position_embeddings": 64, "num_hidden_layers": 2}
    return build_checkpoint(directory, "phi3", **sizes, rope_parameters=rope)


def test_windows_beyond_a_change_are_fed_whole_unless_pieces_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = longrope(tmp_path / "phi")
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat, and the dog looked at it. " * 40)
    spec = {"dataset": str(text), "seq_len": 128, "num_windows": 2}
    with caplog.at_level(logging.WARNING):
        whole = evaluate(model, EvalSpec(**spec))
        told = caplog.text
        pieces = evaluate(model, EvalSpec(**spec, chunk=32))
    assert (whole.chunk, pieces.chunk) == (128, 32)
    assert "change beyond 64 tokens (longrope): windows are fed whole, as the runtime reads a prompt" in told
    assert "in pieces of 32 a window is another function than the whole prompt" in caplog.text


def test_the_conversion_check_goes_beyond_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    compared = conversion._by_openvino
    monkeypatch.setattr(
        conversion, "_by_openvino", lambda model, ids, end: (asked.append(len(ids)), compared(model, ids, end))[1]
    )
    assert check_conversion(longrope(tmp_path / "phi")).passed
    assert len(asked) == len(conversion.PROMPTS) + 1
    assert asked[-1] > 64 + 8


def test_what_a_graph_keeps_of_dynamic_positions_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = build_checkpoint(tmp_path / "m", "llama", num_hidden_layers=1, rope_parameters=rope)
    with caplog.at_level(logging.WARNING):
        require_convertible(resolve(model))
    assert "the converted graph keeps the frequencies of up to 256 tokens, and is another model than in" in caplog.text
    assert longest_context(resolve(model)) == 1024
    assert longest_context(resolve(model, Access(max_context=2048))) == 2048
    assert json.loads((model / "config.json").read_text())["max_position_embeddings"] == 256
