"""NNCF's AWQ: the search for the scales of each group of channels, all its steps in parallel.

Every step scales the group's weights, quantizes them and compares their products with the activations; none depends on
another but for the choice among them, which is made afterwards in NNCF's order. As for scale estimation, BLAS sums with
one thread in blocks of whole panels, as for NNCF alone with one BLAS thread.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from nncf import CompressWeightsMode as Mode
from nncf.common.tensor_statistics.statistics import WCTensorStatistic
from nncf.quantization.algorithms.weight_compression import awq
from nncf.quantization.algorithms.weight_compression.activation_stats import process_stats
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from nncf.tensor import functions as fns
from nncf.tensor.definitions import TensorBackend, TensorDataType
from threadpoolctl import ThreadpoolController

from llmcompress.compression.kernels.estimation import NotFiniteError, blocks, requantize_scaled
from llmcompress.compression.nncf.group_codes import FORMATS, is_by_numpy
from llmcompress.compression.nncf.weight_codes import agrees
from llmcompress.graph.integer_weights import Rescaling
from llmcompress.graph.model import parameter_name
from llmcompress.system.patching import replaced

_log = logging.getLogger(__name__)

_NAME = "_data_aware_step"
_ARGUMENTS = ("self", "wp", "weight", "statistics", "act_ch_axis", "prev_weight", "prev_statistics")
_SAMPLE = (96, 256, 128)
"""Rows, columns and group size of the matrix by which an NNCF is checked."""


@contextlib.contextmanager
def awq_search(num_threads: int) -> Iterator[None]:
    """Have NNCF's AWQ search by our kernels; where it has moved the name, or computes otherwise, nothing is changed."""
    stock = vars(awq.AWQ).get(_NAME)
    if stock is None or tuple(inspect.signature(stock).parameters) != _ARGUMENTS:
        yield
        return
    blas = ThreadpoolController()

    def found(algorithm: Any, wp: Any, weight: Tensor, *data: Any) -> Tensor:
        if _is_covered(wp, weight) and _searches_agree(stock, wp.compression_config.mode):
            with contextlib.suppress(NotFiniteError), blas.limit(limits=1, user_api="blas"):
                return _scales(algorithm, wp, _Layer(weight, *data), pool)
        result: Tensor = stock(algorithm, wp, weight, *data)
        return result

    with ThreadPoolExecutor(num_threads) as pool, replaced(awq.AWQ, _NAME, found):
        yield


@contextlib.contextmanager
def scales_recorded(found: dict[str, Rescaling]) -> Iterator[None]:
    """Note by what NNCF's AWQ multiplies each weight, by its constant's name.

    Weights whose scale would go into a layer of which NNCF has no statistics are left out, where it fails by itself:
    it collects none of layers that its groups do not divide.
    """
    stock, match = awq.AWQ.apply, awq.AWQ._get_awq_data
    matched: dict[str, Any] = {}
    known: list[Mapping[str, Any]] = []

    def kept(algorithm: Any, graph: Any, *arguments: Any) -> dict[str, Any]:
        found = match(algorithm, graph, *arguments)
        lacking = [node for node, each in found.items() if known and _lacks(algorithm, graph, each, known[0])]
        if lacking:
            names = [_weight_of(algorithm._backend_entity, graph, found[node])[0] for node in lacking]
            _log.warning(
                "AWQ leaves out %d weights, such as %s: their scales would go into weights that the groups do not "
                "divide",
                len(lacking),
                min(map(parameter_name, names)),
            )
        matched.update({node: each for node, each in found.items() if node not in lacking})
        return matched

    def noted(
        algorithm: Any, model: Any, graph: Any, weights: Any, statistics: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        by_data = statistics is not None and getattr(algorithm, "_prefer_data_aware_scaling", True)
        known[:] = [statistics] if by_data else []
        result = stock(algorithm, model, graph, weights, statistics, *arguments, **options)
        for node, scale in algorithm._scale_per_target_node.items():
            _note(found, algorithm._backend_entity, graph, matched[node], np.asarray(scale.data, np.float32))
        return result

    with replaced(awq.AWQ, "_get_awq_data", kept), replaced(awq.AWQ, "apply", noted):
        yield


def _lacks(algorithm: Any, graph: Any, match: Any, statistics: Mapping[str, Any]) -> bool:
    merged = _merged_into(algorithm._backend_entity, graph, match)
    return bool(merged) and match.merge_node.node_name not in statistics


def _weight_of(backend: Any, graph: Any, match: Any) -> tuple[str, list[int]]:
    """Name and shape of the weight that is scaled."""
    (name, port), *_ = backend.get_weight_names_and_port_ids(match.weight_params.node_with_weight, graph)
    return name, list(backend.get_weight_shape(match.weight_params.node_with_weight, port, graph))


def _merged_into(backend: Any, graph: Any, match: Any) -> list[str]:
    """The weights of the layer before that take the inverse of a scale; none: the activations do."""
    before, num_axes = match.merge_node, len(_weight_of(backend, graph, match)[1])
    if not backend.is_node_with_weights(before, graph):
        return []
    ports = backend.get_weight_names_and_port_ids(before, graph)
    if num_axes not in [len(backend.get_weight_shape(before, port, graph)) for _, port in ports]:
        return []
    return [name for name, _ in ports]


def _note(found: dict[str, Rescaling], backend: Any, graph: Any, match: Any, scale: np.ndarray) -> None:
    """Note what one scale, that of the activations, was multiplied into, and its inverse."""
    (axis,) = match.weight_params.reduction_axes
    name, weight_shape = _weight_of(backend, graph, match)
    shape = [1] * len(weight_shape)
    shape[axis] = scale.size
    merged = _merged_into(backend, graph, match)
    _add(found, name, Rescaling((np.reciprocal(scale).reshape(shape),), None if merged else scale.reshape(-1)))
    for each in merged:
        _add(found, each, Rescaling((scale,)))


def _add(found: dict[str, Rescaling], name: str, further: Rescaling) -> None:
    known = found.get(name, Rescaling())
    activations = known.activations if further.activations is None else further.activations
    found[name] = Rescaling((*known.factors, *further.factors), activations)


def _is_covered(wp: Any, weight: Tensor) -> bool:
    """A matrix of integers to be, of which a group is large enough for NNCF's compiled arithmetic."""
    config = wp.compression_config
    if config.mode not in FORMATS or len(weight.shape) != 2 or tuple(wp.reduction_axes) != (1,):
        return False
    if weight.backend != TensorBackend.numpy or weight.dtype != TensorDataType.float32:
        return False
    group_size = weight.shape[1] if config.group_size == -1 else config.group_size
    if weight.shape[1] % group_size or is_by_numpy(weight.shape[0] * group_size):
        return False
    return agrees(config.mode, ov.Type.f32, -1)


@functools.cache
def _searches_agree(stock: Any, mode: Mode) -> bool:
    """Whether an NNCF finds the scales that we find, on a sample whose scales are held back by the layer before."""
    num_rows, num_columns, group_size = _SAMPLE
    values = np.arange(num_rows * num_columns, dtype=np.float32).reshape(num_rows, num_columns)
    means = np.exp(4 * np.cos(np.arange(9 * num_columns, dtype=np.float32) ** 2)).reshape(9, num_columns)
    statistics = WCTensorStatistic([Tensor(mean) for mean in means], [(1, 1, num_columns)] * len(means))
    wp = SimpleNamespace(compression_config=WeightCompressionConfig(mode, group_size), reduction_axes=(1,))
    algorithm = awq.AWQ(subset_size=8, steps=10)
    weight, before = Tensor(np.sin(values**2)), Tensor(np.cos(values[:, :64].reshape(num_columns, -1)))
    for last in ((), (before, statistics)):
        with ThreadpoolController().limit(limits=1, user_api="blas"), ThreadPoolExecutor(1) as pool:
            ours = _scales(algorithm, wp, _Layer(weight, statistics, -1, *last), pool)
            theirs = stock(algorithm, wp, weight, statistics, -1, *last)
        if not np.array_equal(ours.data, theirs.data):
            return False
    return True


class _Layer(NamedTuple):
    """NNCF's arguments."""

    weight: Tensor
    statistics: Any
    act_ch_axis: int
    prev_weight: Tensor | None = None
    """Of the layer whose output channels the scales will divide, if there is one."""
    prev_statistics: Any = None


class _Before(NamedTuple):
    """That layer."""

    means: Tensor
    """Mean weight of each output channel."""
    most: float
    """Largest activation."""
    num_columns: int


def _scales(algorithm: Any, wp: Any, layer: _Layer, pool: ThreadPoolExecutor) -> Tensor:
    """NNCF's function of this name for a matrix of integers to be: a scale for each input channel.

    Raises:
        NotFiniteError: A weight is not finite.
    """
    config, weight = wp.compression_config, layer.weight
    magnitudes, samples = process_stats(layer.statistics, algorithm._subset_size, layer.act_ch_axis)
    magnitudes, samples = magnitudes.astype(TensorDataType.float32), samples.astype(TensorDataType.float32)
    group_size = weight.shape[1] if config.group_size == -1 else config.group_size
    before = None
    if layer.prev_statistics is not None and layer.prev_weight is not None:
        most, _ = process_stats(layer.prev_statistics, algorithm._subset_size, layer.act_ch_axis)
        means = fns.mean(fns.abs(layer.prev_weight), axis=1)
        before = _Before(means, most.astype(TensorDataType.float32).max().item(), layer.prev_weight.shape[1])
    scales = np.ones(weight.shape[1], np.float32)
    num_outliers = max(int(weight.shape[1] * algorithm._percent_to_apply), 1)
    outliers = fns.argsort(-fns.unsqueeze(magnitudes, 0))[0, :num_outliers].data
    for start in np.unique(outliers // group_size) * group_size:
        own = slice(start, start + group_size)
        tried = list(_tried(algorithm, magnitudes[own], before and before._replace(means=before.means[own])))
        found = _best(tried, weight.data[:, own], samples.data[own], config.mode, pool)
        if found is not None:
            scales[own] = found
    return Tensor(scales)


def _tried(algorithm: Any, magnitudes: Tensor, before: _Before | None) -> Iterator[np.ndarray]:
    """The scales of a group that NNCF tries, ``[group_size]`` each.

    Args:
        algorithm: NNCF's AWQ with its settings.
        magnitudes: The largest activation of each channel of the group.
        before: The layer before, with the means of these channels.
    """
    least = fns.astype(fns.quantile(magnitudes, 0.1), TensorDataType.float32)
    base = fns.clip(magnitudes, a_min=least, a_max=1e2)
    alpha = algorithm._alpha_min
    for _ in range(algorithm._steps):
        scale = base**alpha
        if before is not None:
            # A bound of what the layer before puts out must stay within half precision.
            threshold = awq.FP16_OVERFLOW_MARGIN * awq.FP16_MAX_VALUE
            outputs = (before.means / scale) * before.most * before.num_columns
            if outputs.max() >= threshold:
                smallest = before.means * before.most * before.num_columns / threshold
                scale = algorithm._clamp_scale(outputs, threshold, scale, smallest)
        yield scale.data
        alpha += (algorithm._alpha_max - algorithm._alpha_min) / algorithm._steps


def _best(
    tried: list[np.ndarray], weights: np.ndarray, samples: np.ndarray, mode: Mode, pool: ThreadPoolExecutor
) -> np.ndarray | None:
    """The first of the scales by which the products with the activations differ least; None if not one is any good.

    Args:
        tried: float32 ``[group_size]`` each.
        weights: float32 ``[num_rows, group_size]``.
        samples: float32 ``[group_size, num_samples]``.
        mode: How weights are quantized.
        pool: Whose threads try.

    Raises:
        NotFiniteError: A weight is not finite.
    """
    integers = FORMATS[mode].codes
    weights = np.ascontiguousarray(weights)
    num_rows, group_size = weights.shape
    pieces = [rows for rows, _ in blocks(num_rows, 1, group_size)]
    wanted = np.matmul(weights, samples)

    def difference(scale: np.ndarray) -> Any:
        scaled = samples / scale[:, None]
        found = np.empty_like(wanted)
        for rows in pieces:
            values = np.empty((rows.stop - rows.start, group_size), np.float32)
            if not requantize_scaled(weights[rows], scale, integers, values):
                raise NotFiniteError
            np.matmul(values, scaled, out=found[rows])
        found -= wanted
        return np.mean(np.abs(found, out=found))

    best, least = None, np.max(np.abs(wanted))
    for scale, error in zip(tried, pool.map(difference, tried), strict=True):
        if error < least:
            best, least = scale, error
    return best
