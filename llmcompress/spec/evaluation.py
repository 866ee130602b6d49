"""How a model's quality is measured, as data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmcompress.spec.dataset import ScoredText
from llmcompress.spec.profile import RuntimeProfile
from llmcompress.spec.validation import MAX_COUNT, Count, Refusal, Text, refusal_error

Protocol = Literal["llama.cpp", "sliding", "rolling"]
Precision = Literal["as_used", "pinned"]

DEFAULT_CHUNK = 64
"""Tokens per call where the cache's precision is to be seen; calls stay large, as windows are batched."""


class EvalSpec(ScoredText):
    """Text, protocol, and the runtime's settings. The command line shows what is written below the fields."""

    protocol: Protocol = "llama.cpp"
    """How the text is cut into windows and scored."""
    seq_len: Annotated[int, Field(ge=4, le=MAX_COUNT)] = 512
    """Tokens per window."""
    stride: Count | None = None
    """Tokens between the starts of two windows, for sliding. Default: half a window"""
    num_windows: Count | None = None
    """Score the first so many windows. Default: all"""
    chunk: Count | None = None
    """Tokens per call: a token sees the cache's precision only in what earlier calls wrote. Default: 64 for as_used, a
    whole window for pinned, whose cache is exact"""
    device: Text = "CPU"
    """OpenVINO device."""
    precision: Precision = "as_used"
    """as_used: the device's defaults and the model's own hints. pinned: f32 execution, no dynamic quantization and an
    unquantized cache, which leaves the error of the weights alone."""
    profile: RuntimeProfile | None = None
    """Runtime profile of this machine, by tune; both models are run with it."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    kl_margin: Annotated[float, Field(gt=0)] = 0.01
    """Equivalent up to this mean KL divergence per token, in nats."""
    perplexity_margin: Annotated[float, Field(gt=0)] = 0.01
    """Equivalent up to this relative increase of perplexity."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stride is not None and self.protocol != "sliding":
            raise refusal_error(
                Refusal("stride", f"has no effect on protocol {self.protocol}", "remove it, or take protocol sliding")
            )
        if self.stride is not None and self.stride >= self.seq_len:
            raise refusal_error(
                Refusal("stride", f"{self.stride} leaves no context in windows of {self.seq_len}", "take a smaller one")
            )
        if self.chunk is not None and self.chunk > self.seq_len:
            raise refusal_error(
                Refusal("chunk", f"{self.chunk} is more than a window of {self.seq_len}", "take at most seq_len")
            )
        if self.profile is not None:
            check_profile(self.profile, self.device, self.precision)
        return self

    @property
    def effective_stride(self) -> int:
        """Tokens between the starts of two windows under ``sliding``."""
        return self.stride or self.seq_len // 2

    @property
    def effective_chunk(self) -> int:
        """Tokens per call."""
        return self.chunk or (min(DEFAULT_CHUNK, self.seq_len) if self.precision == "as_used" else self.seq_len)


def check_profile(profile: RuntimeProfile, device: str, precision: Precision) -> None:
    """Refuse a profile that would not be used as it is; for a validator."""
    if profile.device != device:
        problem = f"{profile.name} is for {profile.device}, not for {device}"
        raise refusal_error(Refusal("profile", problem, "leave it out, or name that device"))
    if precision == "pinned":
        problem = "precision pinned sets the execution itself"
        raise refusal_error(Refusal("profile", problem, "leave one of them out"))
