"""NNCF's names for weight formats, as types, and what each format fixes or refuses."""

from __future__ import annotations

from typing import Literal

Mode = Literal[
    "int8_sym",
    "int8_asym",
    "int4_sym",
    "int4_asym",
    "int3_sym",
    "int2_sym",
    "nf4",
    "cb4",
    "mxfp4",
    "mxfp8_e4m3",
    "fp8_e4m3",
    "fp4",
    "nvfp4",
    "codebook",
    "adaptive_codebook",
]
"""The values of ``nncf.CompressWeightsMode``."""

BackupMode = Literal["none", "int8_sym", "int8_asym", "mxfp8_e4m3", "fp8_e4m3"]
"""The values of ``nncf.BackupMode``; ``none`` keeps the checkpoint's precision."""

SensitivityMetric = Literal[
    "weight_quantization_error",
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
]
"""The values of ``nncf.SensitivityMetric``."""

GroupSizeFallback = Literal["error", "ignore", "adjust"]
"""The values of ``nncf.GroupSizeFallbackMode``."""

Statistics = Literal["compressed", "original"]
GptqOrder = Literal["columns", "activations"]

StatisticsPrecision = Literal["f32", "bf16"]

INT8: frozenset[Mode] = frozenset({"int8_sym", "int8_asym"})
INTEGER: frozenset[Mode] = INT8 | {"int4_sym", "int4_asym", "int3_sym", "int2_sym"}
CODEBOOKS: frozenset[Mode] = frozenset({"cb4", "codebook", "adaptive_codebook"})
DATA_FREE_ONLY: frozenset[Mode] = frozenset({"mxfp4", "mxfp8_e4m3", "fp8_e4m3", "fp4", "nvfp4"})
"""Modes for which NNCF refuses AWQ, scale estimation, GPTQ and LoRA correction."""

FIXED_GROUP_SIZE: dict[Mode, int] = {"mxfp4": 32, "mxfp8_e4m3": 32, "nvfp4": 16}

DEFAULT_BACKUP: dict[Mode, BackupMode] = {
    "mxfp4": "mxfp8_e4m3",
    "mxfp8_e4m3": "mxfp8_e4m3",
    "fp4": "fp8_e4m3",
    "fp8_e4m3": "fp8_e4m3",
}
"""For every other mode: ``int8_asym``."""


def default_group_size(mode: Mode) -> int:
    """Return the group size NNCF takes when none is given; -1 is one group per output channel."""
    if mode in FIXED_GROUP_SIZE:
        return FIXED_GROUP_SIZE[mode]
    return -1 if mode in INT8 or mode in CODEBOOKS else 128
