"""What the runtime is told: by hints in the model, and by a machine's profile; and the gate a model has to pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

from llmcompress.errors import RecipeError
from llmcompress.spec.validation import (
    MAX_COUNT,
    DescribedModel,
    Location,
    Refusal,
    StrictModel,
    Text,
    Texts,
    dotted,
    validated,
)

CachePrecision = Literal["u8", "u4", "f16", "bf16", "f32"]
GroupSize = Annotated[int, Field(ge=0, le=MAX_COUNT)]
AS_WEIGHTS = "weights"

MAX_PROFILE_BYTES = 100_000


def _number_or_weights(value: object, check: ValidatorFunctionWrapHandler) -> object:
    # No union of types: its errors would name its members.
    return value if value == AS_WEIGHTS else check(value)


_GroupSizeOrWeights = Annotated[GroupSize, WrapValidator(_number_or_weights), PlainSerializer(lambda value: value)]


class Runtime(StrictModel):
    """Hints in the model's rt_info that OpenVINO's CPU plugin reads; None leaves the choice to the plugin."""

    kv_cache_precision: CachePrecision | None = None
    key_cache_precision: CachePrecision | None = None
    """Precision of the keys where it is not ``kv_cache_precision``."""
    value_cache_precision: CachePrecision | None = None
    """Precision of the values where it is not ``kv_cache_precision``."""
    key_cache_group_size: GroupSize | None = None
    """Channels that share a scale; 0: all of a head."""
    value_cache_group_size: GroupSize | None = None
    dynamic_quantization_group_size: _GroupSizeOrWeights | None = None
    """Activations that share a scale; 0 switches dynamic quantization off. ``weights``: the smallest group that the
    model's integer weights were given, beyond which the CPU plugin gets slower; where a model leaves none, the plugin
    decides."""

    def _refusals(self) -> Iterator[Refusal]:
        key_precision = self.key_cache_precision or self.kv_cache_precision
        value_precision = self.value_cache_precision or self.kv_cache_precision
        if self.kv_cache_precision is not None and self.key_cache_precision and self.value_cache_precision:
            problem = "has no effect beside key_cache_precision and value_cache_precision"
            yield Refusal("kv_cache_precision", problem, "remove it")
        for name, group_size, precision in (
            ("key_cache_group_size", self.key_cache_group_size, key_precision),
            ("value_cache_group_size", self.value_cache_group_size, value_precision),
        ):
            if group_size is not None and precision in ("f16", "bf16", "f32"):
                yield Refusal(name, f"has no effect on a cache in {precision}", "remove it")

    @property
    def follows_weights(self) -> bool:
        """Whether the weights' group size is asked for."""
        return str(self.dynamic_quantization_group_size) == AS_WEIGHTS

    def resolved(self, group_sizes: Iterable[int]) -> Self:
        """Return the hints of a model whose integer weights have these groups, a number in the place of ``weights``."""
        if not self.follows_weights:
            return self
        return self.model_copy(update={"dynamic_quantization_group_size": min(group_sizes, default=None)})

    def properties(self) -> dict[str, str]:
        """Return OpenVINO's names and values of the hints that are set; of a model's they are resolved."""
        assert not self.follows_weights
        return {name.upper(): str(value) for name, value in self.model_dump(exclude_none=True).items()}


class Gate(DescribedModel):
    """What the compressed model may lose against its source."""

    max_kl: Annotated[float, Field(gt=0)] | None = None
    """Largest mean KL divergence per token, in nats."""
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Smallest share of tokens after which both models prefer the same next token."""
    max_perplexity_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest relative increase of perplexity: 0.05 is 5 %."""
    max_picture_kl: Annotated[float, Field(gt=0)] | None = None
    """Largest mean KL divergence per token of answers about pictures, in nats, of a vision-language model."""


class RuntimeProfile(StrictModel):
    """Properties of a device that no plugin reads from a model: threads, pinning, inference precision and the like."""

    name: Text
    device: Text
    cpu: Text
    """Where they were found to be best."""
    platform: Text
    properties: Texts
    """``KEY=VALUE`` for the device."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from pair_refusals(self.properties)

    def as_properties(self) -> dict[str, str]:
        """Names and values."""
        return split_pairs(self.properties)


def load_profile(path: str | Path) -> RuntimeProfile:
    """Read a profile that ``tune`` wrote, or a person.

    Raises:
        RecipeError: It cannot be read, or a field is not accepted.
    """
    where = str(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_PROFILE_BYTES + 1)
        if len(content) > MAX_PROFILE_BYTES:
            raise ValueError(f"it has more than {MAX_PROFILE_BYTES} bytes")
        fields = json.loads(content)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=where, hint="give a runtime profile") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"is no runtime profile: {error}", where=where, hint="llmcompress tune writes one") from None

    def place(location: Location) -> str:
        return f"{where}: {dotted(location)}" if location else where

    return validated(RuntimeProfile, fields, place)


def pair_refusals(texts: tuple[str, ...]) -> Iterator[Refusal]:
    """Yield which are not ``KEY=VALUE``."""
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            yield Refusal("properties", f"got {text!r}; KEY=VALUE is accepted", "write such a pair")


def split_pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` as names and values."""
    pairs = (text.partition("=") for text in texts)
    return {name: value for name, _, value in pairs}
