"""A directory from weights that are finished already: a recipe's layout, and for GPTQ the codes of an earlier walk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.artifact import Staging
from llmcompress.compression.nncf.weights import OWN_SETTINGS, record_methods
from llmcompress.compression.output import write
from llmcompress.compression.preparation import CompressOptions
from llmcompress.compression.run import compress_in_memory
from llmcompress.graph.integer_weights import replace_integer_weights
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.report.compression import CompressionReport
from llmcompress.report.record import CalibrationRecord, Stages
from llmcompress.spec import Recipe
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    from llmcompress.graph.integer_weights import IntegerWeight


class FinishedWeights(NamedTuple):
    """Weights that GPTQ has made."""

    weights: Mapping[str, IntegerWeight]
    """By their constants' names; each is read once."""
    calibration: CalibrationRecord
    """The windows that they were made by."""


def assemble(
    loaded: LoadedModel,
    recipe: Recipe,
    finished: FinishedWeights,
    stage: Staging,
    options: CompressOptions,
    progress: Reporter,
) -> CompressionReport:
    """Write what ``compress`` writes by a recipe with GPTQ and ``statistics: original``, without its search for codes.

    Args:
        loaded: Uncompressed; its graph is copied.
        recipe: Its weights are rounded as it says, without GPTQ, and those that are finished put in their place.
        finished: Every weight that the recipe gives to GPTQ.
        stage: Of the output.
        options: How the rest is done.
        progress: Told of every step.

    Raises: as ``compress``.
    """
    assert recipe.weights is not None
    plain = recipe.weights.model_copy(
        update={
            "gptq": False,
            **OWN_SETTINGS,
            "rules": tuple(rule.model_copy(update={"method": None}) for rule in recipe.weights.rules),
        }
    )
    rounded = recipe.model_copy(update={"weights": plain, "calibration": None})
    compressed = compress_in_memory(loaded, rounded, options, Stages(), progress)
    replace_integer_weights(compressed.model, finished.weights)
    record_methods(compressed.model, recipe.weights)
    return write(replace(compressed, recipe=recipe, calibration=finished.calibration), stage, progress=progress)
