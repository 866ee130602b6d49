"""What was kept of a source that is quantized already: by layer, and what this machine makes of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmcompress.compression.layers import EXECUTED_AS, mode_of
from llmcompress.graph.device import compile_model, executed_precisions
from llmcompress.loaders.quantized.constants import weight_value
from llmcompress.loaders.quantized.packed import PackedWeight
from llmcompress.report.compression import KeptRecord, LayerRecord

if TYPE_CHECKING:
    from llmcompress.loaders.quantized.conversion import KeptWeights

_SAMPLE_ROWS = 64


def kept_record(kept: KeptWeights | None) -> KeptRecord | None:
    """Say what the CPU of this machine computes with, for each kind of constants; tried on some rows of each."""
    if kept is None:
        return None
    kinds: dict[tuple[object, ...], PackedWeight] = {}
    for weight in kept.weights.values():
        packed = weight.packed
        zeros = None if packed.zero_points is None else packed.zero_points.itemsize
        kind = (packed.element, packed.group_size, packed.scale_element, zeros, len(packed.shape))
        kinds.setdefault(kind, packed)
    executed: dict[str, set[str]] = defaultdict(set)
    for packed in kinds.values():
        executed[mode_of(packed.element, (packed.scale_element,)) or packed.element] |= _executed(packed)
    return KeptRecord(
        num_layers=len(kept.weights),
        max_relative_rounding=max(weight.packed.rounding for weight in kept.weights.values()),
        executed={mode: ", ".join(sorted(precisions)) for mode, precisions in sorted(executed.items())},
    )


def kept_layers(layers: Iterable[LayerRecord], kept: KeptWeights | None) -> tuple[LayerRecord, ...]:
    """The records of a graph's layers, with what each was stored as; no arithmetic made their codes."""
    formats = {} if kept is None else {name: weight.format for name, weight in kept.weights.items()}
    return tuple(
        layer.model_copy(update={"stored_as": formats[layer.name], "engine": None}) if layer.name in formats else layer
        for layer in layers
    )


def _executed(packed: PackedWeight) -> set[str]:
    """The precisions in which the CPU multiplies by a part of a weight, of a stack by its first expert."""
    import openvino as ov
    from openvino import opset13 as ops

    rows, columns = min(_SAMPLE_ROWS, packed.shape[-2]), packed.shape[-1]
    part = packed._replace(
        codes=packed.codes.reshape(packed.num_rows, -1)[:rows].copy(),
        shape=(rows, columns),
        scales=packed.scales[:rows],
        zero_points=None if packed.zero_points is None else packed.zero_points[:rows],
    )
    owners: list[object] = []
    activations = ops.parameter(ov.PartialShape([-1, columns]), ov.Type.f32)
    product = ops.matmul(activations, weight_value("weight", part, owners), False, True)
    compiled = compile_model(ov.Model([ops.result(product)], [activations], "layer"), "CPU", {})
    return {precision for kind, precision in executed_precisions(compiled) if kind in EXECUTED_AS}
