"""NNCF's GPTQ by our arithmetic: the Hessian of a layer, the factor of its inverse, and the loop over columns.

Matrices that read the same activations (query, key and value; gate and up) share one Hessian and one factor. Given a
factor, a block of columns becomes NNCF's bytes. The factor itself is found by a shorter way with fewer roundings, and
BLAS adds in another order. So it differs from NNCF's in the last bits, as NNCF's own does with another number of BLAS
threads: a weight that lies all but half way between two codes may take the other one, and those behind make up for it.

Which layers, their order, their inputs from the layers quantized before, and the scales stay NNCF's; with
``statistics: original`` the inputs are those of the model as it was.

Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
arXiv:2210.17323.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from nncf import CompressWeightsMode as Mode
from nncf.quantization.algorithms.layerwise.engine import LayerwiseEngine
from nncf.quantization.algorithms.weight_compression import algorithm as weight_compression
from nncf.quantization.algorithms.weight_compression import gptq
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from nncf.tensor import functions as fns
from nncf.tensor.definitions import TensorBackend, TensorDataType

from llmcompress.compression.gptq_layers import gptq_refusal
from llmcompress.compression.kernels.gptq import inverse_factor, second_moments
from llmcompress.compression.nncf.error_feedback import Feedback, propagated
from llmcompress.compression.nncf.group_codes import FORMATS
from llmcompress.compression.nncf.statistics import without_unread_statistics
from llmcompress.errors import ModelError
from llmcompress.spec.modes import GptqOrder
from llmcompress.system.patching import replaced

_TAKEN_OVER = ("_calculate_hessian", "_quantize_weights")
_NOT_TAKEN = (Mode.INT8_ASYM, Mode.INT8_SYM)
"""Modes of layers that GPTQ leaves to plain rounding."""
_COLLECT = "collect_statistics_and_statistic_points"


@contextlib.contextmanager
def layers_checked() -> Iterator[None]:
    """Have NNCF refuse the layers that its GPTQ does not take before it collects anything.

    Below a ratio of 1, statistics may decide which layers those are; the refusal comes before GPTQ's own pass then.
    Where NNCF has moved the names, nothing is changed.

    Raises:
        RecipeError: Names the layers.
    """
    collect = vars(weight_compression.WeightCompression).get(_COLLECT)
    apply = vars(gptq.GPTQ).get("apply")
    if collect is None or apply is None:
        yield
        return

    def collect_checked(compression: Any, model: Any, graph: Any, points: Any, dataset: Any, *params: Any) -> Any:
        if compression._gptq and compression._ratio == 1:
            _require_rows(params[-1], compression._backend_entity)
        return collect(compression, model, graph, points, dataset, *params)

    def apply_checked(algorithm: gptq.GPTQ, **arguments: Any) -> Any:
        _require_rows(arguments["weight_compression_parameters"], arguments["backend_entity"])
        return apply(algorithm, **arguments)

    with (
        replaced(weight_compression.WeightCompression, _COLLECT, collect_checked),
        replaced(gptq.GPTQ, "apply", apply_checked),
    ):
        yield


@contextlib.contextmanager
def of_the_original() -> Iterator[None]:
    """Have NNCF's GPTQ see the activations of the model as it was, whatever became of earlier layers.

    Raises:
        ModelError: The installed NNCF has moved what is taken over.
    """
    name = "create_iterator_through_target_nodes"
    stock = vars(LayerwiseEngine).get(name)
    if stock is None:
        raise ModelError(
            f"the installed NNCF has no {name}, where GPTQ gets its activations from",
            where="weights.statistics",
            hint="install the tested version of NNCF: llmcompress doctor names it",
        )

    def of_a_copy(engine: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        return stock(engine, model.clone(), *arguments, **named)

    with replaced(LayerwiseEngine, name, of_a_copy):
        yield


def _require_rows(params: Sequence[Any], backend: Any) -> None:
    """Refuse weights for GPTQ whose rows are not output channels."""
    taken = [
        given
        for given in params
        if given.compression_config is not None
        and given.compression_config.mode not in _NOT_TAKEN
        and given.node_with_weight.metatype in backend.matmul_metatypes
    ]
    columns = [
        given.node_with_weight.node_name
        for given in taken
        if not given.node_with_weight.layer_attributes.constant_attributes[given.weight_port_id].get("transpose")
    ]
    if columns:
        raise gptq_refusal(columns, all_layers=len(columns) == len(taken))


class _ZeroPoints(Tensor):  # type: ignore[misc]
    """Of one matrix of a stack: NNCF 3.4 asks whether None is among them, and fails on the comparison."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return False if other is None else super().__eq__(other)


class _Shared(NamedTuple):
    """What the matrices that read the same activations have in common."""

    inputs: tuple[weakref.ref[Tensor], ...]
    hessian: Tensor
    """``[1, num_columns, num_columns]``."""
    factors: dict[float, np.ndarray | None]
    """By the share of the mean diagonal that is added to the diagonal."""


class Gptq:
    """Takes over the arithmetic of NNCF's GPTQ for the time of a compression."""

    def __init__(self, num_threads: int, order: GptqOrder = "columns") -> None:
        self.chosen: set[str] = set()
        """Names of the weights whose codes we chose, in part or whole."""
        self.left: set[str] = set()
        """Names of the weights whose codes NNCF's own GPTQ chose, in part or whole."""
        self._num_threads = num_threads
        self._order = order
        self._pool = ThreadPoolExecutor(num_threads)
        self._shared: _Shared | None = None
        self._stock: dict[str, Any] = {}
        self._agreed: dict[Mode, bool] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Have NNCF call us; where it has moved the names, nothing is changed."""
        if any(name not in vars(gptq.GPTQ) for name in _TAKEN_OVER):
            yield
            return
        self._stock = {name: vars(gptq.GPTQ)[name] for name in _TAKEN_OVER}

        # A function becomes a method where a bound method would stay what it is.
        def hessian(*args: Any, **kwargs: Any) -> Tensor:
            return self.calculate_hessian(*args, **kwargs)

        def weights(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
            return self.quantize_weights(*args, **kwargs)

        with (
            self._pool,
            replaced(gptq.GPTQ, "_calculate_hessian", hessian),
            replaced(gptq.GPTQ, "_quantize_weights", weights),
            without_unread_statistics(),
        ):
            yield
        self._shared = None

    def calculate_hessian(
        self, algorithm: gptq.GPTQ, node: Any, inputs: list[Tensor], is_3d_weight: bool = False
    ) -> Tensor:
        """NNCF's method of this name, with the same arguments and results."""
        shared = self._shared
        if shared is not None and not is_3d_weight and _are_the_same(shared.inputs, inputs):
            return shared.hessian
        self._shared = shared = None  # Before as much is made again.
        dimensions = (3,) if is_3d_weight else (2, 3)
        if (
            node.metatype not in algorithm._backend_entity.matmul_metatypes
            or node.layer_attributes.input_attributes["transpose"]
            or any(x.backend != TensorBackend.numpy or len(x.shape) not in dimensions for x in inputs)
        ):
            return self._stock["_calculate_hessian"](algorithm, node, inputs, is_3d_weight)
        if is_3d_weight:
            experts = range(inputs[0].shape[0])
            return Tensor(np.stack([second_moments([x.data[i] for x in inputs], 2 / len(inputs)) for i in experts]))
        num_samples = sum(x.shape[0] if len(x.shape) == 3 else 1 for x in inputs)
        hessian = Tensor(second_moments([x.data for x in inputs], 2 / num_samples)[None])
        self._shared = _Shared(tuple(map(weakref.ref, inputs)), hessian, {})
        return hessian

    def quantize_weights(
        self, algorithm: gptq.GPTQ, wc_params: Any, hessian: Tensor, weight_tensor: Tensor, inputs: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """NNCF's method of this name, with the same arguments and results; ``hessian`` is not changed."""
        found, mode = None, wc_params.compression_config.mode
        if _is_covered(algorithm, wc_params, hessian, weight_tensor) and self._agrees(mode):
            found = self._quantized(algorithm, wc_params, hessian, weight_tensor, inputs, self._order)
        (self.left if found is None else self.chosen).add(wc_params.weight_name)
        if found is None:
            copied = Tensor(hessian.data.copy()) if hessian.backend == TensorBackend.numpy else hessian
            found = self._stock["_quantize_weights"](algorithm, wc_params, copied, weight_tensor, inputs)
        values, scales, zero_points = found
        return values, scales, zero_points if zero_points is None else _ZeroPoints(zero_points.data)

    def _agrees(self, mode: Mode) -> bool:
        """Whether the installed NNCF's GPTQ does what ours does, on a sample with groups and blocks of every kind."""
        if mode not in self._agreed:
            samples = [_sample(mode, *sizes) for sizes in ((8, 16), (24, 16), (-1, 128))]
            self._agreed[mode] = all(self._agrees_on(*sample) for sample in samples)
        return self._agreed[mode]

    def _agrees_on(self, algorithm: gptq.GPTQ, wc_params: Any, weight: np.ndarray, inputs: list[Tensor]) -> bool:
        hessian = self._stock["_calculate_hessian"](algorithm, wc_params.node_with_weight, inputs)
        moments = second_moments([x.data for x in inputs], 2 / inputs[0].shape[0])
        if not np.allclose(moments, hessian[0].data, rtol=1e-4, atol=1e-4):
            return False
        ours = self._quantized(algorithm, wc_params, hessian[0], Tensor(weight), inputs, "columns")
        stock = self._stock["_quantize_weights"](algorithm, wc_params, hessian[0], Tensor(weight.copy()), inputs)
        if ours is None or any((mine is None) != (other is None) for mine, other in zip(ours, stock, strict=True)):
            return False
        pairs = [(a.data, b.data) for a, b in zip(ours, stock, strict=True) if a is not None]
        return all(a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b, rtol=1e-4) for a, b in pairs)

    def _quantized(
        self,
        algorithm: gptq.GPTQ,
        wc_params: Any,
        hessian: Tensor,
        weight_tensor: Tensor,
        inputs: list[Tensor],
        order: GptqOrder,
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """None where a number is not finite, or the Hessian not positive definite."""
        diagonal = np.diag(hessian.data)
        if not (np.isfinite(diagonal).all() and np.isfinite(weight_tensor.data).all()):
            return None
        columns = None if order == "columns" else np.argsort(-diagonal, kind="stable")
        factor = self._factor(hessian.data, algorithm._damp_percent, columns)
        if factor is None:
            return None
        weights = np.array(weight_tensor.data.T, np.float32, order="C")
        weights[diagonal == 0] = 0
        config = wc_params.compression_config
        threads = (self._pool, self._num_threads)
        given = Feedback(algorithm, config, inputs, columns)
        values, scales, zero_points = propagated(given, weights, factor, *threads)
        stacked = [fns.stack(parts, axis=1) if parts else None for parts in (scales, zero_points)]
        if config.group_size == -1:
            stacked = [part if part is None else fns.squeeze(part, axis=-1) for part in stacked]
        return Tensor(np.ascontiguousarray(values.T)), stacked[0], stacked[1]

    def _factor(self, hessian: np.ndarray, damp_percent: float, columns: np.ndarray | None) -> np.ndarray | None:
        shared = self._shared
        if shared is None or not np.may_share_memory(hessian, shared.hessian.data):
            return _damped_factor(hessian, damp_percent, columns)
        if damp_percent not in shared.factors:
            shared.factors[damp_percent] = _damped_factor(hessian, damp_percent, columns)
        return shared.factors[damp_percent]


def _are_the_same(known: tuple[weakref.ref[Tensor], ...], inputs: list[Tensor]) -> bool:
    return len(known) == len(inputs) and all(ref() is x for ref, x in zip(known, inputs, strict=True))


def _is_covered(algorithm: gptq.GPTQ, wc_params: Any, hessian: Tensor, weight: Tensor) -> bool:
    """A matrix of integers to be, with its input channels along its rows."""
    attributes = wc_params.node_with_weight.layer_attributes.constant_attributes[wc_params.weight_port_id]
    return (
        wc_params.compression_config.mode in FORMATS
        and wc_params.node_with_weight.metatype not in algorithm._backend_entity.convolution_metatypes
        and bool(attributes["transpose"])
        and len(weight.shape) == 2
        and tuple(wc_params.reduction_axes) == (1,)
        and all(tensor.backend == TensorBackend.numpy for tensor in (hessian, weight))
        and all(tensor.dtype == TensorDataType.float32 for tensor in (hessian, weight))
    )


def _damped_factor(hessian: np.ndarray, damp_percent: float, columns: np.ndarray | None) -> np.ndarray | None:
    """The factor that spreads errors; an input channel that is always 0 has no part in it."""
    if columns is not None:
        hessian = hessian[np.ix_(columns, columns)]
    diagonal = np.diag(hessian).copy()
    diagonal[diagonal == 0] = 1
    return inverse_factor(hessian, diagonal + damp_percent * diagonal.mean())


def _sample(mode: Mode, group_size: int, block_size: int) -> tuple[gptq.GPTQ, Any, np.ndarray, list[Tensor]]:
    """What NNCF's GPTQ is called with for a small matrix, one of whose input channels is always 0."""
    attributes = SimpleNamespace(constant_attributes={1: {"transpose": True}}, input_attributes={"transpose": False})
    wc_params = SimpleNamespace(
        node_with_weight=SimpleNamespace(metatype="matmul", layer_attributes=attributes),
        weight_port_id=1,
        compression_config=WeightCompressionConfig(mode, group_size),
        reduction_axes=(1,),
    )
    estimator = gptq.GPTQ(block_size=block_size)
    estimator._backend_entity = SimpleNamespace(matmul_metatypes=["matmul"], convolution_metatypes=[])
    places = np.arange(40 * 48, dtype=np.float32)
    activations = np.cos(places**2 / 9).reshape(2, 20, 48)
    activations[:, :, 5] = 0
    return estimator, wc_params, np.sin(places**2 / 7).reshape(40, 48), [Tensor(activations)]
