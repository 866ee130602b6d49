"""Quantized weights in a graph: constants as NNCF writes them, which the CPU plugin keeps compressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import packed4
from llmcompress.loaders.quantized.experts import halves_joined
from llmcompress.loaders.quantized.packed import FLOATS, ORIGINAL, Levels, PackedWeight, dequantized
from llmcompress.loaders.quantized.slim_stacks import SlimStacks

if TYPE_CHECKING:
    import openvino as ov
    import torch
    from numpy.typing import NDArray


_DECOMPRESSION = ("Convert", "Subtract", "Multiply", "Reshape")


class Placed(NamedTuple):
    """Quantized weights that are in a graph."""

    weights: Mapping[str, tuple[str, PackedWeight]]
    """By the name of their constant: the name that the source has for it, and what it holds."""
    owners: list[object]
    """What owns the memory of the constants, to be kept as long as the graph."""


def put_constants(
    model: ov.Model, weights: Mapping[str, PackedWeight], names: Mapping[int, str], stacks: SlimStacks
) -> Placed:
    """Replace what stands in for quantized weights in a traced graph.

    Args:
        model: Changed in place.
        weights: By name.
        names: The name of each weight by the address of the constant that stands in for it.
        stacks: What the numbers stand for that fill the constants of stacks of experts.

    Raises:
        ModelError: A weight is not in the graph as it was, or is not multiplied as a linear layer's.
    """
    owners: list[object] = []
    placed: dict[str, tuple[str, PackedWeight]] = {}
    missing = set(weights)
    for constant in [op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_byte_size()]:
        number = _number(constant, stacks)
        if number is not None and number[0] in stacks.biases:
            _replace_bias(constant, stacks.biases[number[0]])
            continue
        found = [stacks.weights[each] for each in number or ()]
        name = names.get(constant.data.ctypes.data)
        if name is not None and tuple(constant.get_output_shape(0)) == weights[name].shape:
            found = [name]
        if found:
            missing -= set(found)
            parts = [weights[name] for name in found]
            weight = parts[0] if len(parts) == 1 else halves_joined(parts)
            whole = found[0] if len(parts) == 1 else found[0].removesuffix(".0")
            placed[_replace(constant, whole, weight, owners)] = found[0], weight
    if missing:
        raise ModelError(
            f"{len(missing)} quantized weights are not in the converted graph as they are stored: {min(missing)}",
            where="model",
            hint=ORIGINAL,
        )
    model.validate_nodes_and_infer_types()
    return Placed(placed, owners)


def _number(constant: ov.Node, stacks: SlimStacks) -> tuple[float, ...] | None:
    """The one or two numbers that a slim stand-in is filled with; None: it is none."""
    known = stacks.weights.keys() | stacks.biases.keys()
    if not known or len(constant.get_output_shape(0)) != 3 or not constant.get_element_type().is_real():
        return None
    values = constant.data
    ends = tuple(sorted({float(values.min()), float(values.max())}))
    return ends if set(ends) <= known else None


def _replace(constant: ov.Node, name: str, weight: PackedWeight, owners: list[object]) -> str:
    """Put a weight in the place of what stands in for it; gives the name of its constant."""
    import openvino as ov
    from openvino import opset13 as ops

    # Parts of a stack have names of the operation that cut it.
    own_name = constant.get_friendly_name() if len(weight.shape) == 2 else f"self.{name}"
    value = weight_value(own_name, weight, owners)
    for port in _consumers(constant):
        node = port.get_node()
        kind, is_stack = node.get_type_name(), len(weight.shape) == 3
        is_product = kind == "MatMul" and port.get_index() == 1
        if is_product and (is_stack or node.get_attributes()["transpose_b"]):
            if weight.columns is not None:
                _sort_channels(node.input(0), weight.columns)
            if node.get_attributes()["transpose_b"]:
                port.replace_source_output(value.output(0))
            else:
                # What it multiplies by may still be as narrow as a stand-in.
                unknown = ops.parameter(ov.PartialShape.dynamic(), ov.Type.f32)
                product = ops.matmul(unknown, value, node.get_attributes()["transpose_a"], True)
                product.input(0).replace_source_output(node.input_value(0))
                product.set_friendly_name(node.get_friendly_name())
                node.output(0).replace(product.output(0))
        elif kind == "Gather" and port.get_index() == 0 and weight.columns is None and not is_stack:
            port.replace_source_output(value.output(0))
        elif kind == "ShapeOf":
            shape = ops.constant(list(constant.get_output_shape(0)), node.get_output_element_type(0))
            node.output(0).replace(shape.output(0))
        else:
            raise ModelError(
                f"the quantized weight {name} goes into {kind}, not into a linear layer or embedding",
                where="model",
                hint=ORIGINAL,
            )
    return own_name


def _replace_bias(constant: ov.Node, bias: torch.Tensor) -> None:
    from openvino import opset13 as ops

    shape = [*constant.get_output_shape(0)[:-1], bias.shape[-1]]
    whole = ops.constant(bias.float().numpy().reshape(shape))
    whole.set_friendly_name(constant.get_friendly_name())
    constant.output(0).replace(whole.output(0))


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

    Where scales are not f16, all is computed in f32, which keeps them exact.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    def constant(values: NDArray[Any], size: list[int], element: str, suffix: str) -> ov.Node:
        values = np.ascontiguousarray(values).reshape(-1)
        tensor = ov.Tensor(values, size, getattr(ov.Type, element))
        owners.extend((values, tensor))
        node = ops.constant(tensor)
        node.set_friendly_name(name + suffix)
        return node

    if weight.element in FLOATS:
        plain = constant(weight.codes, list(weight.shape), weight.element, "")
        return plain if weight.element == "f32" else ops.convert(plain, ov.Type.f32)
    num_groups, rows = weight.scales.shape[1], list(weight.shape[:-1])
    grouped = num_groups > 1
    shape = [*rows, num_groups, weight.group_size] if grouped else list(weight.shape)
    per_group = [*rows, num_groups, 1] if grouped else [*rows, 1]
    scale_element = weight.scale_element
    precision = ov.Type.f16 if scale_element == "f16" else ov.Type.f32

    value = ops.convert(constant(weight.codes, shape, weight.element, ""), precision)
    if weight.levels is not None:
        scale, zero_point = _of_levels(weight.levels, per_group, constant)
    else:
        scale = constant(weight.scales, per_group, scale_element, "/scale")
        zero_point = None if weight.zero_points is None else _zero_point(weight, per_group, precision, constant)
    if zero_point is not None:
        value = ops.subtract(value, zero_point, name=f"{name}/zero_point/subtract")
    if weight.levels is None and weight.scales.itemsize == 1:
        scale = ops.convert(scale, precision)
    if weight.factors is not None:
        of_all = weight.factors.size == 1
        factors = weight.factors.reshape(() if of_all else [*rows, 1, 1] if grouped else [*rows, 1])
        scale = ops.multiply(scale, ops.constant(factors))
    value = ops.multiply(value, scale, name=f"{name}/fq_weights_1")
    if grouped:
        value = ops.reshape(value, ops.constant(np.array(weight.shape)), special_zero=False)
    return value if precision == ov.Type.f32 else ops.convert(value, ov.Type.f32)


def _of_levels(
    levels: Levels, per_group: list[int], constant: Callable[..., ov.Node]
) -> tuple[ov.Node, ov.Node | None]:
    """Scales and zero points, computed in f32 of what they are products of."""
    import openvino as ov
    from openvino import opset13 as ops

    rows, num_blocks = levels.scale_steps.shape

    def product(small: NDArray[Any], steps: NDArray[Any], suffix: str) -> ov.Node:
        element = "i8" if small.dtype.kind == "i" else "u8"
        grouped = ops.convert(constant(small.view("u1"), per_group, element, suffix), ov.Type.f32)
        in_blocks = ops.reshape(grouped, ops.constant([rows, num_blocks, -1, 1]), special_zero=False)
        of_blocks = ops.convert(constant(steps, [rows, num_blocks, 1, 1], "f16", f"{suffix}/step"), ov.Type.f32)
        return ops.reshape(ops.multiply(in_blocks, of_blocks), ops.constant(per_group), special_zero=False)

    scale = product(levels.scales, levels.scale_steps, "/scale")
    if levels.offsets is None or levels.offset_steps is None:
        return scale, None
    return scale, ops.divide(product(levels.offsets, levels.offset_steps, "/zero_point"), scale)


def _zero_point(
    weight: PackedWeight, per_group: list[int], precision: ov.Type, constant: Callable[..., ov.Node]
) -> ov.Node:
    """Zero points as codes that are converted, or as numbers between codes."""
    import numpy as np
    from openvino import opset13 as ops

    zeros = weight.zero_points
    assert zeros is not None
    if zeros.itemsize > 1:
        return constant(zeros, per_group, "f16" if zeros.itemsize == 2 else "f32", "/zero_point")
    if weight.element == "u4":
        zeros = zeros.reshape(-1)
        zeros = packed4(np.append(zeros, np.zeros(zeros.size % 2, np.uint8)))
    return ops.convert(constant(zeros, per_group, weight.element, "/zero_point"), precision)


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
        last = found[name]
        while (node := next(iter(last.output(0).get_target_inputs())).get_node()).get_type_name() in _DECOMPRESSION:
            last = node
        values = dequantized(weight)
        tensor = ov.Tensor(values, list(weight.shape), ov.Type.f32)
        owners.extend((values, tensor))
        plain = ops.constant(tensor)
        plain.set_friendly_name(name)
        for port in last.output(0).get_target_inputs():
            port.replace_source_output(plain.output(0))
    model.validate_nodes_and_infer_types()
    return owners
