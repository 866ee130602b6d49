"""How a model's speed is measured, as data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field

from llmcompress.spec.evaluation import Backend, Precision, profile_refusals
from llmcompress.spec.runtime import RuntimeProfile, pair_refusals, split_pairs
from llmcompress.spec.validation import MAX_COUNT, Count, DescribedModel, Refusal, Text, Texts

RuntimeName = Literal["openvino", "genai"]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
Depths = Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_COUNT)], ...], Field(strict=False, min_length=1)]


class Setting(NamedTuple):
    """What a model is compiled for."""

    device: str
    threads: int | None
    """None: the device's choice."""


class Shape(NamedTuple):
    """One run."""

    batch_size: int
    depth: int
    """Tokens that are in the cache already; feeding them is not measured."""
    prompt_tokens: int
    new_tokens: int
    picture_size: int = 0
    """Pixels of a side of the picture before the prompt; 0: there is none."""


class BenchSpec(DescribedModel):
    """Lists are combined: every device and number of threads with every shape.

    The command line shows what is written below the fields.
    """

    engine: RuntimeName = "openvino"
    """The runtime directly, or GenAI's pipeline."""
    backend: Backend | None = None
    """stateful: the graph as Optimum runs it. paged: with a cache in blocks, as GenAI and Model Server run it. Default:
    stateful by openvino, paged by genai"""
    devices: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = ("CPU",)
    """OpenVINO devices."""
    threads: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Threads of the device. Default: its choice"""
    batch_sizes: Counts = (1,)
    """Sequences at once."""
    depths: Depths = (0,)
    """Tokens that are in the cache already; feeding them is not measured."""
    prompt_tokens: Counts = (512,)
    """Tokens of the prompt."""
    new_tokens: Counts = (128,)
    """Tokens to generate; the first comes with the prompt, and end-of-text is ignored."""
    picture_sizes: Depths = (0,)
    """Pixels of a side of a generated picture before the prompt, of vision-language models; 0: no picture."""
    precision: Precision = "as_used"
    """As the device runs it, or f32 execution without dynamic quantization."""
    properties: Texts = ()
    """Device property, on top of what the precision and the profile ask for."""
    profile: RuntimeProfile | None = None
    """Runtime profile of this machine, by tune."""
    warmup_runs: Annotated[int, Field(ge=0, le=1000)] = 1
    """Runs of each shape before those that are counted."""
    repetitions: Count = 5
    """Runs of each shape."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals of ratios between sources."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from pair_refusals(self.properties)
        if self.engine == "openvino" and self.backend == "paged" and set(self.devices) != {"CPU"}:
            problem = "paged has its cache laid out for the CPU where the runtime is openvino"
            yield Refusal("backend", problem, "take stateful, or device CPU")
        if any(self.picture_sizes):
            yield from self._picture_refusals()
        if self.profile is not None:
            for device in self.devices:
                yield from profile_refusals(self.profile, device, self.precision)
            given = {*self.asked_properties(), *(("INFERENCE_NUM_THREADS",) if self.threads else ())}
            twice = sorted(given & self.profile.as_properties().keys())
            if twice:
                yield Refusal("profile", f"sets {', '.join(twice)}, which is given beside it", "keep one")

    def _picture_refusals(self) -> Iterator[Refusal]:
        for name, plain in (("batch_sizes", 1), ("depths", 0)):
            if set(getattr(self, name)) != {plain}:
                yield Refusal(name, "a picture is shown to one sequence, at its beginning", f"take {plain}")
        if self.engine == "openvino" and self.backend == "paged":
            problem = "with a picture the graph is stateful where the runtime is openvino"
            yield Refusal("backend", problem, "take stateful, or runtime genai")

    @property
    def effective_backend(self) -> Backend:
        """The form of the graph that is run."""
        return self.backend or ("stateful" if self.engine == "openvino" else "paged")

    def question(self) -> Self:
        """What is measured, without how often: of two runs of one question the later one counts."""
        often = ("warmup_runs", "repetitions", "confidence")
        defaults = {name: type(self).model_fields[name].default for name in often}
        return self.model_copy(update={**defaults, "backend": self.effective_backend})

    def settings(self) -> list[Setting]:
        """Every device with every number of threads."""
        threads: tuple[int | None, ...] = self.threads or (None,)
        return [Setting(device, count) for device, count in itertools.product(self.devices, threads)]

    def shapes(self) -> Iterator[Shape]:
        """Every shape of a run."""
        lists = (self.batch_sizes, self.depths, self.prompt_tokens, self.new_tokens, self.picture_sizes)
        return (Shape(*values) for values in itertools.product(*lists))

    def asked_properties(self) -> dict[str, str]:
        """``properties`` as names and values."""
        return split_pairs(self.properties)
