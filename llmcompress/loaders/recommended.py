"""Optimum's recommended settings for well-known models, as recipes.

Optimum looks them up by the folder's name as well, so that a directory called like a model gets that model's settings;
here only what the checkpoint says of itself counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmcompress.errors import RecipeError
from llmcompress.loaders.source import Source
from llmcompress.spec import RECOMMENDED, Recipe, override_recipe
from llmcompress.spec.dataset import Calibration
from llmcompress.spec.optimum import TEXTS, recipe_from_quantization_config

_log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_ANY_TEXT = Calibration(dataset="overridden.txt")


def recommended_recipe(source: Source, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return what Optimum recommends for a model; ``description`` says which entry that is and why, or that none is.

    Args:
        source: As resolved.
        name: One of ``RECOMMENDED``.
        overrides: ``"field.field=value"``, applied to the entry.

    Raises:
        RecipeError: the entry is for a multimodal pipeline, or says what a recipe cannot; names the field.
    """
    from optimum.intel.openvino import configuration

    bits = RECOMMENDED[name]
    table = configuration._DEFAULT_4BIT_WQ_CONFIGS if bits == 4 else configuration._DEFAULT_8BIT_WQ_CONFIGS
    recorded = _recorded_ids(source)
    found = next((model_id for model_id in recorded if model_id in table), None)
    if found is None:
        ids = " or ".join(recorded) or "this model, whose configuration names no Hub id"
        general = configuration._DEFAULT_4BIT_WQ_CONFIG if bits == 4 else {"bits": 8, "sym": False}
        return _recipe(
            general, name, f"Optimum has no {bits}-bit entry for {ids}: its general {bits}-bit settings", overrides
        )
    why = f"Optimum's {bits}-bit entry for {found}, which is {recorded[found]}"
    return _recipe(table[found], name, why, overrides)


def _recorded_ids(source: Source) -> dict[str, str]:
    """Hub ids by which the checkpoint may be known, and who says so."""
    ids = {} if source.id is None else {source.id: "the Hub id"}
    recorded = source.config.get("_name_or_path")
    if isinstance(recorded, str) and _HUB_ID.fullmatch(recorded):
        ids.setdefault(recorded, "the name in its config.json")
    return ids


def _recipe(entry: Mapping[str, Any], name: str, why: str, overrides: Sequence[str]) -> Recipe:
    if "quantization_configs" in entry:
        raise RecipeError(
            f"{why}, is for a multimodal pipeline of the models {', '.join(entry['quantization_configs'])}",
            where=name,
            hint="take a recipe for causal language models: llmcompress recipes",
        )
    # A text that the command line names may stand in for one that no recipe can name.
    own_text = any(override.startswith("calibration.dataset=") for override in overrides)
    stands_in = own_text and entry.get("dataset", "wikitext2") not in TEXTS
    # Bits alone stand for a look into these tables; here they are what the table says.
    settings = {"sym": False, **entry} if "bits" in entry else entry
    recipe = recipe_from_quantization_config(settings, name=name, calibration=_ANY_TEXT if stands_in else None)
    recipe = recipe.model_copy(update={"description": why[:300]})
    _log.info("%s: %s", name, why)
    return override_recipe(recipe, overrides)
