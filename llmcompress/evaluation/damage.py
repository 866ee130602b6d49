"""Where the damage comes from: the weights, or what the runtime does on its own; and how much is only noise."""

from __future__ import annotations

from typing import Literal, get_args

from llmcompress.evaluation.measurement import Text, score_side_by_side
from llmcompress.evaluation.score_cache import StoredScores
from llmcompress.evaluation.statistics import divergence
from llmcompress.graph.device import PINNED, properties_of
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.report.evaluation import DamagePart, NoiseFloor
from llmcompress.system.progress import Reporter

Part = Literal["weights", "kv_cache", "dynamic_quantization", "execution_precision", "all"]

_PROPERTIES: dict[Part, tuple[str, ...]] = {
    "weights": (),
    "kv_cache": ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"),
    "dynamic_quantization": ("DYNAMIC_QUANTIZATION_GROUP_SIZE",),
    "execution_precision": ("INFERENCE_PRECISION_HINT",),
    "all": tuple(PINNED),
}


def split_damage(
    candidate: LoadedModel,
    reference: LoadedModel,
    as_used: dict[str, str],
    text: Text,
    confidence: float,
    stores: list[StoredScores],
    progress: Reporter,
) -> tuple[DamagePart, ...]:
    """The candidate against the reference in exact arithmetic: pinned as well, then with one property as it is used.

    Args:
        as_used: The candidate's effective properties on this device.
        text: Fed in chunks, or the cache's precision would not be seen.
        stores: Gets what is to be forgotten when the whole evaluation is done.
    """
    exact = properties_of(text.device, "pinned")
    parts = []
    for part in get_args(Part):
        changed = {name: as_used[name] for name in _PROPERTIES[part] if name in as_used and name in exact}
        scored = score_side_by_side(
            candidate, reference, {**exact, **changed}, exact, text, progress, stage=f"split damage: {part}"
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
        stores += scored.stores
    return tuple(parts)


def noise_floor(
    reference: LoadedModel, text: Text, confidence: float, stores: list[StoredScores], progress: Reporter
) -> NoiseFloor:
    """The reference in exact arithmetic against itself under the other execution precision.

    That is the device's default, or bf16 where the default is f32.

    Args:
        stores: Gets what is to be forgotten when the whole evaluation is done.
    """
    exact = properties_of(text.device, "pinned")
    other = {name: value for name, value in exact.items() if name != "INFERENCE_PRECISION_HINT"}
    scored = score_side_by_side(reference, reference, other, exact, text, progress, stage="noise floor")
    name = "INFERENCE_PRECISION_HINT"
    if scored.properties.get(name) == scored.reference_properties.get(name):
        stores += scored.stores
        other[name] = "bf16"
        scored = score_side_by_side(reference, reference, other, exact, text, progress, stage="noise floor")
    found = divergence(scored.scores, confidence)
    stores += scored.stores
    return NoiseFloor(
        precisions=(scored.reference_properties.get(name, "unknown"), scored.properties.get(name, "unknown")),
        kl_divergence=found.kl_divergence,
        top1_agreement=found.top1_agreement,
    )
