"""A compressed graph is described: which of its weights our kernels make, and where its other constants come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.compression.replay.skeleton import CodedWeight, ConstantValues, SkeletonConstant
from llmcompress.graph.integer_weights import SCALE, ZERO_POINT, weight_part
from llmcompress.graph.xml_file import XmlConstant, xml_constants
from llmcompress.spec import Recipe
from llmcompress.system.memory import same_bytes

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

Origin = Mapping[int, ConstantValues | None]
"""Of the constants of an uncompressed graph, by where their values are: which tensors they are made of."""

_KINDS: Mapping[str, Literal["codes", "scales", "zero_points"]] = {
    "": "codes",
    SCALE: "scales",
    ZERO_POINT: "zero_points",
}


class NotKeptError(Exception):
    """A graph cannot be kept, and not the next time either."""


class CodedWeights(NamedTuple):
    """What a recipe made of a graph's weights."""

    by_name: Mapping[str, tuple[int, CodedWeight]]
    """Of the constants that hold them, with their numbers."""
    by_kernels: frozenset[str]

    @property
    def weights(self) -> tuple[CodedWeight, ...]:
        """In the order of their numbers."""
        return tuple(weight for _, weight in self.by_name.values())


def compress_noted(model: ov.Model, recipe: Recipe, origins: Origin) -> CodedWeights:
    """Compress a graph in place as a recipe does, without its codes, whatever the values of its weights are.

    Raises:
        NotKeptError: NNCF computes a weight itself, or it is not known of which tensors one is made.
    """
    from llmcompress.compression.nncf.noted_codes import NotCoveredError, NotedWeight, codes_noted
    from llmcompress.compression.replay.values import plain_format

    names = {op.data.ctypes.data: op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    noted: list[NotedWeight] = []
    by_kernels: set[str] = set()
    try:
        with codes_noted(noted):
            for weights in recipe.weight_passes:
                by_kernels |= compress_weights(model, weights).by_kernels
    except NotCoveredError as error:
        raise NotKeptError(f"NNCF computes {error}") from None
    found: dict[str, tuple[int, CodedWeight]] = {}
    for weight in noted:
        values = origins.get(weight.address)
        if values is None:
            raise NotKeptError(f"nothing says of which tensors {names.get(weight.address)} is made")
        coded = CodedWeight(
            values=values,
            group_size=weight.layout.group_size,
            num_columns=weight.layout.num_columns,
            num_groups=weight.layout.num_groups,
            format=plain_format(weight.layout.codes),
        )
        found[names[weight.address]] = len(found), coded
    return CodedWeights(found, frozenset(by_kernels))


class Described(NamedTuple):
    """The constants of a graph."""

    constants: tuple[SkeletonConstant, ...]
    literals: bytes
    """What is made of no weight, one after another."""


def describe(
    model: ov.Model, xml: bytes, coded: CodedWeights, origins: Origin, stored: NDArray[np.uint8] | None = None
) -> Described:
    """Say of every constant of a graph where it comes from.

    Args:
        model: Compressed by ``compress_noted``.
        xml: Of it, or of one that differs in values alone.
        coded: What was made of its weights.
        origins: Of its constants before.
        stored: The .bin that ``xml`` belongs to, with which constants that are made of no weight are compared.

    Raises:
        NotKeptError: A constant depends on weights in a way that is not known.
    """
    nodes = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    literals = bytearray()
    found = []
    for constant in xml_constants(xml):
        known = _code_part(constant, coded)
        if known is None:
            node = nodes.get(constant.name)
            if node is None:
                raise NotKeptError(f"constant {constant.name} has another name in the file")
            values = origins.get(node.data.ctypes.data)
            if values is not None:
                known = SkeletonConstant(size=constant.size, kind="values", values=values)
            else:
                known = SkeletonConstant(size=constant.size, kind="literal", literal_start=len(literals))
                literals += _literal(constant, node, stored)
        found.append(known)
    return Described(tuple(found), bytes(literals))


def _code_part(constant: XmlConstant, coded: CodedWeights) -> SkeletonConstant | None:
    """What our kernels make; None: it is something else."""
    name, suffix = weight_part(constant.name, coded.by_name)
    # The zero point of all weights of two or three bits is one number.
    is_number = suffix == ZERO_POINT and not coded.by_name[name][1].format.fields["is_asymmetric"]
    if name not in coded.by_name or is_number:
        return None
    return SkeletonConstant(size=constant.size, kind=_KINDS[suffix], weight=coded.by_name[name][0])


def _literal(constant: XmlConstant, node: ov.Node, stored: NDArray[np.uint8] | None) -> bytes:
    import numpy as np

    own = node.data.reshape(-1).view(np.uint8)
    if stored is not None and not same_bytes(own, stored[constant.offset : constant.offset + constant.size]):
        raise NotKeptError(f"constant {constant.name} depends on weights in a way that is not known")
    return bytes(own.tobytes())
