"""How a model's quality is measured, as data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llmcompress.spec.dataset import BUNDLED, ScoredText, hub_split, is_file_name
from llmcompress.spec.runtime import RuntimeProfile
from llmcompress.spec.validation import MAX_COUNT, Count, CountOrAll, Refusal, Text

Protocol = Literal["llama.cpp", "sliding", "rolling"]
Precision = Literal["as_used", "pinned"]
Backend = Literal["stateful", "paged"]

NO_PICTURES = "none"
"""In place of a file with pictures: a vision-language model is shown none."""

DEFAULT_SCORED_TOKENS = 16_384
"""At most so many are scored where no number of windows was asked for, on every machine the same."""

DEFAULT_CHUNK = 64
"""Tokens per call that let the cache's precision show; calls stay large, as windows are batched."""


def _are_pictures(pictures: str | None) -> bool:
    """Whether questions with pictures can be read of it."""
    known = pictures in (None, BUNDLED, NO_PICTURES)
    return known or str(pictures).lower().endswith((".jsonl", ".parquet")) or hub_split(str(pictures)) is not None


class EvalSpec(ScoredText):
    """Text, protocol, and the runtime's settings. The command line shows what is written below the fields."""

    protocol: Protocol = "llama.cpp"
    """How the text is cut into windows and scored."""
    seq_len: Annotated[int, Field(ge=4, le=MAX_COUNT)] = 512
    """Tokens per window."""
    stride: Count | None = None
    """Tokens between the starts of two windows, for sliding. Default: half a window"""
    num_windows: CountOrAll | None = None
    """Score the first so many windows, or all. Default: as many as have at most 16,384 scored tokens"""
    chunk: Count | None = None
    """Tokens per call: a token sees the cache's precision only in what earlier calls wrote. Default: 64 for as_used, a
    whole window for pinned, whose cache is exact"""
    device: Text = "CPU"
    """OpenVINO device."""
    precision: Precision = "as_used"
    """as_used: the device's defaults and the model's own hints. pinned: f32 execution, no dynamic quantization and an
    unquantized cache, which leaves the error of the weights alone."""
    backend: Literal["stateful", "paged", "both"] | None = None
    """stateful: the graph as Optimum runs it. paged: in the form that GenAI and Model Server run, with a cache in
    blocks. Default: both for an OpenVINO directory on the CPU, else stateful"""
    pictures: Text | None = None
    """Questions that a vision-language model is asked about pictures: bundled, none, or a .jsonl file whose rows have
    image, a path, and question; or a .parquet file or ID@COMMIT:SPLIT of the Hub with these columns.
    Default: bundled"""
    profile: RuntimeProfile | None = None
    """Runtime profile of this machine, by tune; both models are run with it."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    kl_margin: Annotated[float, Field(gt=0)] = 0.01
    """Equivalent up to this mean KL divergence per token, in nats."""
    perplexity_margin: Annotated[float, Field(gt=0)] = 0.01
    """Equivalent up to this relative increase of perplexity."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        if self.stride is not None and self.protocol != "sliding":
            problem = f"has no effect on protocol {self.protocol}"
            yield Refusal("stride", problem, "remove it, or take protocol sliding")
        if self.stride is not None and self.stride >= self.seq_len:
            problem = f"{self.stride} leaves no context in windows of {self.seq_len}"
            yield Refusal("stride", problem, "take a smaller one")
        if self.chunk is not None and self.chunk > self.seq_len:
            yield Refusal("chunk", f"{self.chunk} is more than a window of {self.seq_len}", "take at most seq_len")
        if not _are_pictures(self.pictures):
            problem = (
                f"got {self.pictures!r}; bundled, none or a .jsonl file is accepted, and a .parquet file or "
                "namespace/name@COMMIT:SPLIT of the Hub"
            )
            yield Refusal("pictures", problem, "write one row for each picture, with image and question")
        if self.backend in ("paged", "both") and self.device != "CPU":
            problem = f"{self.backend} runs the paged graph, whose cache is laid out here for the CPU"
            yield Refusal("backend", problem, "take stateful, or device CPU")
        if self.profile is not None:
            yield from profile_refusals(self.profile, self.device, self.precision)

    @property
    def pictures_name(self) -> str | None:
        """Of the pictures, in reports: a file's without its folder."""
        is_file = self.pictures is not None and is_file_name(self.pictures)
        return Path(str(self.pictures)).name if is_file else self.pictures

    @property
    def max_windows(self) -> int | None:
        """The number of windows that was asked for; None: all, or the default."""
        return self.num_windows if isinstance(self.num_windows, int) else None

    @property
    def effective_stride(self) -> int:
        """Tokens between the starts of two windows under ``sliding``."""
        return self.stride or self.seq_len // 2

    @property
    def effective_chunk(self) -> int:
        """Tokens per call."""
        return self.chunk or (min(DEFAULT_CHUNK, self.seq_len) if self.precision == "as_used" else self.seq_len)

    def backends(self, *, is_ir: bool) -> tuple[Backend, ...]:
        """The forms of a model's graph that are scored.

        Args:
            is_ir: Whether the model is an OpenVINO directory, which a server could run.
        """
        if self.backend in ("stateful", "paged"):
            return (self.backend,)
        both = self.backend == "both" or (is_ir and self.device == "CPU")
        return ("stateful", "paged") if both else ("stateful",)


def profile_refusals(profile: RuntimeProfile, device: str, precision: Precision) -> Iterator[Refusal]:
    """Yield why a profile would not be used as it is."""
    if profile.device != device:
        problem = f"{profile.name} is for {profile.device}, not for {device}"
        yield Refusal("profile", problem, "leave it out, or name that device")
    if precision == "pinned":
        yield Refusal("profile", "precision pinned sets the execution itself", "leave one of them out")
