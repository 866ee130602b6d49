"""How a GGUF file scales rotary positions, as ``rope_scaling`` of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.gguf.facts import Facts, short
from llmcompress.loaders.quantized.packed import ORIGINAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

ReadVector = Callable[[str], "NDArray[Any]"]
"""Gives a small tensor of numbers by its name."""

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration holds."""


def rope_scaling(facts: Facts, config: Mapping[str, Any], read: ReadVector) -> dict[str, Any] | None:
    """The scaling that a file states, or has tensors of; None: there is none.

    Raises:
        ModelError: It is one that transformers has no setting for.
    """
    kind = facts.get("rope.scaling.type")
    if "rope_factors_long.weight" in facts.tensors:
        return _longrope(facts, read)
    if "rope_freqs.weight" in facts.tensors:
        return _llama3(facts, config, read)
    if kind in (None, "none"):
        return None
    factor = facts.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise facts.wrong("rope.scaling.type", "none, linear, yarn or longrope")
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.count("rope.scaling.original_context_length"),
    }
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if facts.get(f"rope.scaling.{key}") is not None:
            scaling[name] = facts.number(f"rope.scaling.{key}")
    attention = facts.number("rope.scaling.attn_factor", 1.0)
    return scaling if attention == 1 else scaling | {"attention_factor": attention * (0.1 * math.log(factor) + 1)}


def _longrope(facts: Facts, read: ReadVector) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": facts.count("rope.scaling.original_context_length"),
    }
    for name in ("long", "short"):
        values = _vector(facts, f"rope_factors_{name}.weight", facts.rotated // 2, read)
        scaling[f"{name}_factor"] = [short(value) for value in values]
    if facts.get("rope.scaling.attn_factor") is not None:
        scaling["attention_factor"] = facts.number("rope.scaling.attn_factor")
    return scaling


def _vector(facts: Facts, name: str, length: int, read: ReadVector) -> NDArray[Any]:
    import numpy as np

    tensor = facts.tensors.get(name)
    if tensor is None or tensor.dtype != "F32" or tensor.shape != (length,):
        raise ModelError(f"{name} is no vector of {length} numbers", where="tensors", hint="download the file again")
    values = read(name)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ModelError(f"{name} holds other than positive numbers", where="tensors", hint="download the file again")
    return values


def _llama3(facts: Facts, config: Mapping[str, Any], read: ReadVector) -> dict[str, Any] | None:
    """The settings of Llama 3's scaling, of which the file holds the result: what each frequency is divided by."""
    import numpy as np

    factors = _vector(facts, "rope_freqs.weight", facts.rotated // 2, read)
    if (factors == 1).all():
        return None
    factor, original, low, high = short(float(factors.max())), 8192, 1.0, 4.0
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, facts.rotated, 2) / facts.rotated)
    share = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    expected = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))
    if not np.allclose(factors, expected, rtol=1e-4):
        raise ModelError(
            "the factors in rope_freqs.weight are not those of Llama 3, and transformers has no setting for others",
            where="tensors",
            hint=ORIGINAL,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
