"""A vision-language model without GenAI: text by the plain loop, pictures as Optimum's class feeds the parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.benchmarking.openvino_runtime import OpenvinoRuntime, last_position_only
from llmcompress.benchmarking.picture_prompts import random_picture, random_text
from llmcompress.benchmarking.timing import Run
from llmcompress.loaders.loaded_model import load_source
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.seeing import Sight, encoder_of, open_sight, picture_prompt
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.access import Access
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.evaluation import Backend

if TYPE_CHECKING:
    import openvino as ov


class VisionRuntime:
    """The language model joined with its embeddings of text, or all parts apart: one of both is open at a time."""

    has_model_cache = True

    def __init__(self, directory: Path, backend: Backend = "stateful", *, trusted: bool = False) -> None:
        self.directory, self._trusted = directory, trusted
        self._text = OpenvinoRuntime(directory, backend)
        self._sight: Sight | None = None
        self._device, self._properties = "CPU", dict[str, str]()

    def open(self, device: str, properties: dict[str, str]) -> LoadTime:
        """Read and compile what reads text; an earlier model is let go first.

        Raises:
            ModelError: As ``OpenvinoRuntime.open``.
        """
        self.close()
        self._device, self._properties = device, dict(properties)
        return self._text.open(device, properties)

    def close(self) -> None:
        """Let the model go."""
        self._sight = None
        self._text.close()

    def compiled(self) -> ov.CompiledModel:
        """What reads text."""
        return self._text.compiled()

    def run(self, shape: Shape, seed: int) -> Run:
        """One prompt and its new tokens; of a picture the processor's work is done beforehand.

        Raises:
            ModelError: It cannot be shown a picture.
        """
        if shape.picture_size:
            return self._see(shape, seed)
        if self._sight is not None:
            self._sight = None
            self._text.open(self._device, self._properties)
        return self._text.run(shape, seed)

    def _see(self, shape: Shape, seed: int) -> Run:
        import numpy as np
        from PIL import Image

        if self._sight is None:
            self._text.close()
            access = Access(trust_remote_code=self._trusted)
            loaded = load_source(resolve(self.directory, access, vision=True), tokenizer=False)
            last_position_only(loaded.model)
            self._sight = open_sight(loaded, self._device, self._properties)
        sight, generator = self._sight, np.random.default_rng(seed)

        def count(text: str) -> int:
            return len(sight.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

        picture = Image.fromarray(random_picture(shape.picture_size, generator))
        prompt = picture_prompt(sight, random_text(shape.prompt_tokens, count, generator), picture)
        with _timed(sight.model) as times:
            started = time.perf_counter()
            # An answer that ended early would have no times of its further tokens.
            sight.model.generate(**prompt, do_sample=False, max_new_tokens=shape.new_tokens, eos_token_id=None)
        return Run(started, tuple(times.tokens), times.encoding_s, times.input_tokens)


class _Times:
    """What is noted while a model answers."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.encoding_s = 0.0
        self.input_tokens = 0


@contextlib.contextmanager
def _timed(model: Any) -> Iterator[_Times]:
    """Note when a model of Optimum's class has a picture's embeddings, and each token."""
    times, name, forward = _Times(), encoder_of(model), model.language_model.forward
    encode = getattr(model, name)

    def encoded(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        found = encode(*args, **kwargs)
        times.encoding_s += time.perf_counter() - started
        return found

    def forwarded(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        times.input_tokens = times.input_tokens or int(kwargs["inputs_embeds"].shape[1])
        times.tokens.append(time.perf_counter())
        return found

    setattr(model, name, encoded)
    model.language_model.forward = forwarded
    try:
        yield times
    finally:
        delattr(model, name)
        del model.language_model.forward
