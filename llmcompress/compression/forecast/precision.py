"""Mode and group size of each weight, by the rules of NNCF's weight compression, and the bytes that it then takes.

The rules are those of ``nncf/quantization/algorithms/weight_compression/algorithm.py`` (3.4): matrix multiplications
get the primary precision; embeddings, convolutions and the output head get the backup precision unless ``all_layers``.
The bytes are those that NNCF's OpenVINO backend stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.compression.forecast.records import Weight
from llmcompress.compression.gptq_layers import gptq_refusal
from llmcompress.errors import RecipeError
from llmcompress.spec import AdvancedCompression, WeightCompression

ELEMENT_BYTES = {"bf16": 2, "f16": 2, "f32": 4}

CODEBOOK_ELEMENT_BYTES = {"f8e4m3": 1, "f8e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4}
# Every grouped weight ends in a Reshape; its shape constant holds 8 bytes per axis, and equal ones are stored once.
RESHAPE_AXIS_BYTES = 8
USUAL_GROUP_SIZES = (256, 128, 64, 32, 16, 8)
MAX_NAMES = 4


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


def assign(weights: Sequence[Weight], recipe: WeightCompression) -> tuple[list[Assignment], list[str]]:
    """Return the precisions of each weight, in order, and remarks on what could not be settled.

    Raises:
        RecipeError: the group size does not divide the input channels of layers that will get it, or GPTQ does not
            take these.
    """
    if recipe.mode.startswith("int8"):
        same = Precision(recipe.mode)
        return [LEFT if w.ignored else Assignment(same, same) for w in weights], []
    backup = _backup(recipe)
    assigned: list[Assignment] = []
    undivided: list[tuple[Weight, int]] = []
    undivided_backup: list[tuple[Weight, int]] = []
    for weight in weights:
        if weight.ignored:
            assigned.append(LEFT)
            continue
        primary = _primary(weight, recipe) or backup
        if primary is not backup and not _divides(weight, primary):
            if recipe.group_size_fallback == "ignore":
                assigned.append(LEFT)
                continue
            if recipe.group_size_fallback == "adjust":
                primary = _adjusted(weight, recipe) or backup
            else:
                undivided.append((weight, primary.group_size))
        choice = Assignment(primary, primary if recipe.ratio == 1.0 else backup)
        if backup in choice and not _divides(weight, backup):
            undivided_backup.append((weight, backup.group_size))
        assigned.append(choice)
    notes = _check_groups(weights, assigned, undivided, recipe)
    certain = [pair for pair in undivided_backup if pair[0].kind != "matmul" or pair[0].is_head]
    if certain:
        raise _refused(certain, weights, "backup_mode", recipe)
    return assigned, notes + _check_gptq(weights, assigned, recipe)


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
    undivided: Sequence[tuple[Weight, int]],
    recipe: WeightCompression,
) -> list[str]:
    """Refuse what is sure to fail; under mixed precision undivided layers may all get the backup precision."""
    if not undivided:
        return []
    deciding = sum(w.num_parameters for w, a in zip(weights, assigned, strict=True) if a.primary.mode == recipe.mode)
    if sum(w.num_parameters for w, _ in undivided) > (1.0 - recipe.ratio) * deciding:
        raise _refused(undivided, weights, "group_size", recipe)
    return [
        f"group size {undivided[0][1]} does not divide the input channels of {_names(undivided)}: the run fails unless "
        "mixed precision happens to give these the backup precision; set weights.group_size_fallback to adjust"
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
    undivided: Sequence[tuple[Weight, int]], weights: Sequence[Weight], field: str, recipe: WeightCompression
) -> RecipeError:
    group_size = undivided[0][1]
    fixed = recipe.mode in {"mxfp4", "mxfp8_e4m3", "nvfp4"} or recipe.backup_mode == "mxfp8_e4m3"
    channels = {w.in_channels for w in weights if not w.ignored and w.kind == "matmul"}
    working = [size for size in USUAL_GROUP_SIZES if all(c % size == 0 for c in channels)]
    if field == "backup_mode":
        hint = "set weights.backup_mode to int8_asym, which has no groups"
    elif fixed:
        hint = "weights.group_size_fallback ignore leaves these layers as they are"
    else:
        sizes = ", ".join(map(str, [*working, -1]))
        hint = f"weights.group_size values that divide every layer: {sizes} (-1: per channel); or set "
        hint += "weights.group_size_fallback to adjust"
    return RecipeError(
        f"group size {group_size} does not divide the input channels of {_names(undivided)}",
        where=f"weights.{field}",
        hint=hint,
    )


def _names(undivided: Sequence[tuple[Weight, int]]) -> str:
    shown = ", ".join(f"{w.name} ({w.in_channels})" for w, _ in undivided[:MAX_NAMES])
    rest = len(undivided) - MAX_NAMES
    return f"{len(undivided)} layers: {shown}{f' and {rest} more' if rest > 0 else ''}"
