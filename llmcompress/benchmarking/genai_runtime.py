"""OpenVINO GenAI's pipeline, by its own clock, without what makes a repeated prompt look fast."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.benchmarking.openvino_runtime import random_ids
from llmcompress.benchmarking.timing import Run
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.evaluation import Backend

if TYPE_CHECKING:
    import openvino as ov

MILLISECOND_S, MICROSECOND_S = 1e-3, 1e-6


class GenaiRuntime:
    """``LLMPipeline`` on either of its backends, end-of-text ignored; prompts are token ids.

    The paged one is its default, here without the cache of prefixes; the stateful one is ``ATTENTION_BACKEND`` SDPA.
    """

    has_model_cache = False

    def __init__(self, directory: Path, backend: Backend = "paged") -> None:
        self.directory = directory
        self._backend = backend
        self._pipeline: Any = None

    def open(self, device: str, properties: dict[str, str], *, prefix_caching: bool = False) -> LoadTime:
        """Open the pipeline, which reads and compiles in one step."""
        import openvino_genai

        self._pipeline = None
        options = backend_options(self._backend, prefix_caching=prefix_caching)
        started = time.perf_counter()
        self._pipeline = openvino_genai.LLMPipeline(str(self.directory), device, **options, **properties)
        return LoadTime(read_s=0.0, compile_s=time.perf_counter() - started)

    def close(self) -> None:
        """Let the pipeline go."""
        self._pipeline = None

    def compiled(self) -> ov.CompiledModel | None:
        """The pipeline does not show its model."""
        return None

    def run(self, shape: Shape, seed: int) -> Run:
        """One prompt and its new tokens, by the pipeline's own timestamps; ``depth`` is part of the prompt."""
        import numpy as np
        import openvino as ov
        import openvino_genai

        count = shape.depth + shape.prompt_tokens
        ids = random_ids(self.directory, (shape.batch_size, count), seed)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        raw = self._pipeline.generate(inputs, greedy(self._pipeline, shape.new_tokens)).perf_metrics.raw_metrics
        return Run(*moments(raw), inference_s=tuple(each * MICROSECOND_S for each in raw.token_infer_durations))


def greedy(pipeline: Any, num_tokens: int) -> Any:
    """The configuration by which a pipeline makes so many tokens, whatever they are."""
    config = pipeline.get_generation_config()
    config.max_new_tokens = num_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def moments(raw: Any) -> tuple[float, tuple[float, ...]]:
    """When a pipeline was asked, and when it gave each token, in seconds, by its own raw metrics."""
    tokens = tuple(moment * MILLISECOND_S for moment in raw.m_new_token_times)
    return tokens[0] - raw.m_times_to_first_token[0] * MICROSECOND_S, tokens


def backend_options(backend: Backend, *, prefix_caching: bool = False) -> dict[str, Any]:
    """What a pipeline is opened with to run the graph in a form."""
    import openvino_genai

    if backend == "stateful":
        return {"ATTENTION_BACKEND": "SDPA"}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = prefix_caching
    # A prompt goes through in one call, as in the pipeline's own default.
    scheduler.max_num_batched_tokens = 1 << 20
    return {"ATTENTION_BACKEND": "PA", "scheduler_config": scheduler}
