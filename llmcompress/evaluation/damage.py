"""Where the damage comes from: the weights, or what the runtime does on its own; and how much is only noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from llmcompress.evaluation.measurement import ModelOnDevice, score_side_by_side
from llmcompress.evaluation.score_cache import ScoreCache
from llmcompress.evaluation.scoring import Feed
from llmcompress.evaluation.statistics import divergence
from llmcompress.graph.device import PINNED, properties_of
from llmcompress.report.evaluation import DamagePart, NoiseFloor
from llmcompress.system.progress import Reporter

Part = Literal["weights", "kv_cache", "dynamic_quantization", "execution_precision", "all", "paged"]

_PROPERTIES: dict[Part, tuple[str, ...]] = {
    "weights": (),
    "kv_cache": ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"),
    "dynamic_quantization": ("DYNAMIC_QUANTIZATION_GROUP_SIZE",),
    "execution_precision": ("INFERENCE_PRECISION_HINT",),
    "all": tuple(PINNED),
    "paged": tuple(PINNED),
}


def split_damage(
    candidates: Sequence[ModelOnDevice],
    reference: ModelOnDevice,
    feed: Feed,
    confidence: float,
    caches: list[ScoreCache],
    progress: Reporter,
) -> tuple[DamagePart, ...]:
    """The candidate against the reference in exact arithmetic: pinned as well, then with one property as it is used.

    Args:
        candidates: One model, in each form of its graph, with the effective properties on this device. The parts are
            those of the first; a paged graph after it gives the part ``paged``.
        feed: In chunks, or the cache's precision would not be seen.
        caches: Gets what is to be forgotten when the whole evaluation is done.
    """
    exact = properties_of(reference.device, "pinned")
    forms: dict[Part, ModelOnDevice] = {part: candidates[0] for part in get_args(Part) if part != "paged"}
    if len(candidates) > 1:
        forms["paged"] = candidates[1]
    parts = []
    for part, candidate in forms.items():
        as_used = candidate.properties
        changed = {name: as_used[name] for name in _PROPERTIES[part] if name in as_used and name in exact}
        scored = score_side_by_side(
            candidate._replace(properties={**exact, **changed}),
            reference._replace(properties=exact),
            feed,
            progress,
            stage=f"split damage: {part}",
        )
        found = divergence(scored.scores, confidence)
        parts.append(
            DamagePart(
                part=part,
                properties={name: scored.properties[name] for name in exact if name in scored.properties},
                kl_divergence=found.kl_divergence,
                top1_agreement=found.top1_agreement,
                log_perplexity_change=found.log_perplexity_change,
            )
        )
        caches.append(scored.cache)
    return tuple(parts)


def noise_floor(
    reference: ModelOnDevice, feed: Feed, confidence: float, caches: list[ScoreCache], progress: Reporter
) -> NoiseFloor:
    """The reference in exact arithmetic against itself under the other execution precision.

    That is the device's default, or bf16 where the default is f32.

    Args:
        caches: Gets what is to be forgotten when the whole evaluation is done.
    """
    name = "INFERENCE_PRECISION_HINT"
    exact = properties_of(reference.device, "pinned")
    fixed = reference._replace(properties=exact)
    other = {key: value for key, value in exact.items() if key != name}
    for properties in (other, {**other, name: "bf16"}):
        scored = score_side_by_side(
            reference._replace(properties=properties), fixed, feed, progress, stage="noise floor"
        )
        caches.append(scored.cache)
        if scored.properties.get(name) != scored.reference_properties.get(name):
            break
    found = divergence(scored.scores, confidence)
    return NoiseFloor(
        precisions=(scored.reference_properties.get(name, "unknown"), scored.properties.get(name, "unknown")),
        kl_divergence=found.kl_divergence,
        top1_agreement=found.top1_agreement,
    )
