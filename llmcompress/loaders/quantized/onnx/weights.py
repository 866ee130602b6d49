"""The weights of an ONNX model: codes of its graph's operations, repacked for transformers' own class.

The graph itself is not kept. The one that the exporter makes of the class has the key-value cache inside and is what
every runtime of OpenVINO optimizes; the file's operations say which weights go into it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import Element, in_blocks, packed4, regrouped, shortest, unpacked
from llmcompress.loaders.quantized.experts import joined
from llmcompress.loaders.quantized.onnx.file import Graph, read_graph
from llmcompress.loaders.quantized.onnx.graph import Matrix, Vector, find_weights
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight, common_group_size, signed
from llmcompress.loaders.quantized.stored import MappedTensors, Read, StoredWeight, mapped_bytes
from llmcompress.loaders.safetensors_file import TensorInfo
from llmcompress.loaders.tensors import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOATS: Mapping[str, Element] = {"F16": "f16", "BF16": "bf16", "F32": "f32"}
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1", "U4": "u1", "I4": "u1"}
_FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
"""The layers that the classes of Phi-3 have as one."""
_FUSED_CLASSES = ("phi3",)


class OnnxWeights(NamedTuple):
    """The weights of a model. By its graph alone."""

    weights: tuple[StoredWeight, ...]
    """The matrices."""
    plain: Checkpoint
    """The headers that the model would have in f32."""
    mapped: MappedTensors
    floats: Callable[[], dict[str, NDArray[Any]]]
    """The values of the other tensors, in f32, by the names that transformers gives them."""


class _Part(NamedTuple):
    """Rows of a weight in the graph that are one in the class."""

    name: str
    first: int
    last: int


def onnx_weights(config: Mapping[str, Any], checkpoint: Checkpoint) -> OnnxWeights:
    """Find the weights of an ONNX model whose files are here.

    Args:
        config: Of the model that the file was made of.
        checkpoint: The headers of its files, with the names of the graph.

    Raises:
        ModelError: An operation on a weight that is not read, or sizes that the configuration does not have.
    """
    # Sizes of files were looked at when the checkpoint was made.
    graph = read_graph(checkpoint.path / checkpoint.files[0], lambda name: 1 << 62)
    found = find_weights(graph, config)
    mapped = _mapped(checkpoint, graph)
    weights = [
        _stored(matrix, part, graph.tensors)
        for matrix in found.matrices
        for part in _parts(matrix, matrix.shape[0], config)
    ]
    if config.get("model_type") in _FUSED_CLASSES:
        weights = _fused(weights)
    vectors = [
        (vector, part)
        for vector in found.vectors
        for part in _parts(vector, graph.tensors[vector.tensor].shape[0], config)
    ]
    plain = {weight.name: TensorInfo("", "F32", weight.shape, 0, 0) for weight in weights}
    for vector, part in vectors:
        tensor = graph.tensors[vector.tensor]
        plain[part.name] = TensorInfo(tensor.file, "F32", (part.last - part.first,), tensor.start, tensor.end)
    return OnnxWeights(
        weights=tuple(weights),
        plain=checkpoint._replace(tensors=plain),
        mapped=mapped,
        floats=lambda: {part.name: _values(mapped.read(vector.tensor), vector, part) for vector, part in vectors},
    )


def _mapped(checkpoint: Checkpoint, graph: Graph) -> MappedTensors:
    """Gives tensors of the graph with its shapes, those of 4 bits as bytes of two."""
    import numpy as np

    # Torch takes no memory that cannot be written.
    mapped = mapped_bytes(checkpoint, "c")

    def read(name: str) -> NDArray[Any]:
        tensor = graph.tensors[name]
        listed = graph.listed.get(name)
        stored = mapped.read(name) if listed is None else np.frombuffer(listed, np.uint8)
        values = stored.view(_NUMPY[tensor.dtype])
        if tensor.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
        return values if tensor.dtype in ("U4", "I4") else values.reshape(tensor.shape)

    def release(name: str) -> None:
        if name in checkpoint.tensors:
            mapped.release(name)

    return MappedTensors(read, release)


def _parts(whole: Matrix | Vector, rows: int, config: Mapping[str, Any]) -> list[_Part]:
    """What a weight is in the class: itself, or queries, keys and values that an exporter has put together."""
    module, _, role = whole.name.rpartition(".")
    if not module.endswith(".self_attn.qkv_proj") or config.get("model_type") in _FUSED_CLASSES:
        return [_Part(whole.name, 0, rows)]
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    key_heads = config.get("num_key_value_heads") or heads
    given = config.get("head_dim") or (hidden // heads if type(hidden) is int and type(heads) is int and heads else 0)
    sizes = [count * given for count in (heads, key_heads, key_heads) if type(count) is int and type(given) is int]
    if len(sizes) != 3 or min(sizes) < 1 or sum(sizes) != rows:
        raise ModelError(
            f"{whole.name} has {rows} rows, and config.json gives {sizes} for queries, keys and values",
            where="config.json",
            hint="take the config.json of the model that the file was made of",
        )
    parts, first = [], 0
    for name, size in zip(("q_proj", "k_proj", "v_proj"), sizes, strict=True):
        parts.append(_Part(f"{module.removesuffix('qkv_proj')}{name}.{role}", first, first + size))
        first += size
    return parts


def _fused(weights: list[StoredWeight]) -> list[StoredWeight]:
    """Put layers together that a class has as one, where the graph has them apart."""
    by_name = {weight.name: weight for weight in weights}
    for name in list(by_name):
        for whole, parts in _FUSED.items():
            first = f"{whole.rpartition('.')[0]}.{parts[0]}.weight"
            prefix = name.removesuffix(first)
            names = [f"{prefix}{whole.rpartition('.')[0]}.{part}.weight" for part in parts]
            if name == prefix or not by_name.keys() >= set(names):
                continue
            halves = [by_name.pop(each) for each in names]
            if len({(half.columns, half.format, half.group_size) for half in halves}) > 1:
                raise ModelError(
                    f"{', '.join(names)} are one layer of this class, and not stored alike",
                    where="graph",
                    hint=ORIGINAL,
                )
            shape = (sum(half.shape[0] for half in halves), halves[0].columns)
            by_name[f"{prefix}{whole}.weight"] = halves[0]._replace(
                name=f"{prefix}{whole}.weight",
                shape=shape,
                parts=frozenset[str]().union(*(half.parts for half in halves)),
                repack=functools.partial(_repack_joined, halves, shape),
            )
    return list(by_name.values())


def _repack_joined(halves: list[StoredWeight], shape: tuple[int, ...], read: Read) -> PackedWeight:
    return joined([half.repack(read) for half in halves], shape)


def _values(stored: NDArray[Any], vector: Vector, part: _Part) -> NDArray[np.float32]:
    import numpy as np

    values = stored[part.first : part.last].astype(np.float32)
    return values - np.float32(vector.less) if vector.less else values


def _stored(matrix: Matrix, part: _Part, tensors: Mapping[str, TensorInfo]) -> StoredWeight:
    shape = (part.last - part.first, matrix.shape[1])
    made = functools.partial(StoredWeight, name=part.name, shape=shape, parts=frozenset(matrix.parts))
    if matrix.bits is None:
        element = _FLOATS[tensors[matrix.codes].dtype]
        return made(
            format=f"ONNX {matrix.kind}",
            element=element,
            group_size=matrix.shape[1],
            repack=functools.partial(_as_it_is, matrix, part, element),
            is_quantized=False,
        )
    has_zeros = not matrix.signed and (bool(matrix.zeros) or not matrix.zero)
    wide, narrow = ("u8", "i8") if matrix.bits == 8 else ("u4", "i4")
    zeros = tensors[matrix.zeros].dtype if matrix.zeros else ""
    return made(
        format=f"ONNX {matrix.kind}",
        element=wide if has_zeros else narrow,  # type: ignore[arg-type]
        group_size=common_group_size(matrix.shape[1], matrix.block or matrix.shape[1], part.name),
        asymmetric=has_zeros,
        repack=functools.partial(_repacked, matrix, part),
        scale="f32" if tensors[matrix.scales].dtype == "F32" else "f16",
        zero_point="f32" if zeros in _FLOATS else None,
    )


def _as_it_is(matrix: Matrix, part: _Part, element: Element, read: Read) -> PackedWeight:
    import numpy as np

    values = read(matrix.codes)
    if element == "bf16":
        # They were read as f32, whose upper halves they are.
        values = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2")
    rows = values[part.first : part.last] if matrix.rows_first else values[:, part.first : part.last].T
    codes = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    return PackedWeight(codes, element, (len(rows), matrix.shape[1]), np.ones((len(rows), 1), np.float16))


def _repacked(matrix: Matrix, part: _Part, read: Read) -> PackedWeight:
    import numpy as np

    assert matrix.bits is not None
    bits, middle = matrix.bits, 1 << (matrix.bits - 1)
    rows, columns = part.last - part.first, matrix.shape[1]
    block = matrix.block or columns
    groups = -(-columns // block)
    stored = read(matrix.codes).view(np.uint8)
    moved = np.uint8(middle if matrix.signed else 0)

    def codes_of(span: slice) -> NDArray[Any]:
        """One byte for each code, without sign."""
        first, last = part.first + span.start, part.first + span.stop
        if not matrix.rows_first:
            # Two rows lie in a byte.
            pairs = 2 if bits == 4 else 1
            whole = stored.reshape(columns, -1)[:, first // pairs : -(-last // pairs)]
            codes = (unpacked(whole, bits) if bits == 4 else whole)[:, first % pairs :][:, : last - first].T
        else:
            codes = stored.reshape(matrix.shape[0], -1)[first:last]
            codes = codes if bits == 8 else unpacked(codes, bits)
        # The last block may be longer than the row.
        return ((codes[:, :columns] + moved) & np.uint8(2**bits - 1)) if bits < 8 else codes[:, :columns] + moved

    def per_group(values: NDArray[Any]) -> NDArray[Any]:
        """``[rows, groups]`` of this part."""
        if values.size == 1:
            return np.broadcast_to(values.reshape(1, 1), (rows, groups))
        whole = values.reshape(matrix.shape[0], groups) if matrix.rows_first else values.reshape(groups, -1).T
        return whole[part.first : part.last]

    common = common_group_size(columns, block, part.name)
    spread = functools.partial(regrouped, group_size=block, common=common, columns=columns)
    weight = PackedWeight(
        codes=in_blocks(rows, columns, np.uint8, lambda span: codes_of(span) if bits == 8 else packed4(codes_of(span))),
        element="u8" if bits == 8 else "u4",
        shape=(rows, columns),
        scales=spread(shortest(per_group(read(matrix.scales)))),
        zero_points=spread(np.ascontiguousarray(per_group(_zeros(matrix, groups, read)))),
    )
    return signed(weight, middle)


def _zeros(matrix: Matrix, groups: int, read: Read) -> NDArray[Any]:
    """Zero points as codes without sign, or as numbers."""
    import numpy as np

    assert matrix.bits is not None
    bits, middle = matrix.bits, np.uint8(1 << (matrix.bits - 1))
    if not matrix.zeros:
        return np.full(1, middle if matrix.signed else matrix.zero, np.uint8)
    stored = read(matrix.zeros)
    if stored.dtype.kind == "f":
        return shortest(stored)
    codes = stored.view(np.uint8)
    count = matrix.shape[0] * groups
    if bits < 8 and codes.size < count and not matrix.one_zero:
        # Rows of bytes, or of a tensor of 4 bits one stream.
        width = -(-groups * bits // 8)
        is_rows = codes.size == matrix.shape[0] * width and matrix.rows_first
        codes = unpacked(codes.reshape(matrix.shape[0] if is_rows else 1, -1), bits)
        codes = codes[:, :groups] if is_rows else codes[:, :count]
    moved = codes + middle if matrix.signed else codes
    return moved & np.uint8(2**bits - 1) if bits < 8 else moved
