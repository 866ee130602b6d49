"""Mode and group size of each weight, by the rules of NNCF's weight compression.

The rules are those of ``nncf/quantization/algorithms/weight_compression/algorithm.py`` (3.4): matrix multiplications
get the primary precision; embeddings, convolutions and the output head get the backup precision unless ``all_layers``.

Where the group size does not divide a layer's input channels, ``group_size_fallback`` decides: ``error`` refuses,
``adjust`` takes the largest power of two that divides them, or the backup precision if that is below
``min_adjusted_group_size``, and ``ignore`` leaves the layer as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.compression.forecast.records import Weight
from llmcompress.compression.gptq_layers import gptq_refusal
from llmcompress.errors import RecipeError
from llmcompress.graph.model import parameter_name
from llmcompress.spec import Recipe, WeightCompression
from llmcompress.spec.layer_rules import LayerRule, first_rule, require_used, undivided

USUAL_GROUP_SIZES = (256, 128, 64, 32, 16, 8)
MAX_NAMES = 4
_OPERATIONS = {"matmul": "MatMul", "embedding": "Gather", "convolution": "Convolution"}


class Precision(NamedTuple):
    """What a weight becomes; ``mode`` None: left as it is."""

    mode: str | None
    group_size: int = -1


class Assignment(NamedTuple):
    """The two precisions that are possible for a weight; the same one twice where nothing is left to decide."""

    primary: Precision
    backup: Precision


LEFT = Assignment(Precision(None), Precision(None))
"""Of a weight that is left as it is."""


def assign(
    weights: Sequence[Weight], recipe: WeightCompression, place: str = "weights"
) -> tuple[list[Assignment], list[str]]:
    """Return the precisions of each weight, in order, and in words which get another than asked, or may fail.

    Args:
        place: Of ``recipe`` in the whole recipe.

    Raises:
        RecipeError: the group size does not divide the input channels of layers that will get it, or GPTQ does not
            take these, or a rule takes no weight.
    """
    rules = [None if weight.ignored else _rule(weight, recipe) for weight in weights]
    require_used(recipe.rules, [rule for rule in rules if rule is not None], place)
    others, remarks = _by_recipe([w for w, rule in zip(weights, rules, strict=True) if rule is None], recipe, place)
    rest = iter(others)
    return [
        next(rest) if rule is None else _by_rule(weight, rule, place)
        for weight, rule in zip(weights, rules, strict=True)
    ], remarks


def _rule(weight: Weight, recipe: WeightCompression) -> LayerRule | None:
    return first_rule(recipe.rules, parameter_name(weight.name), _OPERATIONS[weight.kind])


def _by_rule(weight: Weight, rule: LayerRule, place: str) -> Assignment:
    if rule.mode == "none":
        return LEFT
    precision = Precision(rule.mode, rule.effective_group_size)
    if not _divides(weight, precision):
        raise undivided(rule, parameter_name(weight.name), weight.in_channels, place)
    return Assignment(precision, precision)


def _by_recipe(weights: Sequence[Weight], recipe: WeightCompression, place: str) -> tuple[list[Assignment], list[str]]:
    """The precisions of the weights without a rule; returns and raises as ``assign``."""
    if recipe.mode.startswith("int8"):
        same = Precision(recipe.mode)
        return [LEFT if w.ignored else Assignment(same, same) for w in weights], []
    backup = _backup(recipe)
    assigned: list[Assignment] = []
    undivided: list[Weight] = []
    for weight in weights:
        wanted = _primary(weight, recipe)
        if weight.ignored:
            assigned.append(LEFT)
            continue
        primary = wanted or backup
        if wanted is not None and not _divides(weight, wanted):
            undivided.append(weight)
            if recipe.group_size_fallback == "ignore":
                assigned.append(LEFT)
                continue
            if recipe.group_size_fallback == "adjust":
                primary = _adjusted(weight, recipe) or backup
        assigned.append(Assignment(primary, primary if recipe.ratio == 1.0 else backup))
    if recipe.group_size_fallback == "error":
        remarks = _check_groups(weights, assigned, undivided, recipe, place)
    else:
        remarks = _fallbacks(undivided, recipe, place)
    remarks += _check_backup(weights, assigned, backup, recipe, place)
    return assigned, remarks + _check_gptq(weights, assigned, recipe)


def gives_gptq_embeddings(weights: Sequence[Weight], recipe: Recipe) -> bool:
    """Whether a rule gives an embedding to GPTQ, which goes by gradients of the model in torch."""
    names = [parameter_name(weight.name) for weight in weights if weight.kind == "embedding"]
    return any(each.gives_gptq(name) for each in recipe.weight_passes for name in names)


def primary_share(weights: Sequence[Weight], ratio: float) -> float:
    """Return the share of the parameters of ``weights`` that is expected to get the primary precision.

    NNCF takes layers by rising sensitivity and stops before the first that would pass ``ratio``; the layer it stops at
    is expected as large as the size-weighted mean, and to pass the mark by half of itself.
    """
    total = sum(w.num_parameters for w in weights)
    if ratio >= 1.0 or not total:
        return min(ratio, 1.0)
    crossing = sum(w.num_parameters**2 for w in weights) / total
    return max(0.0, ratio - crossing / 2 / total)


def _primary(weight: Weight, recipe: WeightCompression) -> Precision | None:
    if weight.kind == "convolution":
        return None
    if (weight.is_head or weight.kind == "embedding") and not recipe.all_layers:
        return None
    return Precision(recipe.mode, recipe.effective_group_size)


def _backup(recipe: WeightCompression) -> Precision:
    mode = recipe.effective_backup_mode
    if mode == "none":
        return Precision(None)
    return Precision(mode, {"fp8_e4m3": recipe.effective_group_size, "mxfp8_e4m3": 32}.get(mode, -1))


def _divides(weight: Weight, precision: Precision) -> bool:
    return precision.mode is None or precision.group_size == -1 or weight.in_channels % precision.group_size == 0


def _adjusted(weight: Weight, recipe: WeightCompression) -> Precision | None:
    """The largest power of two that divides the channels, when it is not too small."""
    power = weight.in_channels & -weight.in_channels
    return Precision(recipe.mode, power) if power >= recipe.advanced.min_adjusted_group_size else None


def _check_groups(
    weights: Sequence[Weight],
    assigned: Sequence[Assignment],
    undivided: Sequence[Weight],
    recipe: WeightCompression,
    place: str,
) -> list[str]:
    """Refuse what is sure to fail; under mixed precision undivided layers may all get the backup precision."""
    if not undivided:
        return []
    size = recipe.effective_group_size
    deciding = sum(w.num_parameters for w, a in zip(weights, assigned, strict=True) if a.primary.mode == recipe.mode)
    if sum(w.num_parameters for w in undivided) > (1.0 - recipe.ratio) * deciding:
        raise _refused(size, undivided, weights, recipe, f"{place}.group_size")
    return [
        f"{_problem(size, undivided)}: the run fails unless mixed precision happens to give these the backup "
        f"precision; set {place}.group_size_fallback to adjust"
    ]


def _fallbacks(undivided: Sequence[Weight], recipe: WeightCompression, place: str) -> list[str]:
    """Say which layers do not get the recipe's groups, and what they get."""
    by_outcome: dict[str, list[Weight]] = {}
    for weight in undivided:
        by_outcome.setdefault(_outcome(weight, recipe), []).append(weight)
    size, fallback = recipe.effective_group_size, f"{place}.group_size_fallback {recipe.group_size_fallback}"
    return [f"{_problem(size, fallen)}: {fallback} {outcome}" for outcome, fallen in by_outcome.items()]


def _outcome(weight: Weight, recipe: WeightCompression) -> str:
    if recipe.group_size_fallback == "ignore":
        return "leaves these as they are"
    adjusted = _adjusted(weight, recipe)
    if adjusted is not None:
        where = "" if recipe.ratio == 1.0 else f", where they take {recipe.mode}"
        return f"gives these groups of {adjusted.group_size}{where}"
    backup, smallest = recipe.effective_backup_mode, recipe.advanced.min_adjusted_group_size
    given = "leaves these as they are" if backup == "none" else f"gives these {backup}, the backup precision"
    return f"{given}, as no power of two from {smallest} on divides them"


def _check_backup(
    weights: Sequence[Weight],
    assigned: Sequence[Assignment],
    backup: Precision,
    recipe: WeightCompression,
    place: str,
) -> list[str]:
    """Refuse a backup precision whose groups do not divide what is sure to get it."""
    undivided = [
        (w, a) for w, a in zip(weights, assigned, strict=True) if a.backup is backup and not _divides(w, backup)
    ]
    certain = [weight for weight, choice in undivided if choice.primary is backup or recipe.ratio == 0.0]
    if certain:
        raise _refused(backup.group_size, certain, weights, recipe, f"{place}.backup_mode")
    if not undivided:
        return []
    return [
        f"{_problem(backup.group_size, [weight for weight, _ in undivided])}: the run fails if mixed precision gives "
        f"one of these {backup.mode}, the backup precision; set {place}.backup_mode to int8_asym"
    ]


def _check_gptq(weights: Sequence[Weight], assigned: Sequence[Assignment], recipe: WeightCompression) -> list[str]:
    """Refuse what is sure to fail, as above. An ignored scope that is not looked up may name the layers."""
    if not recipe.gptq or not (recipe.ignored_scope.is_empty or any(weight.ignored for weight in weights)):
        return []
    taken = [w for w, a in zip(weights, assigned, strict=True) if w.kind == "matmul" and a.primary.mode == recipe.mode]
    columns = [weight for weight in taken if weight.in_axis != len(weight.shape) - 1]
    if not columns:
        return []
    refusal = gptq_refusal([weight.name for weight in columns], all_layers=len(columns) == len(taken))
    if sum(w.num_parameters for w in columns) > (1.0 - recipe.ratio) * sum(w.num_parameters for w in taken):
        raise refusal
    return [f"{refusal.message}: the run fails unless mixed precision happens to give these the backup precision"]


def _refused(
    group_size: int, undivided: Sequence[Weight], weights: Sequence[Weight], recipe: WeightCompression, where: str
) -> RecipeError:
    place, _, field = where.rpartition(".")
    fixed = recipe.mode in {"mxfp4", "mxfp8_e4m3", "nvfp4"} or recipe.backup_mode == "mxfp8_e4m3"
    channels = {w.in_channels for w in weights if not w.ignored and w.kind == "matmul"}
    working = [size for size in USUAL_GROUP_SIZES if all(c % size == 0 for c in channels)]
    if field == "backup_mode":
        hint = f"set {place}.backup_mode to int8_asym, which has no groups"
    elif fixed:
        hint = f"{place}.group_size_fallback ignore leaves these layers as they are"
    else:
        sizes = ", ".join(map(str, [*working, -1]))
        hint = f"{place}.group_size values that divide every layer: {sizes} (-1: per channel); or set "
        hint += f"{place}.group_size_fallback to adjust"
    return RecipeError(_problem(group_size, undivided), where=where, hint=hint)


def _problem(group_size: int, undivided: Sequence[Weight]) -> str:
    shown = ", ".join(f"{w.name} ({w.in_channels})" for w in undivided[:MAX_NAMES])
    rest = len(undivided) - MAX_NAMES
    layers = f"{len(undivided)} layer{'' if len(undivided) == 1 else 's'}"
    more = f" and {rest} more" if rest > 0 else ""
    return f"group size {group_size} does not divide the input channels of {layers}: {shown}{more}"
