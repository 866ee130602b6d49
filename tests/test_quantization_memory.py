"""Activations are quantized in little memory, with what stock NNCF makes."""

from __future__ import annotations

from typing import Any

import nncf
import numpy as np
import openvino as ov
import pytest
from nncf.openvino.graph.model_transformer import OVModelTransformer
from nncf.openvino.statistics.aggregator import OVStatisticsAggregator
from openvino import opset13 as ops

from llmcompress.compression.nncf import quantization_memory
from llmcompress.compression.nncf.quantization_memory import little_memory


def two_layers(element: ov.Type) -> ov.Model:
    """Two products with weights of a type, whose activations have channels of very different size."""
    generator = np.random.default_rng(0)
    found = ops.parameter(ov.PartialShape([-1, 64]), np.float32, name="x")
    node: ov.Node = found
    for number, (rows, columns) in enumerate([(128, 64), (32, 128)]):
        values = generator.standard_normal((rows, columns)).astype(np.float32)
        values *= np.exp(generator.standard_normal(columns)).astype(np.float32)
        weight = ops.constant(values, dtype=element, name=f"weight{number}")
        node = ops.matmul(node, ops.convert(weight, ov.Type.f32), False, True, name=f"product{number}")
        node = ops.relu(node)
    return ov.Model([node], [found], "two")


def samples() -> nncf.Dataset:
    generator = np.random.default_rng(1)
    spread = np.exp(2 * generator.standard_normal(64)).astype(np.float32)
    return nncf.Dataset([{"x": generator.standard_normal((8, 64)).astype(np.float32) * spread} for _ in range(3)])


def quantized(model: ov.Model) -> ov.Model:
    return nncf.quantize(
        model, samples(), subset_size=3, model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED
    )


def constants(model: ov.Model) -> list[tuple[str, bytes]]:
    """In the order of the graph: names are numbered over the whole process."""
    return [
        (op.get_element_type().get_type_name(), op.data.tobytes())
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().is_real()
    ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often what the module stands in for did its work."""
    counts = {"rounded": 0, "known": 0}
    to_bf16, alone = quantization_memory.to_bf16, quantization_memory._is_of_constants

    def counted(values: np.ndarray) -> ov.Tensor:
        counts["rounded"] += 1
        return to_bf16(values)

    def looked(result: ov.Node) -> bool:
        found = alone(result)
        counts["known"] += found
        return found

    monkeypatch.setattr(quantization_memory, "to_bf16", counted)
    monkeypatch.setattr(quantization_memory, "_is_of_constants", looked)
    return counts


@pytest.mark.parametrize("element", [ov.Type.bf16, ov.Type.f16, ov.Type.f32], ids=str)
def test_every_constant_is_that_of_stock_nncf(element: ov.Type, seen: dict[str, int]) -> None:
    stock = constants(quantized(two_layers(element)))
    model = two_layers(element)
    with little_memory(model):
        ours = constants(quantized(model))
    assert ours == stock
    assert seen["rounded"] == (2 if element == ov.Type.bf16 else 0)
    assert seen["known"] > 0


def test_numbers_in_double_precision_are_rounded_as_openvino_does() -> None:
    generator = np.random.default_rng(2)
    values = generator.standard_normal((64, 64)) * np.exp(8 * generator.standard_normal((64, 64)))
    # Half way between two numbers of bf16, and next to it in double precision.
    ties = (np.arange(1, 4097, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8000)).view(np.float32)
    values = np.concatenate([values, ties.reshape(64, 64) * (1 + 2.0**-40), ties.reshape(64, 64).astype(np.float64)])
    stock = ops.constant(values, dtype=ov.Type.bf16)
    ours = quantization_memory.to_bf16(values.astype(np.float32))
    assert ours.data.tobytes() == stock.data.tobytes()


def test_where_nncf_has_moved_its_names_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(*_: Any) -> None:
        pytest.fail("changed")

    monkeypatch.delattr(OVModelTransformer, "_create_constant")
    monkeypatch.delattr(OVStatisticsAggregator, "collect_statistics")
    monkeypatch.setattr(quantization_memory, "scaled_weights_rounded", entered)
    monkeypatch.setattr(quantization_memory, "constant_statistics_apart", entered)
    with little_memory(two_layers(ov.Type.f32)):
        pass
