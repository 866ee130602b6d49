"""Quantized checkpoint -> ``ov.Model`` with the checkpoint's own codes; and the same with the floats they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.model import keep_alive, memory_owners
from llmcompress.loaders.checkpoint import Given, clone_model, convert_checkpoint
from llmcompress.loaders.quantized.constants import dequantize_constants, put_constants
from llmcompress.loaders.quantized.experts import one_expert
from llmcompress.loaders.quantized.linear_layers import use_linear_layers
from llmcompress.loaders.quantized.packed import PackedWeight
from llmcompress.loaders.quantized.slim_stacks import SlimStacks, slim
from llmcompress.loaders.quantized.source_weights import SourceWeights, stand_ins
from llmcompress.loaders.source import Source

if TYPE_CHECKING:
    import openvino as ov


class KeptWeight(NamedTuple):
    """A weight whose codes are in the graph."""

    format: str
    """What its source stores it as, for people."""
    packed: PackedWeight


class KeptWeights(NamedTuple):
    """What a graph keeps of a quantized source."""

    method: str
    """``quant_method`` of the source's configuration."""
    settings: Mapping[str, Any]
    """What the configuration says of the quantization."""
    weights: Mapping[str, KeptWeight]
    """By the names of their constants."""


def convert_quantized(
    source: Source, found: SourceWeights, scratch_dir: Path, *, allow_nonfinite: bool = False
) -> tuple[ov.Model, KeptWeights | None]:
    """Convert a quantized checkpoint, its codes kept as they are.

    The plain model's class is traced with untouched memory in place of the quantized weights; then their constants are
    replaced. No weight is ever there in floating point.

    Args:
        source: A checkpoint whose files are there.
        found: Its quantized weights.
        scratch_dir: As of ``convert_checkpoint``.
        allow_nonfinite: As of ``SourceWeights.repacked``.

    Returns:
        The graph, and what it keeps of the source's codes; None where all of them are floats.

    Raises:
        ModelError: As ``convert_checkpoint``, or a weight is not in the graph as a linear layer's.
            Or one is NaN or infinite, which is not allowed.
    """
    with stand_ins(source, found) as given:
        slimmed: list[SlimStacks] = []

        def after_load(loaded: Any) -> None:
            slimmed.append(slim(loaded, given.stacks))
            use_linear_layers(loaded, given.transposed)

        model = convert_checkpoint(
            given.directory,
            scratch_dir,
            given=Given(None, given.tensors, found.zero_biases, after_load),
        )
        packed = found.repacked(allow_nonfinite=allow_nonfinite)
        formats = {weight.name: weight.format for weight in found.weights if weight.is_quantized}
        names = dict(given.names)
        for address, (stack, number) in slimmed[-1].matrices.items():
            expert = names[address] = f"{stack}.{number}"
            packed[expert] = one_expert(packed[stack], number)
            if stack in formats:
                formats[expert] = formats[stack]
        for stack in {stack for stack, _ in slimmed[-1].matrices.values()}:
            del packed[stack]
        placed = put_constants(model, packed, names, slimmed[-1])
    keep_alive(model, (memory_owners(model), placed.owners))
    kept = {
        constant: KeptWeight(formats[name], weight)
        for constant, (name, weight) in placed.weights.items()
        if name in formats
    }
    return clone_model(model), KeptWeights(found.method, found.settings, kept) if kept else None


def dequantized_model(model: ov.Model, kept: KeptWeights) -> ov.Model:
    """A copy of the graph with f32 constants in place of the kept codes, of exactly their values."""
    copy = clone_model(model)
    owners = dequantize_constants(copy, {name: weight.packed for name, weight in kept.weights.items()})
    keep_alive(copy, (memory_owners(copy), owners))
    return clone_model(copy)
