"""A graph in segments computes what the whole graph does, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.graph.segments import STAGE, Segment, infer_by_segments, segments
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import Progress

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
NUM_LAYERS, WIDTH = 4, 64
LAYER_BYTES = 4 * WIDTH * WIDTH


def windows_of(loaded: Any) -> list[dict[str, Any]]:
    feed = loaded.text_feed()
    return [feed(window) for window in np.random.default_rng(0).integers(5, 200, (3, 24))]


def inferred(model: ov.Model, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By one compiled model."""
    request = ov.Core().compile_model(model, "CPU", F32).create_infer_request()
    found = []
    for window in windows:
        request.reset_state()
        values = request.infer(window)
        found.append({name: value.copy() for port, value in values.items() for name in port.get_names()})
    return found


def by_segments(parts: list[Segment], windows: Any, rooms: Any = lambda: None) -> list[dict[str, Any]]:
    given = windows if callable(windows) else lambda: windows
    outputs: list[dict[str, Any]] = []
    told: list[Progress] = []
    infer_by_segments(parts, given, 3, F32, outputs.append, rooms, told.append)
    assert told == [Progress(STAGE, number + 1, 3 * len(parts)) for number in range(3 * len(parts))]
    found = [dict[str, Any]() for _ in range(3)]
    for number, each in enumerate(outputs):
        assert not found[number % 3].keys() & each.keys()
        found[number % 3] |= each
    return found


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_array_equal(mine[name], value, strict=True)


@pytest.mark.parametrize(
    ("model_type", "num_segments"), [("llama", 4), ("gpt2", 5), ("gpt_neox", 3), ("falcon", 5), ("qwen3_moe", 2)]
)
def test_segments_compute_what_the_graph_does(model_type: str, num_segments: int, tmp_path: Path) -> None:
    loaded = llmcompress.load(build_checkpoint(tmp_path / "tiny", model_type), tokenizer=False)
    windows, whole = windows_of(loaded), inferred(loaded.model, windows_of(loaded))
    parts = segments(loaded.model, min_bytes=200_000)
    assert len(parts) >= num_segments
    assert parts[0].taken == () == parts[-1].left
    # A layer's values go to the next layer; beside them at most some whose shapes are asked for.
    assert all(len(part.left) <= 4 for part in parts)
    same(by_segments(parts, windows), whole)


class Stack:
    """Layers that multiply, add, and divide by the number of rows of the first one's values.

    A state that one layer reads may be written by another; next to the layers there is a product of the inputs.
    """

    def __init__(self, *, written_by: int = 1) -> None:
        random = np.random.default_rng(0)
        inputs = ops.parameter(ov.PartialShape([-1, WIDTH]), ov.Type.f32, name="x")
        inputs.output(0).set_names({"x"})
        variable = {"variable_id": "state", "variable_shape": ov.PartialShape([1, WIDTH]), "variable_type": ov.Type.f32}
        state = ops.read_value(ops.constant(np.zeros((1, WIDTH), np.float32)), **variable)
        aside = ops.matmul(
            inputs, ops.constant(random.standard_normal((WIDTH, WIDTH)).astype(np.float32)), False, False
        )
        aside.output(0).set_names({"aside"})
        value, sinks, results = inputs, [], [ops.result(aside)]
        rows: ov.Node | None = None
        for layer in range(NUM_LAYERS):
            weight = ops.constant(random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8)
            product = ops.matmul(value, weight, False, False)
            if layer == 1:
                product = ops.add(product, state)
            if rows is not None:
                product = ops.divide(product, rows)
            value = ops.add(value, ops.tanh(product))
            if rows is None:
                rows = ops.convert(ops.gather(ops.shape_of(value), ops.constant(0), ops.constant(0)), "f32")
            if layer == written_by:
                total = ops.reduce_sum(value, ops.constant([0]), True)
                sinks.append(ops.assign(total, "state"))
            mean = ops.reduce_mean(value, ops.constant([0]), False)
            mean.output(0).set_names({f"mean-{layer}"})
            results.append(ops.result(mean))
        self.model = ov.Model(results, sinks, [inputs], "stack")
        self.windows = [{"x": random.standard_normal((7, WIDTH)).astype(np.float32)} for _ in range(3)]


def test_values_between_segments_lie_in_files(tmp_path: Path) -> None:
    stack, rooms = Stack(), list[FileMemory]()
    whole = inferred(stack.model, stack.windows)
    parts = segments(stack.model, min_bytes=LAYER_BYTES)
    assert [len(part.left) for part in parts] == [1, 1, 1, 0]
    # The first one's values are taken for their shape as well, and not the shape.
    assert [len(part.taken) for part in parts] == [0, 1, 2, 2]

    class Noted(FileMemory):
        def __init__(self) -> None:
            super().__init__(tmp_path)
            self.num_bytes = 0
            rooms.append(self)

        def block(self, size_bytes: int) -> Any:
            self.num_bytes += size_bytes
            return super().block(size_bytes)

    same(by_segments(parts, stack.windows, Noted), whole)
    assert [room.num_bytes for room in rooms] == [3 * 7 * WIDTH * 4] * 3 + [0]


def test_values_in_ordinary_memory_where_a_file_cannot_grow(tmp_path: Path) -> None:
    class Full(FileMemory):
        def block(self, size_bytes: int) -> None:
            return None

    stack = Stack()
    whole = inferred(stack.model, stack.windows)
    parts = segments(stack.model, min_bytes=LAYER_BYTES)
    same(by_segments(parts, stack.windows, lambda: Full(tmp_path)), whole)


def test_inputs_are_asked_for_again_by_each_segment() -> None:
    stack, num_asked = Stack(), 0
    whole = inferred(stack.model, stack.windows)

    def inputs() -> Iterator[dict[str, Any]]:
        nonlocal num_asked
        num_asked += 1
        yield from stack.windows

    parts = segments(stack.model, min_bytes=LAYER_BYTES)
    same(by_segments(parts, inputs), whole)
    assert num_asked == len(parts)


def test_many_layers_without_an_embedding() -> None:
    """A head that is larger than many layers together says nothing of theirs."""
    random = np.random.default_rng(0)
    value = inputs = ops.parameter(ov.PartialShape([-1, WIDTH]), ov.Type.f32, name="x")
    inputs.output(0).set_names({"x"})
    for _ in range(300):
        weight = ops.constant(random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8)
        value = ops.add(value, ops.tanh(ops.matmul(value, weight, False, False)))
    head = ops.constant(random.standard_normal((WIDTH, 16 * WIDTH)).astype(np.float32))
    logits = ops.matmul(value, head, False, False)
    logits.output(0).set_names({"logits"})
    model = ov.Model([ops.result(logits)], [inputs], "deep")
    windows = [{"x": random.standard_normal((7, WIDTH)).astype(np.float32)} for _ in range(3)]
    whole = inferred(model, windows)
    parts = segments(model, min_bytes=20 * LAYER_BYTES)
    assert len(parts) == 15
    same(by_segments(parts, windows), whole)


def test_an_input_that_is_not_given_is_left_to_the_runtime() -> None:
    stack = Stack()
    whole = inferred(stack.model, [{}] * 3)
    parts = segments(stack.model, min_bytes=LAYER_BYTES)
    same(by_segments(parts, [{}] * 3), whole)


@pytest.mark.parametrize(("written_by", "min_bytes"), [(3, LAYER_BYTES), (1, 3 * LAYER_BYTES)])
def test_a_graph_that_stays_whole(written_by: int, min_bytes: int) -> None:
    """A state would be read in one segment and written in another; or there is too little for two."""
    stack = Stack(written_by=written_by)
    whole = inferred(stack.model, stack.windows)
    (part,) = segments(stack.model, min_bytes)
    assert part.model is stack.model
    assert part.taken == part.left == ()
    same(by_segments([part], stack.windows), whole)
