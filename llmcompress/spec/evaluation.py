"""How a model's quality is measured, as data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llmcompress.spec.dataset import Dataset
from llmcompress.spec.profile import RuntimeProfile
from llmcompress.spec.validation import MAX_COUNT, Count, Refusal, Text, from_options, refusal_error

Protocol = Literal["llama.cpp", "sliding", "rolling"]
Precision = Literal["as_used", "pinned"]

DEFAULT_CHUNK = 64
"""Tokens per call where the cache's precision is to be seen; calls stay large, as windows are batched."""


class EvalSpec(Dataset):
    """Text, protocol, and the runtime's settings."""

    KNOWN: ClassVar[tuple[str, ...]] = ("wikitext2", "c4")

    protocol: Protocol = "llama.cpp"
    seq_len: Annotated[int, Field(ge=4, le=MAX_COUNT)] = 512
    """Tokens per window."""
    stride: Count | None = None
    """Tokens between the starts of two windows, for ``sliding`` (None: half a window)."""
    num_windows: Count | None = None
    """The first so many windows; None: all."""
    chunk: Count | None = None
    """Tokens per call. A token sees the precision of the key-value cache only in what earlier calls wrote to it. None:
    64 for ``as_used``, a whole window for ``pinned``, whose cache is exact."""
    device: Text = "CPU"
    precision: Precision = "as_used"
    """``as_used``: the device's defaults and the model's own hints. ``pinned``: f32 execution, no dynamic quantization
    and an unquantized cache: the error of the weights alone."""
    profile: RuntimeProfile | None = None
    """What suits the machine, as ``tune`` found it; both models are run with it."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    kl_margin: Annotated[float, Field(gt=0)] = 0.01
    """Mean KL divergence per token, in nats, up to which two models count as equivalent."""
    perplexity_margin: Annotated[float, Field(gt=0)] = 0.01
    """Relative increase of perplexity up to which two models count as equivalent."""

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


def eval_spec(**values: Any) -> EvalSpec:
    """Make an ``EvalSpec``; what is None is left at its default.

    Raises:
        UsageError: A value is not accepted or would have no effect.
    """
    return from_options(EvalSpec, values)
