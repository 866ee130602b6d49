"""Quantized weights in a graph: constants as NNCF writes them, which the CPU plugin keeps compressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.packed import FLOATS, ORIGINAL, PackedWeight, dequantized, packed4

if TYPE_CHECKING:
    import openvino as ov
    from numpy.typing import NDArray


class Placed(NamedTuple):
    """Quantized weights that are in a graph."""

    names: Mapping[str, str]
    """The weight of each constant, by the constant's name."""
    owners: list[object]
    """What owns the memory of the constants, to be kept as long as the graph."""


def put_constants(model: ov.Model, weights: Mapping[str, PackedWeight], names: Mapping[int, str]) -> Placed:
    """Replace what stands in for quantized weights in a traced graph.

    Args:
        model: Changed in place.
        weights: By name.
        names: The name of each weight by the address of the constant that stands in for it.

    Raises:
        ModelError: A weight is not in the graph as it was, or is not multiplied as a linear layer's.
    """
    owners: list[object] = []
    placed: dict[str, str] = {}
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_byte_size()]
    for constant in constants:
        name = names.get(constant.data.ctypes.data)
        if name is None or tuple(constant.get_output_shape(0)) != weights[name].shape:
            continue
        placed[constant.get_friendly_name()] = name
        _replace(constant, name, weights[name], owners)
    if missing := set(weights) - set(placed.values()):
        raise ModelError(
            f"{len(missing)} quantized weights are not in the converted graph as they are stored: {min(missing)}",
            where="model",
            hint=ORIGINAL,
        )
    model.validate_nodes_and_infer_types()
    return Placed(placed, owners)


def _replace(constant: ov.Node, name: str, weight: PackedWeight, owners: list[object]) -> None:
    value = weight_value(constant.get_friendly_name(), weight, owners)
    for port in _consumers(constant):
        node = port.get_node()
        if not _takes_weights(port):
            raise ModelError(
                f"the quantized weight {name} goes into {node.get_type_name()}, not into a linear layer or embedding",
                where="model",
                hint=ORIGINAL,
            )
        port.replace_source_output(value.output(0))
        if weight.columns is not None:
            _sort_channels(node.input(0), weight.columns)


def _takes_weights(port: Any) -> bool:
    """Whether a linear layer multiplies by what comes in here, or an embedding takes rows of it."""
    node = port.get_node()
    if node.get_type_name() == "Gather":
        return bool(port.get_index() == 0)
    is_linear = node.get_type_name() == "MatMul" and port.get_index() == 1
    return is_linear and bool(node.get_attributes()["transpose_b"])


def _consumers(constant: ov.Node) -> list[Any]:
    """Where a constant goes, past its conversion to f32."""
    ports = []
    for port in constant.output(0).get_target_inputs():
        node = port.get_node()
        ports += list(node.output(0).get_target_inputs()) if node.get_type_name() == "Convert" else [port]
    return ports


def _sort_channels(port: Any, columns: NDArray[Any]) -> None:
    """Let a layer read its input channels in the order in which its columns are stored."""
    import numpy as np
    from openvino import opset13 as ops

    source = port.get_source_output()
    gathered = ops.gather(source, ops.constant(columns.astype(np.int32)), ops.constant(np.int32(-1)))
    port.replace_source_output(gathered.output(0))


def weight_value(name: str, weight: PackedWeight, owners: list[object]) -> ov.Node:
    """``Convert -> Subtract -> Multiply -> Reshape -> Convert`` on the codes.

    Where scales are f32, all is computed in f32, which keeps them exact. 16-bit floats are converted alone.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    rows, columns = weight.shape
    num_groups = weight.scales.shape[1]
    grouped = num_groups > 1
    shape = [rows, num_groups, weight.group_size] if grouped else [rows, columns]
    per_group = [rows, num_groups, 1] if grouped else [rows, 1]
    precision = ov.Type.f16 if weight.scales.dtype == np.float16 else ov.Type.f32

    def constant(values: NDArray[Any], size: list[int], element: str, suffix: str) -> ov.Node:
        tensor = ov.Tensor(values, size, getattr(ov.Type, element))
        owners.extend((values, tensor))
        node = ops.constant(tensor)
        node.set_friendly_name(name + suffix)
        return node

    codes = constant(weight.codes.reshape(-1), shape, weight.element, "")
    if weight.element in FLOATS:
        return ops.convert(codes, ov.Type.f32)
    element = "f16" if precision == ov.Type.f16 else "f32"
    value = ops.convert(codes, precision)
    if weight.zero_points is not None:
        zeros = weight.zero_points.reshape(-1)
        if zeros.dtype != np.uint8:
            zero_point = constant(zeros, per_group, element, "/zero_point")
        else:
            if weight.element == "u4":
                zeros = packed4(np.append(zeros, np.zeros(zeros.size % 2, np.uint8)))
            zero_point = ops.convert(constant(zeros, per_group, weight.element, "/zero_point"), precision)
        value = ops.subtract(value, zero_point, name=f"{name}/zero_point/subtract")
    scale = constant(np.ascontiguousarray(weight.scales).reshape(-1), per_group, element, "/scale")
    value = ops.multiply(value, scale, name=f"{name}/fq_weights_1")
    if grouped:
        value = ops.reshape(value, ops.constant(np.array([rows, columns])), special_zero=False)
    return value if precision == ov.Type.f32 else ops.convert(value, ov.Type.f32)


def dequantize_constants(model: ov.Model, weights: Mapping[str, PackedWeight]) -> list[object]:
    """Replace the compressed constants that ``put_constants`` made by f32 ones of the same values.

    Args:
        model: Changed in place.
        weights: By the names of their constants.

    Returns:
        What owns the memory of the new constants.
    """
    import openvino as ov
    from openvino import opset13 as ops

    owners: list[object] = []
    found = {op.get_friendly_name(): op for op in model.get_ops() if op.get_friendly_name() in weights}
    for name, weight in weights.items():
        node = found[name]
        while node.get_type_name() not in ("MatMul", "Gather"):
            ports = list(node.output(0).get_target_inputs())
            last, node = node, ports[0].get_node()
        values = dequantized(weight)
        tensor = ov.Tensor(values, list(weight.shape), ov.Type.f32)
        owners.extend((values, tensor))
        plain = ops.constant(tensor)
        plain.set_friendly_name(name)
        for port in last.output(0).get_target_inputs():
            port.replace_source_output(plain.output(0))
    model.validate_nodes_and_infer_types()
    return owners
