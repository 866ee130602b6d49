"""The bytes that a weight takes in each mode, as NNCF's OpenVINO backend (3.4) stores it."""

from __future__ import annotations

from typing import NamedTuple

from llmcompress.compression.forecast.records import Weight
from llmcompress.spec import AdvancedCompression

ELEMENT_BYTES = {"bf16": 2, "f16": 2, "f32": 4}

CODEBOOK_ELEMENT_BYTES = {"f8e4m3": 1, "f8e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4}
# Every grouped weight ends in a Reshape; its shape constant holds 8 bytes per axis, and equal ones are stored once.
RESHAPE_AXIS_BYTES = 8


class Layout(NamedTuple):
    """How a mode stores a weight."""

    weight_bits: int
    scale_bytes: int
    """Of one scale; there is one per group."""
    zero_point_bits: int = 0
    extra_bytes: int = 0
    """Once per weight: a second scale, a codebook."""


LAYOUTS = {
    "int8_asym": Layout(8, 2, 8),
    "int8_sym": Layout(8, 2),
    "int4_asym": Layout(4, 2, 4),
    "int4_sym": Layout(4, 2),
    "int3_sym": Layout(3, 2),
    "int2_sym": Layout(2, 2),
    "nf4": Layout(4, 2),
    "fp4": Layout(4, 2),
    "mxfp4": Layout(4, 1),
    "nvfp4": Layout(4, 1, 0, 4),
    "fp8_e4m3": Layout(8, 2),
    "mxfp8_e4m3": Layout(8, 1),
    "cb4": Layout(4, 2, 0, 16),
}


def layout(mode: str, advanced: AdvancedCompression) -> Layout:
    """Return how ``mode`` stores a weight; a codebook's size is in ``advanced``."""
    if mode == "codebook" and advanced.codebook is not None:
        return _codebook(len(advanced.codebook), CODEBOOK_ELEMENT_BYTES["float32"])
    if mode == "adaptive_codebook":
        adaptive = advanced.adaptive_codebook_params
        return _codebook(adaptive.num_elements, CODEBOOK_ELEMENT_BYTES[adaptive.value_type])
    return LAYOUTS[mode]


def _codebook(num_elements: int, element_bytes: int) -> Layout:
    bits = 4 if num_elements <= 16 else 8 if num_elements <= 256 else 16
    return Layout(bits, 2, 0, num_elements * element_bytes)


def compressed_bytes(weight: Weight, stored: Layout, group_size: int) -> int:
    """Return the bytes of ``weight`` with scales, zero points and other constants; ``group_size`` -1: per channel."""
    num_rows = weight.shape[0] if weight.kind == "convolution" else weight.num_parameters // weight.in_channels
    num_groups = num_rows if group_size == -1 else num_rows * (weight.in_channels // group_size)
    return (
        _packed(weight.num_parameters, stored.weight_bits)
        + num_groups * stored.scale_bytes
        + _packed(num_groups, stored.zero_point_bits)
        + stored.extra_bytes
    )


def uncompressed_bytes(weight: Weight) -> int:
    """Return the bytes of ``weight`` in the graph's own precision."""
    return weight.num_parameters * ELEMENT_BYTES[weight.dtype]


def lora_adapter_bytes(weight: Weight, rank: int, *, int8: bool) -> int:
    """Return the bytes of the adapters that LoRA correction adds to ``weight``: ``[rank, in]`` and ``[out, rank]``."""
    num_rows = weight.num_parameters // weight.in_channels
    elements = rank * (weight.in_channels + num_rows)
    # int8_asym per channel: a two-byte scale and a one-byte zero point for each row of both.
    return elements + 3 * (rank + num_rows) if int8 else elements * 4


def _packed(num_elements: int, bits: int) -> int:
    return (num_elements * bits + 7) // 8
