"""The format of single weights, whatever the rest of a compression says of them: what a search writes, and you may."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmcompress.errors import RecipeError
from llmcompress.spec.modes import FIXED_GROUP_SIZE, INT8, default_group_size
from llmcompress.spec.validation import GroupSize, Refusal, StrictModel, Text, is_pattern

RuleMode = Literal[
    "none",
    "int8_sym",
    "int8_asym",
    "int4_sym",
    "int4_asym",
    "int3_sym",
    "int2_sym",
    "nf4",
    "mxfp4",
    "mxfp8_e4m3",
    "fp8_e4m3",
    "fp4",
    "nvfp4",
]
"""NNCF's modes that need no table of values; ``none`` keeps the checkpoint's precision."""


class LayerRule(StrictModel):
    """One rule: which weights, and the format that they take."""

    match: Annotated[Text, Field(min_length=1, max_length=1000)]
    """A Python regular expression for the whole name of a weight as in the checkpoint
    (``model.layers.0.mlp.down_proj.weight``), or the type of the operation that takes the weight: ``MatMul``,
    ``Gather`` (embeddings), ``Convolution``."""
    mode: RuleMode
    group_size: GroupSize | None = None
    """Has to divide the input channels; -1: all of an output channel; None: the mode's default."""
    method: Literal["data_free", "gptq"] | None = None
    """None: AWQ, scale estimation and GPTQ, where the recipe asks for them; ``data_free``: none of them; ``gptq``: GPTQ
    without AWQ."""

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        if not is_pattern(value):
            raise PydanticCustomError("pattern", "a Python regular expression is accepted")
        return value

    def _refusals(self) -> Iterator[Refusal]:
        if self.group_size is None:
            return
        fixed = None if self.mode == "none" else FIXED_GROUP_SIZE.get(self.mode)
        if self.mode == "none":
            yield Refusal("group_size", "has no effect with mode none", "remove it")
        elif self.mode in INT8 and self.group_size != -1:
            yield Refusal("group_size", f"mode {self.mode} has one group per channel", "remove it")
        elif fixed and self.group_size != fixed:
            yield Refusal("group_size", f"mode {self.mode} has groups of {fixed}", "remove it")

    @property
    def effective_group_size(self) -> int:
        """The group size that the weights take; -1 is one group per output channel."""
        if self.group_size is not None:
            return self.group_size
        return -1 if self.mode == "none" else default_group_size(self.mode)

    def takes(self, name: str, op_type: str) -> bool:
        """Whether a weight of that name, which an operation of that type takes, is one of its weights."""
        return self.match == op_type or re.fullmatch(self.match, name) is not None


def first_rule(rules: Iterable[LayerRule], name: str, op_type: str) -> LayerRule | None:
    """The rule of a weight: the first that takes it."""
    return next((rule for rule in rules if rule.takes(name, op_type)), None)


def require_used(rules: Iterable[LayerRule], used: Iterable[LayerRule], place: str = "weights") -> None:
    """Refuse a rule that takes no weight.

    Args:
        rules: All of them.
        used: Those of the weights.
        place: Of the compression in the recipe.

    Raises:
        RecipeError: Names the rule.
    """
    found = set(used)
    for number, rule in enumerate(rules):
        if rule not in found:
            raise RecipeError(
                f"got {rule.match!r}, which takes no weight that is still to be compressed and that no earlier rule "
                "takes",
                where=f"{place}.rules.{number}.match",
                hint="a dry run lists the names of the weights; the expression has to match the whole name",
            )


def undivided(rule: LayerRule, name: str, num_channels: int, place: str = "weights") -> RecipeError:
    """The error of a rule whose group size does not divide the input channels of a weight."""
    return RecipeError(
        f"group size {rule.effective_group_size} of rule {rule.match!r} does not divide the {num_channels} input "
        f"channels of {name}",
        where=f"{place}.rules",
        hint="write another group_size into the rule, or -1 for one group per channel",
    )
