"""Weights that a graph holds as codes with f16 scales: codes, scales and zero points, read and replaced.

The layout is NNCF's: constants ``NAME``, ``NAME/scale`` and, where codes are not symmetric, ``NAME/zero_point``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.model import keep_alive, memory_owners

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

SCALE, ZERO_POINT = "/scale", "/zero_point"
INTEGERS = {
    "u8": "int8_asym",
    "i8": "int8_sym",
    "u4": "int4_asym",
    "i4": "int4_sym",
    "u3": "int3_sym",
    "u2": "int2_sym",
}
"""The element type that each of NNCF's integer modes is stored as, and the mode."""
FLOATS = {"nf4": "nf4", "f4e2m1": "fp4"}
"""The same of modes of small floats whose scale is f16."""
RANGES = {
    "u8": (0, 255),
    "i8": (-128, 127),
    "u4": (0, 15),
    "i4": (-8, 7),
    "u3": (0, 7),
    "u2": (0, 3),
    "nf4": (0, 15),
    "f4e2m1": (0, 15),
}
"""Of the codes of each element type; of floats a code is the number of a level."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEVELS = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "f4e2m1": (*(-value for value in reversed(_E2M1)), *_E2M1),
}  # fmt: skip
"""The values of each floating-point format, rising (QLoRA, arXiv:2305.14314; OCP microscaling formats)."""

_BY_SIGN = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 4, 3, 2, 1, 0)
"""The number of a level of f4e2m1, by its bits."""


class IntegerWeight(NamedTuple):
    """A weight as its constants hold it.

    ``(codes - zero_points) * scales`` are its values, of a floating-point format ``levels[codes] * scales``.
    """

    codes: NDArray[Any]
    """int16, of the stored shape: with groups ``[..., num_groups, group_size, ...]``."""
    scales: NDArray[np.float16]
    """Of the same rank, 1 along the axis of a group."""
    zero_points: NDArray[Any] | None
    """int16, of the scales' shape or of one element; None: symmetric codes."""
    element: str
    """OpenVINO's name of the codes' type."""

    @property
    def size_bytes(self) -> int:
        """Of its constants as they are stored."""
        num_bits = num_bits_of(self.element)
        num_zeros = 0 if self.zero_points is None else self.zero_points.size
        return sum(-(-count * num_bits // 8) for count in (self.codes.size, num_zeros)) + self.scales.nbytes

    @property
    def low(self) -> int:
        """The least code."""
        return RANGES[self.element][0]

    @property
    def high(self) -> int:
        """The greatest code."""
        return RANGES[self.element][1]

    @property
    def levels(self) -> NDArray[np.float32] | None:
        """The values of a floating-point format, by code, rising; None: codes are integers."""
        import numpy as np

        levels = LEVELS.get(self.element)
        return None if levels is None else np.array(levels, np.float32)

    @property
    def has_own_zero_points(self) -> bool:
        """Whether each scale has a zero point next to it: u2 and u3 are symmetric around one that all share."""
        return self.zero_points is not None and self.zero_points.shape == self.scales.shape

    def values(self) -> NDArray[np.float32]:
        """float32, of the stored shape."""
        import numpy as np

        levels = self.levels
        codes = self.codes.astype(np.float32) if levels is None else levels[self.codes]
        if self.zero_points is not None:
            codes -= self.zero_points
        codes *= self.scales.astype(np.float32)
        return codes


class Rescaling(NamedTuple):
    """What AWQ did to a weight before it was compressed, so that the model computes the same as before."""

    factors: tuple[NDArray[np.float32], ...] = ()
    """That the weight was multiplied by; each broadcasts to its shape."""
    activations: NDArray[np.float32] | None = None
    """That its inputs are multiplied by in the graph, ``[num_channels]``; None: the layer before does it."""


class GraphWeights(Mapping[str, IntegerWeight]):
    """The weights of a graph that are stored as codes with f16 scales, by their constants' names.

    Each is read when it is asked for: a graph's codes unpacked would take four times its memory.
    """

    def __init__(self, constants: dict[str, _Constants]) -> None:
        """Keep the constants, which stay as they are where others take their place in the graph."""
        self._constants = constants

    def __getitem__(self, name: str) -> IntegerWeight:
        codes, scale, zero_point = self._constants[name]
        zero_points = None if zero_point is None else _integers(zero_point)
        return IntegerWeight(_integers(codes), scale.data.copy(), zero_points, _element(codes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._constants)

    def __len__(self) -> int:
        return len(self._constants)

    def names_of(self, element: str | None) -> frozenset[str]:
        """Those whose codes are of an element type."""
        return frozenset(name for name, (codes, _, _) in self._constants.items() if _element(codes) == element)


class _Constants(NamedTuple):
    codes: ov.Node
    scale: ov.Node
    zero_point: ov.Node | None


def weight_part(constant: str, weights: Container[str]) -> tuple[str, str]:
    """Take a constant's name apart: the weight's that it is a part of, and what follows; its own name where of none.

    Args:
        constant: A name in a compressed graph.
        weights: Names of compressed weights.
    """
    for suffix in (SCALE, ZERO_POINT):
        if constant.endswith(suffix) and constant.removesuffix(suffix) in weights:
            return constant.removesuffix(suffix), suffix
    return constant, ""


def integer_weights(model: ov.Model) -> GraphWeights:
    """Every weight that is stored as codes with f16 scales, by its constant's name."""
    constants = _constants(model)
    found = {}
    for name, codes in constants.items():
        scale = constants.get(name + SCALE)
        if _element(codes) in RANGES and scale is not None and _element(scale) == "f16":
            found[name] = _Constants(codes, scale, constants.get(name + ZERO_POINT))
    return GraphWeights(found)


def replace_integer_weights(model: ov.Model, weights: Mapping[str, IntegerWeight]) -> None:
    """Put other codes, scales and zero points in place of a graph's, by the names that ``integer_weights`` gave."""
    import numpy as np
    import openvino as ov
    from openvino.op import Constant

    constants, owners = _constants(model), []
    for name, weight in weights.items():
        parts: dict[str, NDArray[Any]] = {name: weight.codes, name + SCALE: weight.scales}
        if weight.zero_points is not None and weight.has_own_zero_points:
            parts[name + ZERO_POINT] = weight.zero_points
        for part, values in parts.items():
            old = constants[part]
            element, shape = old.get_element_type(), ov.Shape(old.get_output_shape(0))
            if values.dtype != np.float16:
                values = packed(_stored(values, element.get_type_name()), element.get_bitwidth())
            tensor = ov.Tensor(np.ascontiguousarray(values), shape, element)
            new = Constant(tensor, shared_memory=True)
            new.set_friendly_name(part)
            new.output(0).set_names(old.output(0).get_names())
            old.output(0).replace(new.output(0))
            owners.append(tensor)
    keep_alive(model, (memory_owners(model), owners))


def num_bits_of(element: str) -> int:
    """The bits of one code of an element type."""
    return 4 if element in FLOATS else int(element[1:])


def packed(codes: NDArray[Any], num_bits: int) -> NDArray[Any]:
    """Codes as OpenVINO stores them, the first value in the lowest bits; of three bits the third stands apart."""
    import numpy as np

    values: NDArray[Any] = codes.reshape(-1).astype(np.int16).astype(np.uint8)
    if num_bits == 8:
        return values
    values &= (1 << num_bits) - 1
    values = np.concatenate([values, np.zeros(-values.size % 8, np.uint8)]).reshape(-1, 8)
    if num_bits == 3:
        quarters = _joined(values & 3, np.array([6, 4, 2, 0], np.uint8))
        last = _joined(values >> 2, np.arange(7, -1, -1, dtype=np.uint8))
        whole = np.concatenate([quarters, last], axis=1)
    else:
        whole = _joined(values, np.arange(0, 8, num_bits, dtype=np.uint8))
    return whole.reshape(-1)[: -(-codes.size * num_bits // 8)]


def unpacked(stored: NDArray[Any], num_bits: int, count: int) -> NDArray[Any]:
    """The reverse of ``packed``, codes as unsigned numbers."""
    import numpy as np

    if num_bits == 8:
        return stored[:count]
    if num_bits == 3:
        triples = np.concatenate([stored, np.zeros(-stored.size % 3, np.uint8)]).reshape(-1, 3, 1)
        low = ((triples[:, :2] >> np.array([6, 4, 2, 0], np.uint8)) & 3).reshape(-1, 8)
        codes = low | (((triples[:, 2] >> np.arange(7, -1, -1, dtype=np.uint8)) & 1) << 2)
    else:
        codes = (stored[:, None] >> np.arange(0, 8, num_bits, dtype=np.uint8)) & ((1 << num_bits) - 1)
    return codes.reshape(-1)[:count]


def _stored(codes: NDArray[Any], element: str) -> NDArray[Any]:
    """Codes as the bits of an element type: those of f4e2m1 are sign and magnitude."""
    import numpy as np

    return np.argsort(_BY_SIGN).astype(np.int16)[codes] if element == "f4e2m1" else codes


def _joined(values: NDArray[Any], shifts: NDArray[Any]) -> NDArray[Any]:
    """Bytes of as many values as there are shifts; ``values`` ``[n, 8]``."""
    import numpy as np

    parts = values.reshape(len(values), -1, len(shifts)) << shifts
    return np.asarray(np.bitwise_or.reduce(parts, axis=-1))


def _constants(model: ov.Model) -> dict[str, ov.Node]:
    return {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}


def _element(constant: ov.Node) -> str:
    return str(constant.get_element_type().get_type_name())


def _integers(constant: ov.Node) -> NDArray[Any]:
    import numpy as np

    return codes_of(constant.data.reshape(-1).view(np.uint8), _element(constant), tuple(constant.get_output_shape(0)))


def codes_of(stored: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The codes of a shape that are stored as an element type, as int16."""
    import math

    import numpy as np

    num_bits = num_bits_of(name)
    codes = unpacked(stored, num_bits, math.prod(shape)).astype(np.int16)
    if name == "f4e2m1":
        codes = np.array(_BY_SIGN, np.int16)[codes]
    if name.startswith("i"):
        codes -= (codes >= 1 << (num_bits - 1)).astype(np.int16) << num_bits
    return codes.reshape(shape)
