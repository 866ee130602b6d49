"""NNCF's advanced parameters of weight compression, typed: names, defaults and meaning are NNCF's."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmcompress.spec.validation import MAX_COUNT, Count, Refusal, StrictModel, refusal_error

Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class AwqParameters(StrictModel):
    """Data-aware AWQ: the share of the most active channels to scale, and the grid of exponents to try."""

    subset_size: Count = 32
    percent_to_apply: Share = 0.002
    alpha_min: Share = 0.0
    alpha_max: Share = 1.0
    steps: Count = 100
    prefer_data_aware_scaling: bool = True
    """False: scale by the weights alone although there is calibration data for other methods."""

    def _refusals(self) -> Iterator[Refusal]:
        if self.alpha_min > self.alpha_max:
            yield Refusal("alpha_min", "larger than alpha_max", "make it the smaller of the two")


class ScaleEstimationParameters(StrictModel):
    """Scale estimation: steps of refinement and of the grid search that follows."""

    subset_size: Count = 64
    initial_steps: Steps = 5
    scale_steps: Steps = 5
    weight_penalty: float = -1.0
    """Weight of the difference between weights in the target; -1 is off."""

    def _refusals(self) -> Iterator[Refusal]:
        if self.weight_penalty <= 0 and self.weight_penalty != -1.0:
            yield Refusal("weight_penalty", "neither -1 nor positive", "write -1 for off")
        if self.initial_steps == self.scale_steps == 0:
            yield Refusal("scale_steps", "without any step nothing is estimated", "write one or more")


class GptqParameters(StrictModel):
    """GPTQ: damping as a share of the Hessian's mean diagonal, and columns per block."""

    damp_percent: Annotated[float, Field(gt=0)] = 0.1
    block_size: Count = 128
    subset_size: Count = 128


class LoraCorrectionParameters(StrictModel):
    """LoRA correction: rank and fitting of the low-rank term added to each compressed layer."""

    adapter_rank: Count = 8
    num_iterations: Steps = 3
    apply_regularization: bool = True
    subset_size: Count = 128
    use_int8_adapters: bool = True


class AdaptiveCodebookParameters(StrictModel):
    """Adaptive codebook: type and number of its entries; ``across_blocks`` shares one among like-named layers."""

    value_type: Literal["f8e4m3", "f8e5m2", "float16", "bfloat16", "float32", "int8"] = "f8e4m3"
    across_blocks: bool = False
    num_elements: Annotated[int, Field(ge=2, le=65_536)] = 16


class AdvancedCompression(StrictModel):
    """The fields of ``nncf.AdvancedCompressionParameters`` that change the result of compressing an OpenVINO model.

    Not here: ``group_size_fallback_mode`` is ``weights.group_size_fallback``; ``statistics_path`` is a cache and no
    part of what to do; ``lora_adapter_rank`` and ``backend_params`` have no effect on an OpenVINO model.
    """

    min_adjusted_group_size: Count = 32
    awq_params: AwqParameters = AwqParameters()
    scale_estimation_params: ScaleEstimationParameters = ScaleEstimationParameters()
    gptq_params: GptqParameters = GptqParameters()
    lora_correction_params: LoraCorrectionParameters = LoraCorrectionParameters()
    codebook: Annotated[tuple[float, ...], Field(strict=False, min_length=2, max_length=65_536)] | None = None
    """Ascending values; the scaled weights are rounded to the nearest."""
    adaptive_codebook_params: AdaptiveCodebookParameters = AdaptiveCodebookParameters()

    @model_validator(mode="before")
    @classmethod
    def _explain_absent(cls, data: object) -> object:
        for name, problem, hint in _ABSENT:
            if isinstance(data, dict) and name in data:
                raise refusal_error(Refusal(name, problem, hint))
        return data

    def _refusals(self) -> Iterator[Refusal]:
        # NNCF gets 32-bit values: what is ascending here must still be there.
        values = array("f", self.codebook or ())
        if not all(map(math.isfinite, values)) or any(a >= b for a, b in pairwise(values)):
            yield Refusal("codebook", "not ascending as 32-bit floats", "sort it and remove equal values")


_ABSENT = (
    (
        "lora_adapter_rank",
        "belongs to training formats (FQ_LORA), which an OpenVINO model does not have",
        "for lora_correction, set lora_correction_params.adapter_rank",
    ),
    ("backend_params", "has no effect on the weight compression of an OpenVINO model", "remove it"),
    ("statistics_path", "is a cache and no part of a recipe", "remove it; statistics are cached by themselves"),
    ("group_size_fallback_mode", "has a field of its own", "write weights.group_size_fallback"),
)
