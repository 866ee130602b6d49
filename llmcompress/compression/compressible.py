"""Whether a source can be compressed by a recipe: every refusal of a run that needs no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.compression.contract import check_executed
from llmcompress.compression.nncf.statistics_pass import check_statistics_precision
from llmcompress.errors import ModelError
from llmcompress.graph.model import is_compressed, read_ir
from llmcompress.loaders.convertible import require_convertible
from llmcompress.loaders.source import Source
from llmcompress.report.file_names import MODEL_XML
from llmcompress.spec import Recipe

if TYPE_CHECKING:
    import openvino as ov


def require_compressible(source: Source, recipe: Recipe, *, here: bool = True) -> None:
    """Refuse what compressing ``source`` by ``recipe`` would refuse later. A run and its prediction both begin here.

    Args:
        source: As resolved; its weights need not be fetched.
        recipe: What to do.
        here: It is to be done on this machine.

    Raises:
        ModelError: No causal language model, none that the exporter converts, compressed already, or damaged.
        SecurityError: It would need pickle files or foreign code.
        HubError: A small file could not be had.
        RecipeError: This machine does not execute the recipe.
    """
    architecture = require_convertible(source)
    if architecture is not None and architecture.quantization == "keep" and recipe.method != "none":
        raise ModelError(
            f"the checkpoint is already quantized and recipe {recipe.name} would quantize it again",
            where=source.name,
            hint="convert it as it is with `recipe=none`, or give the original checkpoint",
        )
    if architecture is None and (source.path / MODEL_XML).is_file():
        refuse_compressed(read_ir(source.path), source, recipe)
    if here:
        require_executable(recipe)


def require_executable(recipe: Recipe) -> None:
    """Refuse a recipe that this machine does not execute; raises as ``check_executed``."""
    check_executed(recipe)
    check_statistics_precision(recipe)


def refuse_compressed(model: ov.Model, source: Source, recipe: Recipe) -> None:
    """Refuse to compress a graph twice.

    Raises:
        ModelError: It is compressed already.
    """
    if recipe.method != "none" and is_compressed(model):
        raise ModelError(
            "the model is already compressed; compressing it again would add to its error unseen",
            where=source.name,
            hint="give the original checkpoint",
        )
