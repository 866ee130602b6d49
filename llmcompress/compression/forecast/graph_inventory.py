"""OpenVINO IR -> every weight of the model, from its graph; the ``.bin`` is mapped, not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.compression.forecast.records import Inventory, Kind, Weight
from llmcompress.compression.forecast.stored_bytes import uncompressed_bytes
from llmcompress.graph.model import read_ir
from llmcompress.loaders.source import Source
from llmcompress.spec import Recipe

if TYPE_CHECKING:
    import openvino as ov

FLOATS = {"bf16", "f16", "f32"}
KINDS: dict[str, tuple[Kind, int]] = {
    "MatMul": ("matmul", 1),
    "Gather": ("embedding", 0),
    "Convolution": ("convolution", 1),
    "GroupConvolution": ("convolution", 1),
}


def graph_inventory(source: Source, recipe: Recipe) -> Inventory:
    """As ``model_inventory``, of an IR.

    Raises:
        ModelError: the IR cannot be read.
    """
    return model_inventory(read_ir(source.path), recipe)


def model_inventory(model: ov.Model, recipe: Recipe) -> Inventory:
    """List the weights of a graph; the recipe's ignored scope is looked up in its node names."""
    first = recipe.weights or recipe.activations
    scope = None if first is None else first.ignored_scope
    total = 0
    weights: dict[str, Weight] = {}
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind == "Constant":
            total += op.get_byte_size()
        if kind not in KINDS:
            continue
        role, port = KINDS[kind]
        constant = _constant(op.input_value(port).get_node())
        if constant is None:
            continue
        name, shape = constant.get_friendly_name(), tuple(int(d) for d in constant.get_output_shape(0))
        dtype = constant.get_element_type().get_type_name()
        if name in weights or len(shape) < 2 or dtype not in FLOATS:
            continue
        weights[name] = Weight(
            name=name,
            shape=shape,
            kind=role,
            in_axis=_in_axis(op, role, shape),
            dtype=dtype,
            ignored=scope is not None and scope.matches(op.get_friendly_name(), kind),
        )
    head = _head(model)
    listed = tuple(w._replace(is_head=w.name == head and w.kind == "matmul") for w in weights.values())
    weight_bytes = sum(map(uncompressed_bytes, listed))
    remark = "the graph holds no floating-point weights: it seems to be compressed already"
    return Inventory(
        num_parameters=sum(w.num_parameters for w in listed),
        weights=listed,
        leftover_bytes=total - weight_bytes,
        checkpoint_bytes=total,
        mapped_bytes=total,
        merged_bytes=0,
        cast_bytes=0,
        rewritten_bytes=0,
        num_modules=len(listed),
        vocab_size=max((w.shape[0] for w in listed if w.kind == "embedding"), default=0),
        notes=() if listed else (remark,),
    )


def _constant(node: ov.Node) -> ov.Node | None:
    """The constant behind a value that is at most converted."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _in_axis(op: ov.Node, role: Kind, shape: tuple[int, ...]) -> int:
    if role == "matmul" and not op.get_attributes().get("transpose_b", False):
        return len(shape) - 2
    return len(shape) - 1


def _head(model: ov.Model) -> str | None:
    """Name of the weight of the last matrix multiplication before the logits."""
    pending, seen = [model.outputs[0].get_node()], set()
    while pending:
        op = pending.pop(0)
        if op.get_type_name() == "MatMul":
            constant = _constant(op.input_value(1).get_node())
            return None if constant is None else str(constant.get_friendly_name())
        if op.get_friendly_name() not in seen:
            seen.add(op.get_friendly_name())
            pending += [op.input_value(i).get_node() for i in range(op.get_input_size())]
    return None
