"""The windows that a recipe calibrates a model with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcompress.loaders.source import Source, longest_context
from llmcompress.recipe import Recipe

if TYPE_CHECKING:
    from llmcompress.data import Windows


def recipe_windows(found: Source, recipe: Recipe, tokenizer: Any, *, offline: bool) -> Windows | None:
    """Take a recipe's windows, and those that accuracy control holds out; None: the recipe needs no data.

    Raises: as ``llmcompress.data.calibration_windows``.
    """
    if recipe.calibration is None:
        return None
    from llmcompress.data import calibration_windows

    control = recipe.activations.accuracy_control if recipe.activations else None
    return calibration_windows(
        recipe.calibration,
        tokenizer,
        num_held_out=control.num_samples if control else 0,
        offline=offline,
        max_seq_len=longest_context(found),
    )
