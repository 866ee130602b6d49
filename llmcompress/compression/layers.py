"""What became of a model, read from the produced graph: each layer's format, and which activations are quantized."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Set
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.graph.device import compile_model, executed_precisions
from llmcompress.graph.integer_weights import INTEGERS
from llmcompress.graph.model import is_constant, num_elements
from llmcompress.report.compression import AccuracyRecord, ActivationRecord, FloatOperation, LayerRecord, OperationCount
from llmcompress.spec import Quantization

if TYPE_CHECKING:
    import openvino as ov


CONSUMERS = {"MatMul": (1, 0), "Gather": (0,), "Convolution": (1,), "GroupConvolution": (1,)}
DECOMPRESSION = {"Convert", "Multiply", "Divide", "Subtract", "Reshape", "Transpose", "Broadcast"}
_NUMBERED = re.compile(rf"({'|'.join(sorted(DECOMPRESSION | {'Constant'}))})_\d+")
"""What the runtime calls nodes without a name."""
FLOATS = {"bf16", "f16", "f32", "f64"}
SCALED_FLOATS = {("f4e2m1", "f8e8m0"): "mxfp4", ("f4e2m1", "f8e4m3"): "nvfp4", ("f8e4m3", "f8e8m0"): "mxfp8_e4m3"}
PLAIN_FLOATS = {"nf4": "nf4", "f4e2m1": "fp4", "f8e4m3": "fp8_e4m3", "f8e5m2": "fp8_e5m2"}
CODEBOOK_INDEX_SUFFIX = "_nncf_codebook_idxs"
CODEBOOKS = {"cb4", "codebook", "adaptive_codebook"}

QUANTIZERS = {"FakeQuantize", "FakeConvert"}
PASSED_THROUGH = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Convert", "Broadcast", "Concat"}
COMPUTING = ("MatMul", "ScaledDotProductAttention", "Convolution")
"""Operations worth a low precision; the others move or scale numbers."""
EXECUTED_AS = {"MatMul", "FullyConnected", "Convolution"}
LOW_PRECISIONS = {"i8", "u8", "f8e4m3", "f8e5m2"}


class _Weight(NamedTuple):
    """The constants that one weight is computed from."""

    constants: tuple[ov.Node, ...]
    """The largest, which holds the weight or its codebook indices, first."""
    by_codebook: bool


def layer_table(model: ov.Model, mode: str | None = None, ours: Set[str] = frozenset()) -> tuple[LayerRecord, ...]:
    """One record per weight of a MatMul, an embedding or a convolution, sorted by name.

    Args:
        model: Compressed or not.
        mode: The recipe's mode; tells apart the three codebook modes, which look alike in the graph.
        ours: Names of the weights that our kernels have made.

    Raises:
        ModelError: A weight is stored in a format that NNCF does not have.
    """
    records: dict[str, LayerRecord] = {}
    for op in model.get_ops():
        for port in CONSUMERS.get(op.get_type_name(), ()):
            weight = _weight(op.input_value(port).get_node())
            if weight and _is_matrix(op.input_value(port)):
                shape = tuple(int(dimension) for dimension in op.input_value(port).get_shape())
                record, stored = _record(shape, weight, mode, ours, op), weight.constants[0].get_name()
                if stored not in records or record.name < records[stored].name:
                    records[stored] = record
    return tuple(sorted(records.values(), key=lambda record: record.name))


def constants_taken_by(model: ov.Model, op_type: str) -> frozenset[str]:
    """Names of the weights' constants that operations of a type take, such as ``Gather`` or ``MatMul``."""
    ops = [op for op in model.get_ops() if op.get_type_name() == op_type]
    values = [op.input_value(port) for op in ops for port in CONSUMERS[op_type]]
    found = (_weight(value.get_node()) for value in values if _is_matrix(value))
    return frozenset(weight.constants[0].get_friendly_name() for weight in found if weight)


def _is_matrix(value: ov.Output) -> bool:
    """Rotary frequencies and the like are multiplied as vectors; they are no layer's weight."""
    return value.get_partial_shape().is_static and sum(int(size) > 1 for size in value.get_shape()) >= 2


def _weight(node: ov.Node) -> _Weight | None:
    """What a value is computed from, if only from constants."""
    found: dict[str, ov.Node] = {}
    pending, by_codebook = [node], False
    while pending:
        current = pending.pop()
        kind = current.get_type_name()
        if kind == "Constant":
            found[current.get_friendly_name()] = current
        elif kind in DECOMPRESSION or kind == "Gather":
            by_codebook |= kind == "Gather"
            pending += [current.input_value(i).get_node() for i in range(current.get_input_size())]
        else:
            return None
    largest_first = sorted(found.values(), key=lambda c: (-num_elements(c), -c.get_byte_size(), c.get_friendly_name()))
    return _Weight(tuple(largest_first), by_codebook)


def _record(
    shape: tuple[int, ...], weight: _Weight, mode: str | None, ours: Set[str], consumer: ov.Node
) -> LayerRecord:
    stored = weight.constants[0]
    layer_mode = _mode(weight, mode)
    constant = stored.get_friendly_name().removesuffix(CODEBOOK_INDEX_SUFFIX)
    # Where nobody named it, it has the runtime's number, or what was folded into it, which depends on what else this
    # process has made.
    is_named = _NUMBERED.fullmatch(constant) is None
    return LayerRecord(
        name=constant if is_named else consumer.get_friendly_name(),
        shape=shape,
        num_parameters=num_elements(stored),
        mode=layer_mode,
        group_size=None if layer_mode in FLOATS else _group_size(shape, weight),
        size_bytes=sum(constant.get_byte_size() for constant in weight.constants),
        engine=None if layer_mode in FLOATS else "llmcompress" if constant in ours else "nncf",
    )


def mode_of(element: str, scales: Collection[str]) -> str | None:
    """How a layer is called by OpenVINO's names of what its codes and its scales are; None where it has no name."""
    for (weight_type, scale_type), name in SCALED_FLOATS.items():
        if element == weight_type and scale_type in scales:
            return name
    return element if element in FLOATS else (INTEGERS | PLAIN_FLOATS).get(element)


def _mode(weight: _Weight, mode: str | None) -> str:
    types: list[str] = [constant.get_element_type().get_type_name() for constant in weight.constants]
    element, *others = types
    if weight.by_codebook:
        return mode if mode in CODEBOOKS else "codebook"
    if (known := mode_of(element, others)) is not None:
        return known
    raise ModelError(
        f"the graph holds a weight of element type {element}, which is none of NNCF's formats",
        where=weight.constants[0].get_friendly_name(),
        hint="compare the installed NNCF with the tested set: llmcompress doctor",
    )


def _group_size(shape: tuple[int, ...], weight: _Weight) -> int:
    """A grouped weight has one axis more than its value: ``[..., num_groups, group_size]``, scales with 1 there."""
    stored = tuple(weight.constants[0].get_output_shape(0))
    if len(stored) == len(shape):
        return -1
    for constant in weight.constants[1:]:
        scale = tuple(constant.get_output_shape(0))
        if len(scale) == len(stored):
            axis = next(axis for axis, size in enumerate(scale) if size != stored[axis])
            return int(stored[axis])
    return -1


def activation_record(
    model: ov.Model, quantization: Quantization, accuracy: AccuracyRecord | None = None
) -> ActivationRecord:
    """Count the operations with quantized inputs, and those that the CPU executes in low precision.

    Args:
        model: With quantized activations.
        quantization: What was asked for.
        accuracy: What accuracy control did.

    Raises:
        UsageError: the CPU refuses the model.
    """
    quantized: Counter[str] = Counter()
    in_float: list[FloatOperation] = []
    num_quantizers = 0
    reverted = {name for group in accuracy.reverted for name in group.operations} if accuracy else set()
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        num_quantizers += kind in QUANTIZERS and not is_constant(op.input_value(0).get_node())
        if kind not in COMPUTING:
            continue
        if all(_quantized_inputs(op)):
            quantized[kind] += 1
        else:
            name = op.get_friendly_name()
            reason = "accuracy_control" if name in reverted else _reason(op, quantization)
            in_float.append(FloatOperation(name=name, type=kind, reason=reason))
    left = Counter(operation.type for operation in in_float)
    executed = executed_precisions(compile_model(model, "CPU", {}))
    computing = Counter(precision for (kind, precision) in executed.elements() if kind in EXECUTED_AS)
    return ActivationRecord(
        mode=quantization.mode,
        num_quantizers=num_quantizers,
        operations=tuple(
            OperationCount(type=kind, num_quantized=quantized[kind], num_in_float=left[kind])
            for kind in COMPUTING
            if quantized[kind] or left[kind]
        ),
        in_float=tuple(in_float),
        device="CPU",
        num_executed_low=sum(count for precision, count in computing.items() if precision in LOW_PRECISIONS),
        executed=dict(sorted(computing.items())),
        accuracy=accuracy,
    )


def _quantized_inputs(op: ov.Node) -> list[bool]:
    """For every input that is computed, whether it comes out of a quantizer."""
    nodes = [port.get_source_output().get_node() for port in op.inputs()]
    return [_behind_quantizer(node) for node in nodes if not is_constant(node)]


def _behind_quantizer(node: ov.Node) -> bool:
    while node.get_type_name() in PASSED_THROUGH:
        node = node.input_value(0).get_node()
    return node.get_type_name() in QUANTIZERS


def _reason(op: ov.Node, quantization: Quantization) -> str:
    if quantization.ignored_scope.matches(op.get_friendly_name(), op.get_type_name()):
        return "ignored_scope"
    if any(_quantized_inputs(op)):
        return "only some of its inputs are quantized"
    return "NNCF places no quantizer there"
