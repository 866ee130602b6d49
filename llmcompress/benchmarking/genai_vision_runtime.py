"""OpenVINO GenAI's pipeline of vision-language models, by its own clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.benchmarking.genai_runtime import MICROSECOND_S, backend_options, greedy, moments
from llmcompress.benchmarking.picture_prompts import random_picture, random_text
from llmcompress.benchmarking.timing import Run
from llmcompress.errors import UsageError, last_line
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.evaluation import Backend

if TYPE_CHECKING:
    import openvino as ov


class GenaiVisionRuntime:
    """``VLMPipeline``, end-of-text ignored, without a chat template; it takes texts, which get the wanted length."""

    has_model_cache = False

    def __init__(self, directory: Path, backend: Backend = "paged") -> None:
        self.directory = directory
        self._backend = backend
        self._pipeline: Any = None

    def open(self, device: str, properties: dict[str, str]) -> LoadTime:
        """Open the pipeline, which reads and compiles in one step.

        Raises:
            UsageError: There is no pipeline for this type of model.
        """
        import openvino_genai

        self._pipeline = None
        options = backend_options(self._backend)
        started = time.perf_counter()
        try:
            self._pipeline = openvino_genai.VLMPipeline(str(self.directory), device, **options, **properties)
        except RuntimeError as error:
            if "Unsupported" not in str(error):
                raise
            raise UsageError(
                f"OpenVINO GenAI has no pipeline for it: {last_line(error)}", hint="take runtime openvino"
            ) from None
        return LoadTime(read_s=0.0, compile_s=time.perf_counter() - started)

    def close(self) -> None:
        """Let the pipeline go."""
        self._pipeline = None

    def compiled(self) -> ov.CompiledModel | None:
        """The pipeline does not show its models."""
        return None

    def run(self, shape: Shape, seed: int) -> Run:
        """One prompt, with a picture where the shape has one, and its new tokens, by the pipeline's own timestamps."""
        import numpy as np
        import openvino as ov

        config = greedy(self._pipeline, shape.new_tokens)
        config.apply_chat_template = False
        generator = np.random.default_rng(seed)
        tokenizer = self._pipeline.get_tokenizer()

        def count(text: str) -> int:
            return int(tokenizer.encode(text).input_ids.shape[1])

        text = random_text(shape.depth + shape.prompt_tokens, count, generator)
        shown = {}
        if shape.picture_size:
            shown["images"] = [ov.Tensor(random_picture(shape.picture_size, generator))]
        metrics = self._pipeline.generate(text, generation_config=config, **shown).perf_metrics
        seen = metrics.vlm_raw_metrics.vision_encoding_durations
        return Run(
            *moments(metrics.raw_metrics),
            encoding_s=sum(seen) * MICROSECOND_S if shown else 0.0,
            input_tokens=metrics.get_num_input_tokens(),
        )
