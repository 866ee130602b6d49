"""Compressed versions of a trained model, text, and plain logits, for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llmcompress
from llmcompress.data.protocols import EvaluationWindows, evaluation_windows
from llmcompress.data.tokens import TextEncoder, text_encoder
from llmcompress.loaders.resolving import resolve
from llmcompress.spec import EvalSpec, Recipe

SEQ_LEN = 128
NUM_WINDOWS = 12


def recipes() -> dict[str, Recipe]:
    """What the reference model is compressed with, by name."""
    return {
        "none": llmcompress.load_recipe("none"),
        "int8": llmcompress.load_recipe("int8"),
        "int4": llmcompress.load_recipe("int4", ["weights.group_size=64"]),
        "int2": Recipe(name="int2", weights={"mode": "int2_sym", "group_size": 64}),
        "u4-cache": Recipe(name="u4-cache", method="none", runtime={"kv_cache_precision": "u4"}),
    }


def spec_of(text: Path, **options: Any) -> EvalSpec:
    values: dict[str, Any] = {"seq_len": SEQ_LEN, "num_windows": NUM_WINDOWS, "precision": "pinned"}
    values |= {"backend": "stateful", **options}
    return EvalSpec(dataset=str(text), **{name: value for name, value in values.items() if value is not None})


def encoder_of(model: Path) -> TextEncoder:
    return text_encoder(resolve(model))


def windows_of(model: Path, text: Path, **options: Any) -> EvaluationWindows:
    spec = spec_of(text, **options)
    return evaluation_windows([text.read_text(encoding="utf-8")], spec, encoder_of(model))


def all_logits(directory: Path, token_ids: NDArray[np.int64], properties: dict[str, str]) -> NDArray[np.float64]:
    """Logits of one window from the plain model, ``[tokens, vocabulary]``: none of our graph changes."""
    import openvino as ov

    compiled = ov.Core().compile_model(directory / "openvino_model.xml", "CPU", properties)
    inputs = {
        "input_ids": token_ids[None],
        "attention_mask": np.ones((1, len(token_ids)), dtype=np.int64),
        "position_ids": np.arange(len(token_ids), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    names = {name for port in compiled.inputs for name in port.get_names()}
    result = compiled({name: value for name, value in inputs.items() if name in names})["logits"]
    logits: NDArray[np.float64] = result[0].astype(np.float64)
    return logits


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
