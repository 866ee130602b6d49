"""A vision-language model's parts: what of a recipe is carried out on them, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llmcompress.compression.layers import layer_table
from llmcompress.errors import ModelError, RecipeError
from llmcompress.loaders.quantized.declaration import check_quantization
from llmcompress.loaders.source import Source
from llmcompress.report.compression import Engine, LayerRecord
from llmcompress.spec import Recipe
from llmcompress.system.progress import Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.system.file_memory import FileMemory


def require_parts(source: Source, recipe: Recipe) -> None:
    """Refuse of a recipe what is not done with the parts of a model, or with a model of one part.

    Raises:
        ModelError: A vision-language model is an IR or quantized already, or an adapter is to be merged into it.
        RecipeError: A part of the recipe has no effect, or is not carried out on such a model.
    """
    where = f"recipe {recipe.name}"
    if not source.sees:
        if recipe.calibration is not None and recipe.calibration.image_field is not None:
            raise RecipeError(
                f"{source.name} is a text model, which sees no pictures",
                where=f"{where}: calibration.image_field",
                hint="remove it, or take a text",
            )
        if recipe.parts is not None:
            raise RecipeError(
                f"has no effect: {source.name} is a text model, which has one part",
                where=f"{where}: parts",
                hint="remove it",
            )
        return
    if source.layout == "ir":
        raise ModelError(
            "an OpenVINO vision-language model is not compressed again",
            where=source.name,
            hint="give the original checkpoint",
        )
    if source.adapter is not None or check_quantization(source.config)[0] != "none":
        problem = "an adapter is not merged into" if source.adapter is not None else "codes are not taken over from"
        raise ModelError(
            f"{problem} a vision-language model",
            where=source.name,
            hint="give the original checkpoint, in floating point",
        )
    for part, problem, hint in _not_of_parts(source, recipe):
        raise RecipeError(f"{source.name} is a vision-language model, {problem}", where=f"{where}: {part}", hint=hint)


def _not_of_parts(source: Source, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """What of a recipe is for text models, why, and what to do."""
    activations, training = recipe.activations, recipe.training
    if recipe.pruning is not None:
        yield "pruning", "of which nothing is pruned", "take a recipe without it"
    shown = recipe.calibration is not None and recipe.calibration.image_field is not None
    if shown and activations is not None and activations.accuracy_control is not None:
        hint = "take a text for calibration, or remove it and look at the damage with llmcompress eval"
        yield "activations.accuracy_control", "and accuracy control goes by text, which the calibration is not", hint
    if training is not None and source.runs_code:
        yield (
            "training",
            "whose class is code of its repository, of which nothing is learned",
            "take a recipe without it",
        )
    if training is not None and training.method == "fq_lora":
        yield "training.method", "and NNCF puts adapters on all of its parts", "take distillation or blocks"


def compress_parts(
    parts: Mapping[str, ov.Model],
    recipe: Recipe,
    *,
    engine: Engine,
    file_memory: FileMemory | None = None,
    progress: Reporter = silent,
) -> dict[str, tuple[LayerRecord, ...]]:
    """Compress the graphs of parts, in place.

    Args:
        parts: By the exporter's names; without the language model.
        recipe: What says their formats.
        engine: Whose arithmetic makes the codes.
        file_memory: Where codes wait for the model to be saved.
        progress: Told of every step.

    Returns:
        What their weights became.

    Raises:
        ModelError: NNCF cannot apply a format to a graph.
    """
    from llmcompress.compression.nncf.weights import compress_weights

    records = {}
    for name, graph in parts.items():
        weights, by_kernels = recipe.weights_of(name), frozenset[str]()
        if weights is not None:
            done = compress_weights(graph, weights, engine=engine, file_memory=file_memory, progress=progress)
            by_kernels = done.by_kernels
        records[name] = layer_table(graph, ours=by_kernels)
    return records
