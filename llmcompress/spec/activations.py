"""Activations and weights in 8 bits: the arguments of ``nncf.quantize`` as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmcompress.spec.validation import Refusal, StrictModel
from llmcompress.spec.weights import IgnoredScope


class AccuracyControl(StrictModel):
    """Operations go back to floating point until the metric lost no more than ``max_drop`` on held-out windows.

    These windows have the calibration's text and length, and calibration does not use them. The model is compared with
    itself before its activations were quantized.
    """

    metric: Literal["kl_divergence", "perplexity", "top1_agreement"]
    max_drop: Annotated[float, Field(gt=0)]
    """In the metric's unit: nats per token, perplexity, share of tokens (0.01 is one in a hundred)."""
    num_samples: Annotated[int, Field(ge=1)] = 32
    """Held-out windows."""
    ranking_num_samples: Annotated[int, Field(ge=1)] | None = None
    """Windows of these that decide which operation costs most; None: all."""
    max_num_iterations: Annotated[int, Field(ge=1)] | None = None
    """Groups of operations that are tried at most; None: all."""
    keep_best: bool = False
    """Keep the best model where ``max_drop`` cannot be met, instead of none."""

    def _refusals(self) -> Iterator[Refusal]:
        if self.ranking_num_samples is not None and self.ranking_num_samples > self.num_samples:
            problem = f"is more than num_samples {self.num_samples}"
            yield Refusal("ranking_num_samples", problem, "take as many or fewer")
        if self.metric == "top1_agreement" and self.max_drop >= 1:
            yield Refusal("max_drop", "is a share of tokens and has no effect from 1 on", "take 0.01")


class Quantization(StrictModel):
    """How activations are quantized; refused here is what ``nncf.quantize`` refuses or would ignore."""

    mode: Literal["int8", "fp8_e4m3", "fp8_e5m2"] = "int8"
    preset: Literal["performance", "mixed"] | None = None
    """``mixed``: activations asymmetric. None: mixed for int8."""
    smooth_quant_alpha: Annotated[float, Field(ge=-1, le=1)] | None = None
    """From 0 to 1; -1 is off; None is NNCF's 0.95 for linear layers."""
    fast_bias_correction: bool = True
    ignored_scope: IgnoredScope = IgnoredScope()
    accuracy_control: AccuracyControl | None = None

    @field_validator("smooth_quant_alpha")
    @classmethod
    def _off_or_share(cls, value: float | None) -> float | None:
        if value is not None and value < 0 and value != -1.0:
            raise PydanticCustomError("alpha", "a number from 0 to 1, or -1 for off, is accepted")
        return value

    def _refusals(self) -> Iterator[Refusal]:
        if self.mode != "int8" and self.preset == "mixed":
            yield Refusal("preset", f"mode {self.mode} has no asymmetric form", "remove it")
        if self.mode != "int8" and self.accuracy_control is not None:
            yield Refusal("accuracy_control", f"NNCF has none for mode {self.mode}", "take mode int8")
