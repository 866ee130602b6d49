"""The OpenVINO runtime directly: a plain loop over one inference request."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.benchmarking.timing import Run
from llmcompress.graph.decoding import Decoder
from llmcompress.graph.joining import read_decoder
from llmcompress.graph.model import logits_at, logits_result, slice_positions, take_rows
from llmcompress.graph.paged import is_paged, to_paged
from llmcompress.graph.recurrence import find_recurrence, keep_recurrence
from llmcompress.loaders.token_ids import num_embeddings
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.evaluation import Backend
from llmcompress.system.json_file import read_json

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

DEPTH_CALL_TOKENS = 512
VOCABULARY = 1000
"""Random token ids stay below it; which tokens they are changes no speed."""


class OpenvinoRuntime:
    """One compiled model and one request; the output head is computed for the last position of a call, as by GenAI."""

    has_model_cache = True

    def __init__(self, directory: Path, backend: Backend = "stateful") -> None:
        self.directory = directory
        self._backend = backend
        self._compiled: ov.CompiledModel | None = None
        self._decoder: Decoder | None = None

    def open(self, device: str, properties: dict[str, str]) -> LoadTime:
        """Read and compile; an earlier model is let go first.

        Raises:
            ModelError: The graph has no paged form, which was asked for.
        """
        import openvino as ov

        self.close()
        core = ov.Core()
        started = time.perf_counter()
        model = read_decoder(self.directory)
        read = time.perf_counter()
        if self._backend == "paged":
            to_paged(model)
        last_position_only(model)
        compiled = core.compile_model(model, device, properties)
        keep_recurrence(compiled, find_recurrence(model))
        decoder = Decoder(compiled)
        done = time.perf_counter()
        self._compiled, self._decoder = compiled, decoder
        return LoadTime(read_s=read - started, compile_s=done - read)

    def close(self) -> None:
        """Let the model go."""
        self._compiled = self._decoder = None

    def compiled(self) -> ov.CompiledModel:
        """What is open."""
        assert self._compiled is not None
        return self._compiled

    def run(self, shape: Shape, seed: int) -> Run:
        """One prompt and its new tokens; all calls are laid out beforehand, so nothing else is done meanwhile.

        Raises:
            ModelError: The shape has a depth, and the graph reads no prompt after a past.
        """
        decoder = self._decoder
        assert decoder is not None
        prompt_end = shape.depth + shape.prompt_tokens
        total = prompt_end + shape.new_tokens
        ids = random_ids(self.directory, (shape.batch_size, total), seed)
        decoder.begin(shape.batch_size, total)
        for start in range(0, shape.depth, DEPTH_CALL_TOKENS):
            decoder.run(decoder.tensors(ids[:, start : min(start + DEPTH_CALL_TOKENS, shape.depth)], start))
        prompt = decoder.tensors(ids[:, shape.depth : prompt_end], shape.depth)
        steps = [decoder.tensors(ids[:, past : past + 1], past) for past in range(prompt_end, total - 1)]
        started = time.perf_counter()
        decoder.run(prompt)
        moments = [time.perf_counter()]
        for step in steps:
            decoder.run(step)
            moments.append(time.perf_counter())
        return Run(started, tuple(moments))


def random_ids(directory: Path, shape: tuple[int, int], seed: int) -> NDArray[np.int64]:
    """Token ids int64 of a shape, of those that the model in a directory has."""
    import numpy as np

    known = num_embeddings(read_json(directory / "config.json"))
    return np.random.default_rng(seed).integers(0, min(VOCABULARY, known or VOCABULARY), shape)


def last_position_only(model: ov.Model) -> None:
    """Have a decoder compute its output head for the last position of a call alone."""
    from openvino import opset15 as ops

    def last(value: ov.Output) -> ov.Node:
        if not is_paged(model):
            return slice_positions(value, ops.constant([-1], dtype="int64"))
        one, end = ops.constant([1], dtype="int64"), ops.constant([2**31 - 1], dtype="int64")
        ends = ops.slice(model.input("subsequence_begins"), one, end, one)
        return take_rows(value, ops.subtract(ends, ops.constant(1, dtype="int32")))

    result = logits_result(model)
    result.input(0).replace_source_output(logits_at(result, last))
    model.validate_nodes_and_infer_types()
