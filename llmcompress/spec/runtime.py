"""Hints for the runtime that are stored in the model, and the gate a model has to pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

from llmcompress.spec.validation import MAX_COUNT, DescribedModel, Refusal, StrictModel

CachePrecision = Literal["u8", "u4", "f16", "bf16", "f32"]
GroupSize = Annotated[int, Field(ge=0, le=MAX_COUNT)]
AS_WEIGHTS = "weights"


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
