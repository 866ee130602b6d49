"""The table of layers, read from the produced graph itself: what each weight became and what it takes."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.graph.model import num_elements
from llmcompress.report.compression import LayerRecord

if TYPE_CHECKING:
    import openvino as ov

CONSUMERS = {"MatMul": (1, 0), "Gather": (0,), "Convolution": (1,), "GroupConvolution": (1,)}
DECOMPRESSION = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Broadcast"}
FLOATS = {"bf16", "f16", "f32", "f64"}
INTEGERS = {
    "u8": "int8_asym",
    "i8": "int8_sym",
    "u4": "int4_asym",
    "i4": "int4_sym",
    "u3": "int3_sym",
    "u2": "int2_sym",
}
SCALED_FLOATS = {("f4e2m1", "f8e8m0"): "mxfp4", ("f4e2m1", "f8e4m3"): "nvfp4", ("f8e4m3", "f8e8m0"): "mxfp8_e4m3"}
PLAIN_FLOATS = {"nf4": "nf4", "f4e2m1": "fp4", "f8e4m3": "fp8_e4m3", "f8e5m2": "fp8_e5m2"}
CODEBOOK_INDEX_SUFFIX = "_nncf_codebook_idxs"
CODEBOOKS = {"cb4", "codebook", "adaptive_codebook"}


class _Weight(NamedTuple):
    """The constants that one weight is computed from."""

    constants: tuple[ov.Node, ...]
    """The largest, which holds the weight or its codebook indices, first."""
    by_codebook: bool

    def types(self) -> list[str]:
        return [constant.get_element_type().get_type_name() for constant in self.constants]


def layer_table(model: ov.Model, mode: str | None = None, ours: Set[str] = frozenset()) -> tuple[LayerRecord, ...]:
    """One record per weight of a MatMul, an embedding or a convolution, sorted by name.

    Args:
        model: Compressed or not.
        mode: The recipe's mode; tells apart the three codebook modes, which look alike in the graph.
        ours: Names of the weights that our kernels have made.

    Raises:
        ModelError: A weight is stored in none of NNCF's formats.
    """
    records: dict[str, LayerRecord] = {}
    for op in model.get_ops():
        for port in CONSUMERS.get(op.get_type_name(), ()):
            weight = _weight(op.input_value(port).get_node())
            if weight and _is_matrix(op.input_value(port)):
                shape = tuple(int(dimension) for dimension in op.input_value(port).get_shape())
                record = _record(shape, weight, mode, ours)
                records.setdefault(record.name, record)
    return tuple(records[name] for name in sorted(records))


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


def _record(shape: tuple[int, ...], weight: _Weight, mode: str | None, ours: Set[str]) -> LayerRecord:
    stored = weight.constants[0]
    layer_mode = _mode(weight, mode)
    name = stored.get_friendly_name().removesuffix(CODEBOOK_INDEX_SUFFIX)
    return LayerRecord(
        name=name,
        shape=shape,
        num_parameters=num_elements(stored),
        mode=layer_mode,
        group_size=None if layer_mode in FLOATS else _group_size(shape, weight),
        size_bytes=sum(constant.get_byte_size() for constant in weight.constants),
        engine=None if layer_mode in FLOATS else "llmcompress" if name in ours else "nncf",
    )


def _mode(weight: _Weight, mode: str | None) -> str:
    element, *others = weight.types()
    if weight.by_codebook:
        return mode if mode in CODEBOOKS else "codebook"
    if element in FLOATS:
        return element
    for (weight_type, scale_type), name in SCALED_FLOATS.items():
        if element == weight_type and scale_type in others:
            return name
    known = INTEGERS | PLAIN_FLOATS
    if element in known:
        return known[element]
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
