"""``nncf.quantize`` in a fraction of its memory, with the same result.

Stock NNCF holds every weight that SmoothQuant scales in 8 bytes an element until all are there, makes bf16 of them by
way of lists of Python's numbers, and has the runtime expand weights to single precision while it collects statistics of
their values next to those of activations. Where it has moved the names, it does so here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as opset

from llmcompress.compression.nncf.weight_codes import to_bf16
from llmcompress.system.patching import replaced


@contextlib.contextmanager
def little_memory(model: ov.Model) -> Iterator[None]:
    """Both of what follows.

    Args:
        model: What is quantized.
    """
    try:
        from nncf.openvino.graph.model_transformer import OVModelTransformer
        from nncf.openvino.statistics.aggregator import OVStatisticsAggregator
        from nncf.quantization.algorithms.smooth_quant.openvino_backend import OVSmoothQuantAlgoBackend
    except ImportError:
        yield
        return
    with contextlib.ExitStack() as stack:
        if hasattr(OVSmoothQuantAlgoBackend, "weight_update_command") and hasattr(
            OVModelTransformer, "_create_constant"
        ):
            stack.enter_context(scaled_weights_rounded(model))
        if "collect_statistics" in vars(OVStatisticsAggregator):
            stack.enter_context(constant_statistics_apart())
        yield


@contextlib.contextmanager
def scaled_weights_rounded(model: ov.Model) -> Iterator[None]:
    """Round each weight that SmoothQuant scales to its own type at once, as NNCF does when all are there.

    Args:
        model: What is quantized.
    """
    from nncf.openvino.graph.model_transformer import OVModelTransformer
    from nncf.quantization.algorithms.smooth_quant.openvino_backend import OVSmoothQuantAlgoBackend

    nodes = {op.get_friendly_name(): op for op in model.get_ops()}
    create = OVModelTransformer._create_constant
    rounded: dict[str, ov.Node] = {}

    def command(node: Any, graph: Any, value: NDArray[Any]) -> Any:
        port = nodes[node.node_name].input(OVSmoothQuantAlgoBackend.get_weight_tensor_port_id(node))
        while port.get_source_output().get_node().get_input_size():
            port = port.get_source_output().get_node().input(0)
        constant, element = port.get_source_output().get_node(), port.get_element_type()
        shape, name = tuple(constant.get_output_shape(0)), constant.get_friendly_name()
        whole = value.reshape(shape)
        if element == ov.Type.bf16 and np.isfinite(whole).all():
            rounded[name] = opset.constant(to_bf16(whole.astype(np.float32)), name=name, shared_memory=True)
        else:
            rounded[name] = create(whole, element, name, element != ov.Type.bf16)
        # Only its shape is looked at.
        return stock(node, graph, np.broadcast_to(np.float32(0), shape))

    def created(value: NDArray[Any], dtype: ov.Type, name: str, shared_memory: bool = False) -> ov.Node:
        return rounded.pop(name) if name in rounded else create(value, dtype, name, shared_memory)

    stock = OVSmoothQuantAlgoBackend.weight_update_command
    with (
        replaced(OVSmoothQuantAlgoBackend, "weight_update_command", staticmethod(command)),
        replaced(OVModelTransformer, "_create_constant", staticmethod(created)),
    ):
        yield


@contextlib.contextmanager
def constant_statistics_apart() -> Iterator[None]:
    """Have NNCF take statistics of weights one by one, and infer for those of activations alone.

    In one graph with both, the runtime would expand all weights to single precision.
    """
    from nncf.common import factory
    from nncf.openvino.engine import OVCompiledModelEngine
    from nncf.openvino.graph.model_utils import model_has_state
    from nncf.openvino.statistics.aggregator import OVStatisticsAggregator
    from openvino.properties.hint import inference_precision

    settings = {inference_precision: ov.Type.f32}

    class Engine(OVCompiledModelEngine):  # type: ignore[misc]
        """Infers what depends on the input; the rest is known."""

        def __init__(self, model: ov.Model) -> None:
            self._known: dict[str, NDArray[Any]] = {}
            for result in model.get_results():
                if _is_of_constants(result):
                    alone = ov.Model([result], [], "statistics")
                    found = ov.Core().compile_model(alone, "CPU", settings)({})
                    self._known |= {name: value for port, value in found.items() for name in port.get_names()}
                    model.remove_result(result)
            super().__init__(ov.Core().compile_model(model, "CPU", settings), model_has_state(model))

        def infer(self, input_data: Any) -> dict[str, NDArray[Any]]:
            return {**super().infer(input_data), **self._known}

    collect = OVStatisticsAggregator.collect_statistics

    def collect_apart(self: Any, model: Any, graph: Any) -> None:
        with replaced(factory.EngineFactory, "create", staticmethod(Engine)):
            collect(self, model, graph)

    with replaced(OVStatisticsAggregator, "collect_statistics", collect_apart):
        yield


def _is_of_constants(result: ov.Node) -> bool:
    pending, seen = [result], set()
    while pending:
        node = pending.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        inputs = [node.input_value(number).get_node() for number in range(node.get_input_size())]
        if not inputs and node.get_type_name() != "Constant":
            return False
        pending += inputs
    return True
