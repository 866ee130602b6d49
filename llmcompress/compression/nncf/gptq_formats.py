"""What GPTQ makes of every weight in several formats, by one walk through the layers of the original model.

Activations, Hessians and their factors are the same for all formats; with ``statistics: original`` so are they for all
recipes. A weight in one of these formats has the codes that a recipe gives it, whatever the recipe makes of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.common.logging.track_progress import track
from nncf.quantization.algorithms.weight_compression import gptq
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from nncf.tensor import functions as fns
from nncf.tensor.definitions import TensorDataType

from llmcompress.compression.nncf.embeddings import embedding_codes
from llmcompress.compression.nncf.group_codes import FORMATS
from llmcompress.compression.nncf.runs import Samples
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.graph.integer_weights import IntegerWeight
from llmcompress.graph.model import parameter_name
from llmcompress.spec import WeightCompression
from llmcompress.system.patching import replaced
from llmcompress.system.progress import Reporter

OF_THE_ORIGINAL = {"statistics": "original", "gptq_order": "activations"}
"""Settings of the recipes that make the same."""
_CARRIER = {"mode": "int4_sym", "group_size": -1, "all_layers": True, "gptq": True, **OF_THE_ORIGINAL}
"""A compression that has GPTQ see every matrix; its own codes are thrown away."""


_Found = tuple[Tensor, Tensor, Tensor | None]
"""Values, scales and zero points."""
FormatsOf = Callable[[str], Sequence[tuple[str, int]]]
"""Modes and group sizes, by the name of a constant."""


class Made(NamedTuple):
    """A weight in a format."""

    name: str
    """Of its constant."""
    mode: str
    group_size: int
    weight: IntegerWeight


class Statistics(NamedTuple):
    """What GPTQ goes by."""

    samples: Samples
    moments: Mapping[str, np.ndarray]
    """Of embeddings what ``embedding_moments`` gives, by their names in the checkpoint; others are left out."""


def gptq_in_formats(
    model: ov.Model,
    statistics: Statistics,
    formats_of: FormatsOf,
    keep: Callable[[Made], None],
    progress: Reporter,
) -> None:
    """Hand over each matrix in each format, layer by layer, and then the embeddings.

    Args:
        model: Uncompressed; of no use afterwards.
        statistics: What it goes by.
        formats_of: What is wanted of a constant: integer modes of fewer than 8 bits, with group sizes; one that does
            not divide a weight's input channels is left out there.
        keep: Called with every weight.
        progress: Told of every layer.

    Raises:
        ModelError, RecipeError: As ``compress_weights``.
    """

    def apply(algorithm: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
        algorithm._backend_entity = given["backend_entity"]
        for made in _walk(algorithm, formats_of, **given):
            keep(made)
        for made in _embeddings(algorithm, formats_of, statistics.moments, **given):
            keep(made)
        return given["model"], {}

    with replaced(gptq.GPTQ, "apply", apply):
        compress_weights(model, WeightCompression.model_validate(_CARRIER), statistics.samples, progress=progress)


def _walk(
    algorithm: Any,
    formats_of: FormatsOf,
    *,
    model: Any,
    graph: Any,
    dataset: Any,
    weight_compression_parameters: list[Any],
    backend_entity: Any,
) -> Iterator[Made]:
    """As NNCF's ``GPTQ.apply``, with more than one format."""
    matrices = backend_entity.matmul_metatypes
    targets = {
        each.node_with_weight: each
        for each in weight_compression_parameters
        if each.node_with_weight.metatype in matrices
    }
    walk = algorithm._layerwise_engine.create_iterator_through_target_nodes(model, graph, list(targets), dataset, None)
    for node, inputs in track(walk, total=len(targets), description="Applying GPTQ"):
        target = targets[node]
        weight = fns.astype(
            backend_entity.get_weight(node, target.weight_port_id, model, graph), TensorDataType.float32
        )
        if len(weight.shape) != 2 or backend_entity.matmul_has_transposed_activations(node, graph):
            continue
        wanted = formats_of(target.weight_name)
        if not wanted:
            continue
        (activations,) = inputs.values()
        hessian = algorithm._calculate_hessian(node, activations, False)

        def codes(copy: Tensor, target: Any = target, given: Tensor = hessian[0], rows: Any = activations) -> _Found:
            return algorithm._quantize_weights(target, given, copy, rows)  # type: ignore[no-any-return]

        yield from _in_formats(target, weight, wanted, codes)


def _embeddings(
    algorithm: Any, formats_of: FormatsOf, moments: Mapping[str, np.ndarray], **given: Any
) -> Iterator[Made]:
    """The same of weights that are looked up."""
    for target in given["weight_compression_parameters"]:
        hessian = moments.get(parameter_name(target.weight_name))
        wanted = formats_of(target.weight_name) if hessian is not None else ()
        if hessian is None or not wanted:
            continue
        place = (target.node_with_weight, target.weight_port_id, given["model"], given["graph"])
        weight = fns.astype(given["backend_entity"].get_weight(*place), TensorDataType.float32)

        def codes(copy: Tensor, target: Any = target, hessian: np.ndarray = hessian) -> _Found:
            return embedding_codes(algorithm, target, hessian, copy)

        yield from _in_formats(target, weight, wanted, codes)


def _in_formats(
    target: Any, weight: Tensor, wanted: Sequence[tuple[str, int]], codes: Callable[[Tensor], _Found]
) -> Iterator[Made]:
    carrier = target.compression_config
    for mode, group_size in wanted:
        if group_size != -1 and weight.shape[1] % group_size:
            continue
        target.compression_config = WeightCompressionConfig(Mode(mode), group_size)
        found = codes(Tensor(weight.data.copy()))
        yield Made(target.weight_name, mode, group_size, _stored(Mode(mode), group_size, *found))
    target.compression_config = carrier


def _stored(mode: Mode, group_size: int, values: Tensor, scales: Tensor, zero_points: Tensor | None) -> IntegerWeight:
    """As NNCF stores what its GPTQ has found."""
    form = FORMATS[mode]
    given = values.data if group_size == -1 else values.data.reshape(len(values.data), -1, group_size)
    codes = given / scales.data
    if zero_points is not None:
        codes += zero_points.data
    codes = np.clip(np.rint(codes), form.codes.low, form.codes.high).astype(np.int16) + np.int16(form.codes.offset)
    zeros = None if zero_points is None else np.asarray(zero_points.data).astype(np.int16)
    if form.codes.offset:
        zeros = np.full((1,), form.codes.offset, np.int16)
    return IntegerWeight(codes, scales.data.astype(np.float16), zeros, form.element.get_type_name())
