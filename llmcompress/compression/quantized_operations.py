"""What was really quantized, read from the produced graph, and what the plugin executes of it in low precision."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmcompress.graph.device import compile_model, executed_precisions
from llmcompress.graph.model import is_constant
from llmcompress.report.compression import AccuracyRecord, ActivationRecord, FloatOperation, OperationCount
from llmcompress.spec import Quantization

if TYPE_CHECKING:
    import openvino as ov

QUANTIZERS = {"FakeQuantize", "FakeConvert"}
PASSED_THROUGH = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Convert", "Broadcast", "Concat"}
COMPUTING = ("MatMul", "ScaledDotProductAttention", "Convolution")
"""Operations worth a low precision; the others move or scale numbers."""
EXECUTED_AS = {"MatMul", "FullyConnected", "Convolution"}
LOW_PRECISIONS = {"i8", "u8", "f8e4m3", "f8e5m2"}


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
