"""How close decoding comes to what memory allows: every token reads the weights and its sequences' cache."""

from __future__ import annotations

from llmcompress.report.benchmark import Roofline
from llmcompress.spec.benchmark import Shape

BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.0, "i8": 1.0, "u4": 0.5, "i4": 0.5}
UNKNOWN = 2.0


def roofline(
    *,
    bandwidth_bytes_per_s: float,
    weight_bytes: int,
    cache_elements_per_token: int,
    properties: dict[str, str],
    shape: Shape,
    tokens_per_s: float,
) -> Roofline:
    """The roofline model (Williams, Waterman and Patterson, 2009) for one step of decoding, bytes alone.

    Args:
        cache_elements_per_token: Keys and values of all layers.
        properties: Effective ones; they name the cache's precision.
        tokens_per_s: Measured, of all sequences together.
    """
    element_bytes = BYTES.get(properties.get("KV_CACHE_PRECISION", ""), UNKNOWN)
    length = shape.depth + shape.prompt_tokens + shape.new_tokens / 2
    cache_bytes = int(cache_elements_per_token * element_bytes * length * shape.batch_size)
    limit = shape.batch_size * bandwidth_bytes_per_s / (weight_bytes + cache_bytes)
    step_s = shape.batch_size / tokens_per_s
    saved_s = weight_bytes / 2 / bandwidth_bytes_per_s
    return Roofline(
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        limit_tokens_per_s=limit,
        share=tokens_per_s / limit,
        gain_of_half_the_bits=step_s / max(step_s - saved_s, 1e-9) if saved_s < step_s else 2.0,
    )
