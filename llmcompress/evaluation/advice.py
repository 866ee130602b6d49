"""What to try where a model is worse than its reference: recipes that lose less, chosen by what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llmcompress.errors import RecipeError
from llmcompress.report.evaluation import EvalReport
from llmcompress.spec import Recipe, WeightCompression, override_recipe
from llmcompress.spec.modes import FIXED_GROUP_SIZE, INT8

SMALL_GROUP = 32
_FEW_MARGINS = 5
"""Up to so many margins a better search or smaller groups can be enough: they save a part of the loss, not most."""
_RUNTIME = {
    "kv_cache": ("runtime.kv_cache_precision=f16", "the cache in 16 bits"),
    "dynamic_quantization": ("runtime.dynamic_quantization_group_size=0", "activations that are not quantized"),
    "paged": ("runtime.kv_cache_precision=f16", "the paged graph's cache in 16 bits"),
}
_SMALL_CACHES = ("u8", "i8", "u4", "i4")
"""Precisions of the cache that lose something."""


_LEARNED: dict[str, str] = {"int4_asym": "int4-distilled", "int4_sym": "int4-sym-distilled"}


class Remedy(NamedTuple):
    """A recipe that loses less, and what it does."""

    recipe: str | None
    """A packaged one; None: the model's own."""
    setting: str | None
    """What is changed in it, as ``--set`` takes it."""
    effect: str


class Advice(NamedTuple):
    """What was lost, and what to try."""

    lost: str
    """How much, and by what as far as that was measured."""
    remedies: tuple[Remedy, ...]
    """From the smallest model to the largest; none where no packaged recipe loses less."""
    first: Remedy | None
    """The one to begin with."""


def advice(report: EvalReport, recipe: Recipe) -> Advice | None:
    """What to try next; None where the report does not say that the model is worse.

    Args:
        recipe: By which the model was made.
    """
    worst = report.worst
    found = worst.divergence
    if report.verdict != "worse" or found is None:
        return None
    margin = report.spec.kl_margin
    loss, more = found.kl_divergence.value, found.perplexity_ratio.value - 1
    lost = f"{loss:.3g} nats of KL divergence ({margin:g} allowed), {more:+.2%} perplexity"
    lost += f" on the {worst.backend} graph" if len(report.divergences) > 1 else ""
    parts: dict[str, float] = {part.part: part.kl_divergence.value for part in report.split_damage}
    if worst.backend != "paged":
        parts.pop("paged", None)
    if "weights" not in parts or "all" not in parts:
        remedies = tuple(_weights(recipe))
    elif (part := _part_of_the_runtime(parts)) is None:
        lost += f"; the weights alone lose {parts['weights']:.3g} nats"
        remedies = tuple(_weights(recipe))
    else:
        lost += f"; the weights alone lose {parts['weights']:.3g} nats, {_words(part)} adds most of the rest"
        remedies = tuple(_runtime(part, report, recipe))
    # What is not a number is beyond every margin.
    first = (remedies[0] if loss <= _FEW_MARGINS * margin else remedies[-1]) if remedies else None
    return Advice(lost, remedies, first)


def _part_of_the_runtime(parts: dict[str, float]) -> str | None:
    """What of the runtime loses most, where it loses more than the weights do; the paged graph on top of the rest."""
    weights, all_of_stateful = parts["weights"], parts["all"]
    if parts.get("paged", all_of_stateful) - weights <= weights:
        return None
    single = ("kv_cache", "dynamic_quantization", "execution_precision")
    added = {part: parts[part] - weights for part in single if part in parts}
    if "paged" in parts:
        added["paged"] = parts["paged"] - all_of_stateful
    return max(added, key=added.__getitem__, default=None)


def _runtime(part: str, report: EvalReport, recipe: Recipe) -> Iterator[Remedy]:
    """The setting that takes a part of the runtime's damage away, where a recipe has one that is not in force."""
    if part not in _RUNTIME or not _accepts(recipe, _RUNTIME[part][0]):
        return
    if part == "paged":
        paged = next(each for each in report.split_damage if each.part == "paged")
        if paged.properties.get("KV_CACHE_PRECISION") not in _SMALL_CACHES:
            return
    yield Remedy(None, *_RUNTIME[part])


def _accepts(recipe: Recipe, setting: str) -> bool:
    try:
        override_recipe(recipe, (setting,))
    except RecipeError:
        return False
    return True


def _words(part: str) -> str:
    return {
        "kv_cache": "the cache's precision",
        "dynamic_quantization": "dynamic quantization",
        "execution_precision": "the execution precision",
        "paged": "the paged graph",
    }[part]


def _weights(recipe: Recipe) -> Iterator[Remedy]:
    int8 = Remedy("int8", None, "8-bit weights")
    if recipe.pruning is not None:
        yield Remedy("int4-mixed", None, "nothing is taken away; 4-bit weights, the most sensitive layers in 8 bits")
        yield int8
        return
    if recipe.activations is not None:
        if recipe.activations.mode == "int8" and recipe.activations.accuracy_control is None:
            yield Remedy("int8-ptq-accuracy", None, "what costs most goes back to floating point")
        yield int8
        return
    weights = recipe.weights
    if weights is None or weights.mode == "int8_asym":
        return
    if recipe.target != "npu" and weights.mode not in INT8 and "8" not in weights.mode:
        yield from _few_bits(recipe, weights)
    yield Remedy("int8-sym", None, "8-bit weights") if recipe.target == "npu" else int8


def _few_bits(recipe: Recipe, weights: WeightCompression) -> Iterator[Remedy]:
    if weights.mode in ("int2_sym", "int3_sym"):
        yield Remedy("int4", None, "4-bit weights")
    if not weights.scale_estimation and not weights.gptq:
        yield Remedy("int4-awq-se", None, "AWQ and scale estimation on text, the same size")
    if recipe.training is None and weights.mode in _LEARNED:
        yield Remedy(_LEARNED[weights.mode], None, "bits learned from the original, the same size")
    size = weights.effective_group_size
    smaller = f"weights.group_size={SMALL_GROUP}"
    if weights.mode not in FIXED_GROUP_SIZE and (size == -1 or size > SMALL_GROUP) and _accepts(recipe, smaller):
        yield Remedy(None, smaller, "smaller groups, more scales")
    if weights.ratio == 1.0:
        yield Remedy("int4-mixed", None, "the most sensitive layers in 8 bits")
