"""What of a recipe stock Optimum cannot carry."""

from __future__ import annotations

from llmcompress.errors import RecipeError
from llmcompress.spec import Gate, Recipe

_TO_OURS = "give the recipe itself to llmcompress.OVModelForCausalLM.from_pretrained, which carries it out"


def refuse_uncarried(recipe: Recipe) -> None:
    """Refuse what stock ``from_pretrained`` would leave undone.

    Raises:
        RecipeError: Names the field.
    """
    if recipe.method == "none":
        raise RecipeError(
            "method none is no quantization",
            where=f"recipe {recipe.name}: method",
            hint="leave quantization_config out, and write load_in_8bit=False",
        )
    instead = _TO_OURS if recipe.method == "weights" else "remove it"
    weights, activations = recipe.weights, recipe.activations
    carried = set() if weights is None else {"dynamic_quantization_group_size"}
    hints = recipe.runtime.model_dump(exclude_none=True).keys() - carried
    for field, is_asked, problem, hint in (
        ("further_weights", bool(recipe.further_weights), "compresses weights in one pass", _TO_OURS),
        (
            "weights.statistics_precision",
            weights is not None and weights.statistics_precision != "f32",
            "collects statistics in f32",
            "write f32, or " + _TO_OURS,
        ),
        (
            "activations.accuracy_control",
            activations is not None and activations.accuracy_control is not None,
            "has no accuracy control",
            "remove it",
        ),
        *((f"runtime.{name}", True, "does not write this hint into the model", instead) for name in hints),
        ("target", recipe.target == "npu", "does not check that the device takes every layer", instead),
        ("gate", recipe.gate != Gate(), "keeps no thresholds with the model", instead),
    ):
        if is_asked:
            problem = f"Optimum's from_pretrained {problem}"
            raise RecipeError(problem, where=f"recipe {recipe.name}: {field}", hint=hint)
