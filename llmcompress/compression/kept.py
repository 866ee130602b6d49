"""What was kept of a source that is quantized already: by layer, and what this machine makes of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmcompress.compression.layers import EXECUTED_AS, FLOATS, mode_of
from llmcompress.graph.device import compile_model, executed_precisions
from llmcompress.graph.model import is_constant
from llmcompress.loaders.quantized.constants import weight_value
from llmcompress.loaders.quantized.packed import FOUR_BITS, PackedWeight
from llmcompress.loaders.quantized.stored import StoredWeight
from llmcompress.report.compression import KeptRecord, LayerRecord

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.loaders.quantized.conversion import KeptWeight, KeptWeights

_SAMPLE_ROWS = 64


def kept_record(model: ov.Model, kept: KeptWeights | None) -> KeptRecord | None:
    """Say what the CPU of this machine computes with, for each kind of constants.

    Tried on some rows of each; stacks of experts on the operations around them, which the plugin makes one of.
    """
    if kept is None:
        return None
    kinds: dict[tuple[object, ...], tuple[str, PackedWeight]] = {}
    for name, weight in kept.weights.items():
        packed = weight.packed
        zeros = None if packed.zero_points is None else packed.zero_points.itemsize
        levels = packed.levels is not None
        kind = (packed.element, packed.group_size, packed.scale_element, zeros, levels, len(packed.shape))
        kinds.setdefault(kind, (name, packed))
    executed: dict[str, set[str]] = defaultdict(set)
    for name, packed in kinds.values():
        mode = mode_of(packed.element, (packed.scale_element,)) or packed.element
        executed[mode] |= _executed(packed) if len(packed.shape) == 2 else _executed_experts(model, name)
    return KeptRecord(
        num_layers=len(kept.weights),
        max_relative_rounding=max(weight.packed.rounding for weight in kept.weights.values()),
        executed={mode: ", ".join(sorted(precisions)) for mode, precisions in sorted(executed.items())},
    )


def kept_layers(layers: Iterable[LayerRecord], kept: KeptWeights | None) -> tuple[LayerRecord, ...]:
    """The records of a graph's layers, with what each was stored as; no arithmetic made their codes."""
    weights = {} if kept is None else kept.weights
    return tuple(_kept_layer(layer, weights[layer.name]) if layer.name in weights else layer for layer in layers)


def _kept_layer(layer: LayerRecord, weight: KeptWeight) -> LayerRecord:
    # Below a whole, all digits of a share are noise.
    rounding = float(f"{weight.packed.rounding:.3g}")
    return layer.model_copy(update={"stored_as": weight.format, "relative_rounding": rounding, "engine": None})


def expanded_modes(weights: Iterable[StoredWeight]) -> dict[str, str]:
    """The kinds of matrices that the CPU of this machine brings to floats, and to which; by headers alone.

    Tried on a few rows of each kind, whose codes are any.
    """
    kinds = {
        (weight.element, weight.scale): weight
        for weight in weights
        if len(weight.shape) == 2 and weight.element not in FLOATS
    }
    executed = {
        mode_of(weight.element, (weight.scale,)) or weight.element: _executed(_sample(weight))
        for weight in kinds.values()
    }
    return {mode: ", ".join(sorted(found & FLOATS)) for mode, found in executed.items() if found & FLOATS}


def _sample(weight: StoredWeight) -> PackedWeight:
    import numpy as np

    num_groups = min(4, weight.columns // weight.group_size)
    columns, groups = num_groups * weight.group_size, (_SAMPLE_ROWS, num_groups)
    types = {"f16": np.float16, "f32": np.float32}
    return PackedWeight(
        codes=np.full((_SAMPLE_ROWS, columns // 2 if weight.element in FOUR_BITS else columns), 0x11, np.uint8),
        element=weight.element,
        shape=(_SAMPLE_ROWS, columns),
        scales=np.ones(groups, types.get(weight.scale, np.uint8)),
        zero_points=np.ones(groups, types.get(weight.zero_point or "", np.uint8)) if weight.asymmetric else None,
        scale=weight.scale,
    )


def _executed(packed: PackedWeight) -> set[str]:
    """The precisions in which the CPU multiplies by a part of a weight."""
    import openvino as ov
    from openvino import opset13 as ops

    rows, columns = min(_SAMPLE_ROWS, packed.shape[0]), packed.shape[1]
    part = packed._replace(
        codes=packed.codes.reshape(packed.num_rows, -1)[:rows].copy(),
        shape=(rows, columns),
        scales=packed.scales[:rows],
        zero_points=None if packed.zero_points is None else packed.zero_points[:rows],
        levels=None if packed.levels is None else packed.levels.first(rows),
    )
    owners: list[object] = []
    activations = ops.parameter(ov.PartialShape([-1, columns]), ov.Type.f32)
    product = ops.matmul(activations, weight_value("weight", part, owners), False, True)
    compiled = compile_model(ov.Model([ops.result(product)], [activations], "layer"), "CPU", {})
    return {precision for kind, precision in executed_precisions(compiled) if kind in EXECUTED_AS}


def _executed_experts(model: ov.Model, name: str) -> set[str]:
    """The precisions of the stacks that the CPU multiplies by, in the module of experts that a stack belongs to."""
    import openvino as ov
    from openvino import opset13 as ops

    copy = model.clone()
    module = name.removeprefix("self.").rpartition(".experts.")[0]
    inside = {
        op.get_friendly_name(): op
        for op in copy.get_ordered_ops()
        if op.get_friendly_name().startswith(f"__module.{module}.experts/")
    }
    parameters, results = [], []
    for op in inside.values():
        for port in op.inputs():
            source = port.get_source_output()
            if source.get_node().get_friendly_name() in inside or is_constant(source.get_node()):
                continue
            parameters.append(ops.parameter(source.get_partial_shape(), source.get_element_type()))
            port.replace_source_output(parameters[-1].output(0))
        for output in op.outputs():
            if any(port.get_node().get_friendly_name() not in inside for port in output.get_target_inputs()):
                results.append(ops.result(output))
    compiled = compile_model(ov.Model(results, parameters, "experts"), "CPU", {})
    found = set()
    for node in compiled.get_runtime_model().get_ops():
        if str(node.get_rt_info()["layerType"].value) in {"GatherMatmul", *EXECUTED_AS}:
            stack = node.input_value(1).get_node()
            is_kept = str(stack.get_rt_info()["layerType"].value) == "Const"
            precision = stack.get_output_element_type(0).get_type_name() if is_kept else None
            found.add(precision or str(node.get_rt_info()["runtimePrecision"].value))
    return found
