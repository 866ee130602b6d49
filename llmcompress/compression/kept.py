"""What was kept of a source that is quantized already: by layer, and what this machine makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmcompress.compression.layers import EXECUTED_AS, PLAIN_FLOATS
from llmcompress.graph.device import compile_model, executed_precisions
from llmcompress.graph.integer_weights import INTEGERS
from llmcompress.loaders.quantized.constants import weight_value
from llmcompress.loaders.quantized.packed import FLOATS, PackedWeight
from llmcompress.report.compression import KeptRecord, LayerRecord

if TYPE_CHECKING:
    from llmcompress.loaders.quantized.conversion import KeptWeight, KeptWeights

MODES = INTEGERS | PLAIN_FLOATS | {element: element for element in FLOATS}
"""How a layer with such codes is called."""
_SAMPLE_ROWS = 64


def kept_record(kept: KeptWeights | None) -> KeptRecord | None:
    """Say what the CPU of this machine computes with, for each kind of constants; tried on some rows of each."""
    if kept is None:
        return None
    kinds: dict[tuple[object, ...], PackedWeight] = {}
    for weight in kept.weights.values():
        packed = weight.packed
        zeros = None if packed.zero_points is None else packed.zero_points.dtype
        kinds.setdefault((packed.element, packed.group_size, packed.scales.dtype, zeros), packed)
    executed: dict[str, set[str]] = {}
    for packed in kinds.values():
        executed.setdefault(MODES[packed.element], set()).update(_executed(packed))
    return KeptRecord(
        num_layers=len(kept.weights),
        max_relative_rounding=max(weight.packed.rounding for weight in kept.weights.values()),
        executed={mode: ", ".join(sorted(executed[mode])) for mode in sorted(executed)},
    )


def kept_layers(layers: Iterable[LayerRecord], kept: KeptWeights | None) -> tuple[LayerRecord, ...]:
    """The records of a graph's layers, with what each was stored as; no arithmetic made their codes."""
    weights = {} if kept is None else kept.weights
    return tuple(_kept_layer(layer, weights[layer.name]) if layer.name in weights else layer for layer in layers)


def _kept_layer(layer: LayerRecord, weight: KeptWeight) -> LayerRecord:
    # Below a whole, all digits of a share are noise.
    rounding = float(f"{weight.packed.rounding:.3g}")
    return layer.model_copy(update={"stored_as": weight.format, "relative_rounding": rounding, "engine": None})


def _executed(packed: PackedWeight) -> set[str]:
    """The precisions in which the CPU multiplies by a part of a weight."""
    import openvino as ov
    from openvino import opset13 as ops

    rows = min(_SAMPLE_ROWS, packed.shape[0])
    part = packed._replace(
        codes=packed.codes.reshape(packed.shape[0], -1)[:rows].copy(),
        shape=(rows, packed.shape[1]),
        scales=packed.scales[:rows],
        zero_points=None if packed.zero_points is None else packed.zero_points[:rows],
    )
    owners: list[object] = []
    activations = ops.parameter(ov.PartialShape([-1, packed.shape[1]]), ov.Type.f32)
    product = ops.matmul(activations, weight_value("weight", part, owners), False, True)
    compiled = compile_model(ov.Model([ops.result(product)], [activations], "layer"), "CPU", {})
    return {precision for kind, precision in executed_precisions(compiled) if kind in EXECUTED_AS}
