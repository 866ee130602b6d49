"""What a target device accepts, checked in the layers of the produced graph."""

from __future__ import annotations

from llmcompress.errors import RecipeError
from llmcompress.recipe import Recipe
from llmcompress.recipe.recipe import NPU_GROUP_SIZES
from llmcompress.report import LayerRecord

NPU_MODES = ("int4_sym", "int8_sym", "int8_asym", "f16", "bf16", "f32")


def check_target(recipe: Recipe, layers: tuple[LayerRecord, ...]) -> None:
    """Refuse a graph that the recipe's target does not run.

    The NPU plugin takes 4-bit weights that are symmetric, in groups of 128 or per channel; other low-bit formats end
    in its compiler.

    Raises:
        RecipeError: Names the layers that break the contract.
    """
    if recipe.target != "npu":
        return
    broken = [
        f"{layer.name} ({layer.mode}, group size {layer.group_size})"
        for layer in layers
        if layer.mode not in NPU_MODES or (layer.mode == "int4_sym" and layer.group_size not in NPU_GROUP_SIZES)
    ]
    if broken:
        raise RecipeError(
            f"target npu takes int4_sym in groups of 128 or per channel, and int8; "
            f"{len(broken)} layers are otherwise: {', '.join(broken[:5])}",
            where=f"recipe {recipe.name}",
            hint="set weights.mode=int4_sym and weights.group_size=-1 for this model",
        )
