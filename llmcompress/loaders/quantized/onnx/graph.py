"""What the operations of an ONNX graph multiply by, as the weights of transformers' class: names, and where codes lie.

Exporters name each operation after the module that it comes from, ``/model/layers.0/mlp/up_proj/MatMul``; the weights
often have a number for a name. Operations: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.onnx.file import Graph, Node
from llmcompress.loaders.quantized.packed import ORIGINAL
from llmcompress.loaders.safetensors_file import TensorInfo

_FLOATS = ("F32", "F16", "BF16")
_CODES = {"U8": 8, "I8": 8, "U4": 4, "I4": 4}
_NORMS_PLUS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text")
"""Their classes add 1 to the weights of norms, exporters before they write them."""
_TENSOR = re.compile(r"(.+?)(?:\.MatMul|\.Add)?\.(weight|bias)(?:_.*)?")
_OWN_NAME = re.compile(r"(.+)\.(weight|bias)")
_FINAL_NORM = re.compile(r"model\.layers\.\d+\.final_norm_layernorm")
_VECTORS = {
    "Mul": {0: "weight", 1: "weight"},
    "Add": {0: "bias", 1: "bias"},
    "Gemm": {2: "bias"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "SimplifiedLayerNormalization": {1: "weight"},
    "RMSNormalization": {1: "weight"},
    "SkipLayerNormalization": {2: "weight", 3: "bias"},
    "SkipSimplifiedLayerNormalization": {2: "weight"},
    "MatMulNBits": {5: "bias"},
}
"""What the vectors among an operation's inputs are to its module."""
_TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}
"""Cosines and sines, which the model's class computes."""


class Matrix(NamedTuple):
    """A weight as a graph multiplies by it."""

    name: str
    """Of the tensor in transformers, before what is fused is parted."""
    kind: str
    """For people: MatMulNBits 4 bits, F16."""
    shape: tuple[int, int]
    """Output and input channels, as the class has them."""
    codes: str
    """The name of its tensor."""
    rows_first: bool
    """Whether output channels come first in it."""
    bits: int | None = None
    """Of a code; None: floats."""
    signed: bool = False
    scales: str = ""
    zeros: str = ""
    """Empty: all of them are ``zero``."""
    block: int | None = None
    """Columns of a group; None: a row is one."""
    zero: int = 0
    """The code that stands for 0, where no zero points are there."""
    one_zero: bool = False
    """Whether one zero point is that of all codes."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that it lies in."""
        return tuple(part for part in (self.codes, self.scales, self.zeros) if part)


class Vector(NamedTuple):
    """A bias, or the weight of a norm."""

    name: str
    tensor: str
    less: float = 0.0
    """What is subtracted: the 1 that Gemma's norms add may be in it."""


class Found(NamedTuple):
    """What of a graph is a weight."""

    matrices: tuple[Matrix, ...]
    vectors: tuple[Vector, ...]


class _Codes(NamedTuple):
    """A matrix that a graph computes from constants."""

    kind: str
    tensor: str
    transposed: bool
    scales: str = ""
    zeros: str = ""
    axis: int = 0
    block: int = 0


def find_weights(graph: Graph, config: Mapping[str, Any]) -> Found:
    """Find the weights among a graph's tensors.

    Raises:
        ModelError: An operation on a weight that is not read.
    """
    search = _Search(graph, config.get("model_type") in _NORMS_PLUS_ONE)
    matrices = {matrix.name: matrix for matrix in _once(search.matrices())}
    vectors = {vector.name: vector for vector in _once(search.vectors())}
    if not matrices:
        raise ModelError(
            "no operation of its graph multiplies by a weight",
            where=graph.producer or "ONNX",
            hint="give the file with the whole decoder, which is not in branches; or " + ORIGINAL,
        )
    search.refuse_others()
    head, embedding = matrices.get("lm_head.weight"), matrices.get("model.embed_tokens.weight")
    if head is not None and embedding is not None and config.get("tie_word_embeddings") and _is_one(head, embedding):
        # The class has one matrix for both.
        del matrices["lm_head.weight"]
    return Found(tuple(matrices.values()), tuple(vectors.values()))


def weight_tensors(graph: Graph, found: Found) -> dict[str, TensorInfo]:
    """The tensors of a graph that weights lie in, in the order of their bytes.

    Raises:
        ModelError: Two of them share bytes.
    """
    names = {name for matrix in found.matrices for name in matrix.parts} | {vector.tensor for vector in found.vectors}
    tensors = {name: graph.tensors[name] for name in names if name not in graph.listed}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].file, item[1].start, item[1].end)))
    before = TensorInfo("", "", (), 0, 0)
    for name, tensor in ordered.items():
        if tensor.file == before.file and tensor.start < before.end:
            raise ModelError(
                f"tensor {name!r} overlaps the tensor before it", where=tensor.file, hint="download the file again"
            )
        before = tensor
    return ordered


def _is_one(head: Matrix, embedding: Matrix) -> bool:
    return head.codes == embedding.codes or (head.bits is None and embedding.bits is None)


def _once(found: Iterable[Any]) -> Iterator[Any]:
    """Each weight once; a layer that is computed in two places is one."""
    seen: dict[str, Any] = {}
    for each in found:
        if seen.setdefault(each.name, each) != each:
            raise ModelError(
                f"the weight {each.name} is there in more than one way", where="graph", hint="download the file again"
            )
    yield from seen.values()


class _Search:
    """Follows the operations of a graph to the tensors that they take."""

    def __init__(self, graph: Graph, norms_plus_one: bool) -> None:
        self._graph, self._norms_plus_one = graph, norms_plus_one
        self._tensors: Mapping[str, TensorInfo] = graph.tensors
        self._made_by = {output: node for node in graph.nodes for output in node.outputs}
        self._taken_by: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._taken_by.setdefault(name, []).append(node)
        self._used: set[str] = set()

    def matrices(self) -> Iterator[Matrix]:
        for node in self._graph.nodes:
            if node.kind in ("MatMul", "Gemm") and len(node.inputs) > 1:
                if (codes := self._followed(node.inputs[1])) is not None:
                    # A linear layer is stored with its input channels first.
                    rows_first = codes.transposed != bool(node.numbers.get("transB"))
                    yield self._matrix(node, codes, rows_first)
            elif node.kind == "Gather" and node.inputs and (codes := self._followed(node.inputs[0])) is not None:
                yield self._matrix(node, codes, not codes.transposed)
            elif node.kind == "Gather" and node.inputs and self._is_codes(node.inputs[0]):
                yield self._gathered(node)
            elif node.kind == "GatherBlockQuantized":
                yield self._blocks(node)
            elif node.kind == "MatMulNBits":
                yield self._nbits(node)
            elif node.kind in ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
                yield self._integers(node)

    def vectors(self) -> Iterator[Vector]:
        """Those that are no part of a matrix, which were looked for before."""
        others = set(self._used)
        for node in self._graph.nodes:
            for place, role in _VECTORS.get(node.kind, {}).items():
                name = node.inputs[place] if place < len(node.inputs) else ""
                tensor = self._tensors.get(name)
                if tensor is None or name in others or tensor.dtype not in _FLOATS:
                    continue
                if len(tensor.shape) != 1 or tensor.shape[0] < 2:
                    continue
                self._used.add(name)
                # A norm's weight may be added to before it is multiplied by.
                own = _OWN_NAME.fullmatch(name)
                if own is not None and ":" not in name:
                    role = own[2]
                adds_one = self._norms_plus_one and role == "weight" and node.kind != "Add"
                yield Vector(f"{_module(node, name)}.{role}", name, 1.0 if adds_one else 0.0)

    def refuse_others(self) -> None:
        """Refuse vectors and matrices of floats or codes that go into operations whose weights are not known."""
        for name, nodes in self._taken_by.items():
            tensor = self._tensors.get(name)
            if tensor is None or name in self._used or len(tensor.shape) not in (1, 2) or min(tensor.shape) < 2:
                continue
            for node in nodes:
                is_table = any(node.inputs[n : n + 1] == (name,) for n in _TABLES.get(node.kind, ()))
                if tensor.dtype in (*_FLOATS, *_CODES) and "rotary" not in node.name and not is_table:
                    raise ModelError(
                        f"the tensor {name!r} goes into {node.kind} ({node.name or 'without a name'}), which is not "
                        "read",
                        where=tensor.file,
                        hint=ORIGINAL,
                    )

    def _is_codes(self, name: str) -> bool:
        tensor = self._tensors.get(name)
        return tensor is not None and len(tensor.shape) == 2 and tensor.dtype in _CODES

    def _followed(self, value: str) -> _Codes | None:
        """A matrix of floats, or one that is dequantized, past what moves or casts it; None: it is no constant."""
        transposed = False
        for _ in range(4):
            tensor = self._tensors.get(value)
            if tensor is not None:
                is_matrix = len(tensor.shape) == 2 and min(tensor.shape) > 1 and tensor.dtype in _FLOATS
                return _Codes(tensor.dtype, value, transposed) if is_matrix else None
            node = self._made_by.get(value)
            if node is None or not node.inputs:
                return None
            if node.kind == "DequantizeLinear":
                if not self._is_codes(node.inputs[0]) or len(node.inputs) < 2:
                    return None
                axis = node.numbers.get("axis", 0 if node.numbers.get("block_size") else 1)
                zeros = node.inputs[2] if len(node.inputs) > 2 else ""
                return _Codes(
                    "DequantizeLinear", node.inputs[0], transposed, node.inputs[1], zeros, axis % 2,
                    node.numbers.get("block_size", 0),
                )  # fmt: skip
            if node.kind == "Transpose":
                transposed = not transposed
            elif node.kind not in ("Cast", "Identity"):
                return None
            value = node.inputs[0]
        return None

    def _matrix(self, node: Node, codes: _Codes, rows_first: bool) -> Matrix:
        """One of floats, or of codes with a scale for all, for each channel, or for blocks along an axis."""
        tensor = self._tensors[codes.tensor]
        shape = tensor.shape if rows_first else tensor.shape[::-1]
        name = f"{_module(node, codes.tensor)}.weight"
        if not codes.scales:
            self._used.add(codes.tensor)
            return Matrix(name, codes.kind, (shape[0], shape[1]), codes.tensor, rows_first)
        rows_axis = 0 if rows_first else 1
        scales = self._vector(codes.scales, node)
        of_all = len(scales.shape) < 2 and max(scales.shape, default=1) == 1
        if (codes.block == 0) != (codes.axis == rows_axis) and not of_all:
            raise self._not_read(node, f"scales along the axis {codes.axis}")
        bits = _CODES[tensor.dtype]
        return self._used_up(
            Matrix(
                name,
                f"{codes.kind} {bits} bits",
                (shape[0], shape[1]),
                codes.tensor,
                rows_first,
                bits,
                tensor.dtype in ("I8", "I4"),
                codes.scales,
                codes.zeros,
                codes.block or None,
            ),
            node,
        )

    def _gathered(self, node: Node) -> Matrix:
        """Rows of codes that are dequantized after they were looked up."""
        for taker in self._taken_by.get(node.outputs[0], ()) if node.outputs else ():
            if taker.kind == "DequantizeLinear" and len(taker.inputs) > 1:
                zeros = taker.inputs[2] if len(taker.inputs) > 2 else ""
                if self._vector(taker.inputs[1], node).shape in ((), (1,)):
                    codes = _Codes("DequantizeLinear", node.inputs[0], False, taker.inputs[1], zeros)
                    return self._matrix(node, codes, True)
        raise self._not_read(node, "codes that have no single scale behind it")

    def _blocks(self, node: Node) -> Matrix:
        """An embedding in blocks; codes of 4 bits may be written as bytes of two."""
        inputs = (*node.inputs, "", "")
        tensor = self._tensors.get(inputs[0])
        bits = node.numbers.get("bits", 4)
        if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in _CODES or bits not in (4, 8):
            raise self._not_read(node, f"{bits} bits")
        if node.numbers.get("gather_axis", 0) or node.numbers.get("quantize_axis", 1) not in (1, -1):
            raise self._not_read(node, "another axis than the last")
        rows, columns = tensor.shape
        if tensor.dtype == "U8" and bits == 4:
            columns *= 2
        elif _CODES[tensor.dtype] != bits:
            raise self._not_read(node, f"{tensor.dtype} with {bits} bits")
        name = f"{_module(node, inputs[0])}.weight"
        matrix = Matrix(
            name, f"GatherBlockQuantized {bits} bits", (rows, columns), inputs[0], True, bits,
            tensor.dtype in ("I4", "I8"), inputs[2], inputs[3], node.numbers.get("block_size", 128),
            1 << (bits - 1) if tensor.dtype == "U8" else 0,
        )  # fmt: skip
        return self._used_up(matrix, node)

    def _nbits(self, node: Node) -> Matrix:
        inputs = (*node.inputs, "", "", "")
        bits, block = node.numbers.get("bits", 4), node.numbers.get("block_size", 0)
        columns, rows = node.numbers.get("K", 0), node.numbers.get("N", 0)
        if bits not in (2, 4, 8) or inputs[4]:
            raise self._not_read(node, "g_idx, as of GPTQ's act-order" if inputs[4] else f"{bits} bits")
        codes = self._tensors.get(inputs[1])
        if codes is None or min(block, columns, rows) < 1 or max(block, columns, rows) > 1 << 31:
            raise self._not_read(node, f"{rows} x {columns} codes in blocks of {block}")
        num_blocks = -(-columns // block)
        if codes.dtype != "U8" or codes.shape != (rows, num_blocks, block * bits // 8):
            raise self._not_read(node, f"{list(codes.shape)} bytes for {rows} x {columns} codes in blocks of {block}")
        name = f"{_module(node, inputs[1])}.weight"
        matrix = Matrix(
            name, f"MatMulNBits {bits} bits", (rows, columns), inputs[1], True, bits, False,
            inputs[2], inputs[3], block, 1 << (bits - 1),
        )  # fmt: skip
        return self._used_up(matrix, node)

    def _integers(self, node: Node) -> Matrix:
        """Products of integers, whose activations are quantized as they come."""
        inputs = (*node.inputs, *[""] * 6)
        codes = self._tensors.get(inputs[1])
        if codes is None or len(codes.shape) != 2 or codes.dtype not in ("U8", "I8"):
            raise self._not_read(node, "other than a matrix of 8 bits")
        places = {"MatMulInteger": (0, 3), "DynamicQuantizeMatMul": (2, 3), "MatMulIntegerToFloat": (3, 5)}
        scales, zeros = (inputs[place] if place else "" for place in places[node.kind])
        found = _Codes(node.kind, inputs[1], False, scales or self._scale_behind(node), zeros, axis=1)
        return self._matrix(node, found, False)

    def _scale_behind(self, node: Node) -> str:
        """The scale of the weight in what the product of integers is multiplied by."""
        values = list(node.outputs)
        for _ in range(2):
            for taker in self._taken_by.get(values[0], ()) if values else ():
                if taker.kind == "Cast":
                    values = list(taker.outputs)
                    continue
                for scale in taker.inputs if taker.kind == "Mul" else ():
                    product = self._made_by.get(scale)
                    for each in (scale, *(product.inputs if product is not None and product.kind == "Mul" else ())):
                        if each in self._tensors:
                            return each
        raise self._not_read(node, "no scale behind it")

    def _vector(self, name: str, node: Node) -> TensorInfo:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.dtype not in _FLOATS:
            raise self._not_read(node, "scales that are no constants")
        return tensor

    def _used_up(self, matrix: Matrix, node: Node) -> Matrix:
        """Check that scales and zero points are there for every group."""
        rows, columns = matrix.shape
        if matrix.block is not None and matrix.block < 1:
            raise self._not_read(node, f"{rows} x {columns} codes in blocks of {matrix.block}")
        groups = 1 if matrix.block is None else -(-columns // matrix.block)
        if (matrix.bits == 4 and columns % 2) or (not matrix.rows_first and matrix.bits == 4 and rows % 2):
            raise self._not_read(node, f"{rows} x {columns} codes of 4 bits, which are no whole bytes")
        count = _count(self._vector(matrix.scales, node))
        zeros = self._tensors.get(matrix.zeros)
        fits = count == rows * groups or (count == 1 and matrix.block is None)
        if matrix.zeros:
            packed = rows * -(-groups * (matrix.bits or 8) // 8)
            accepted = {count, packed} if zeros is not None and zeros.dtype in ("U8", "U4") else {count}
            fits = fits and zeros is not None and _count(zeros) in accepted
        if not fits:
            raise self._not_read(node, f"scales and zero points that are not one for each of {rows} x {groups} groups")
        self._used.update(matrix.parts)
        return matrix._replace(one_zero=zeros is not None and _count(zeros) == 1)

    def _not_read(self, node: Node, what: str) -> ModelError:
        return ModelError(
            f"{node.kind} ({node.name or 'without a name'}) has {what}, which is not read",
            where=self._graph.producer or "ONNX",
            hint=ORIGINAL,
        )


def _count(tensor: TensorInfo) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _module(node: Node, tensor: str) -> str:
    """The module that an operation is named after, else the one that its tensor is, as transformers names it."""
    own = _TENSOR.fullmatch(tensor)
    path = ".".join(node.name.strip("/").split("/")[:-1]) if node.name.startswith("/") else ""
    path = path or (own[1] if own else tensor)
    path = path.replace(".attn.", ".self_attn.").removesuffix(".layernorm")
    return "model.norm" if _FINAL_NORM.fullmatch(path) else path
