"""A loaded model's graph by a recipe: its weights compressed in place, what its layers became, its runtime's hints."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.compression.compressible import check_target, refuse_compressed
from llmcompress.compression.kept import kept_layers
from llmcompress.compression.layers import CODEBOOKS, activation_record, constants_taken_by, layer_table
from llmcompress.compression.nncf.statistics import statistics
from llmcompress.data.calibration import CalibrationWindows
from llmcompress.graph.integer_weights import Rescaling
from llmcompress.graph.model import mark_quantized_source, parameter_name, set_runtime_options, unpin_cache
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.compression import AccuracyRecord, ActivationRecord, Engine, LayerRecord, runtime_options
from llmcompress.spec import Recipe, WeightCompression
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    from llmcompress.compression.late_codes import LateCodes
    from llmcompress.compression.nncf.runs import Samples
    from llmcompress.compression.picture_samples import PictureSamples


class Applied(NamedTuple):
    """What became of a model by a recipe."""

    loaded: LoadedModel
    accuracy: AccuracyRecord | None = None
    """What accuracy control did."""
    by_kernels: Set[str] = frozenset()
    """Names of the weights that our kernels have made."""
    rescaled: Mapping[str, Rescaling] = {}
    """What AWQ did to weights, by their names."""
    late: LateCodes | None = None
    """Weights that are compressed when the model is saved."""


def apply_recipe(
    loaded: LoadedModel,
    recipe: Recipe,
    windows: CalibrationWindows | PictureSamples | None,
    engine: Engine,
    file_memory: FileMemory | None,
    progress: Reporter,
) -> Applied:
    """Compress a loaded model's graph, weights in place.

    Raises:
        ModelError: The graph is compressed already, or NNCF cannot apply the recipe to it.
        DataError, GateError: As ``quantize_activations``.
    """
    if recipe.method == "keep":
        if loaded.kept is not None:
            unpin_cache(loaded.model)
            mark_quantized_source(loaded.model, loaded.kept.method)
        return Applied(loaded)
    loaded = loaded.dequantized()
    if recipe.method == "none":
        return Applied(loaded)
    refuse_compressed(loaded.model, loaded.source, recipe)
    from llmcompress.compression.nncf.activations import quantize_activations
    from llmcompress.compression.nncf.weights import compress_weights

    samples = None if windows is None else _samples(loaded, windows, progress)
    by_kernels: set[str] = set()
    rescaled: dict[str, Rescaling] = {}
    for weights in recipe.weight_passes:
        with contextlib.ExitStack() as stack:
            path = None
            # Of a graph that an earlier pass or a pruning changed the statistics are others.
            is_first = weights is recipe.weights and recipe.pruning is None
            if windows is not None and is_first and weights.collects_statistics:
                collected = statistics(loaded.provenance, windows.record, weights.statistics_precision, loaded.part)
                path = stack.enter_context(collected)
            if isinstance(windows, CalibrationWindows):
                stack.enter_context(_embeddings_by_gptq(loaded, weights, windows, progress))
            done = compress_weights(
                loaded.model,
                weights,
                samples if weights.uses_data else None,
                statistics_path=path,
                engine=engine,
                file_memory=file_memory,
                progress=progress,
            )
        by_kernels |= done.by_kernels
        rescaled |= done.rescaled
    if recipe.activations is None or samples is None:
        return Applied(loaded, by_kernels=by_kernels, rescaled=rescaled)
    held_out = windows.held_out if isinstance(windows, CalibrationWindows) else None
    model, accuracy = quantize_activations(loaded.model, recipe.activations, samples, held_out, progress=progress)
    return Applied(replace(loaded, model=model), accuracy, by_kernels)


def apply_late(loaded: LoadedModel, recipe: Recipe, progress: Reporter) -> Applied:
    """As ``apply_recipe``, of a recipe that can be late, and without the codes that our kernels make.

    Raises:
        ModelError: As ``apply_recipe``.
    """
    from llmcompress.compression.late_codes import LateCodes, codes_left_for_later
    from llmcompress.compression.nncf.weights import compress_weights

    loaded = loaded.dequantized()
    refuse_compressed(loaded.model, loaded.source, recipe)
    original = loaded.clone()
    by_kernels: set[str] = set()
    with codes_left_for_later(loaded.model) as found:
        for weights in recipe.weight_passes:
            by_kernels |= compress_weights(loaded.model, weights, progress=progress).by_kernels
    return Applied(loaded, by_kernels=frozenset(by_kernels), late=LateCodes(found, original))


def _samples(loaded: LoadedModel, windows: CalibrationWindows | PictureSamples, progress: Reporter) -> Samples:
    """What the graph of a loaded model is fed of windows, or of pictures with texts."""
    from llmcompress.compression.nncf.runs import Samples

    if isinstance(windows, CalibrationWindows):
        return Samples(list(windows.token_ids), loaded.text_feed())
    return Samples(windows.inputs(loaded, progress), lambda inputs: inputs)


def _embeddings_by_gptq(
    loaded: LoadedModel, weights: WeightCompression, windows: CalibrationWindows, progress: Reporter
) -> contextlib.AbstractContextManager[None]:
    """Have GPTQ take the embeddings that a rule gives to it, by gradients of the model in torch."""
    looked_up = map(parameter_name, constants_taken_by(loaded.model, "Gather"))
    names = sorted(name for name in looked_up if weights.gives_gptq(name))
    if not names:
        return contextlib.nullcontext()
    from llmcompress.compression.fisher import embedding_moments
    from llmcompress.compression.nncf.embeddings import embeddings_by_gptq

    model = load_torch_model(loaded.source)
    return embeddings_by_gptq(embedding_moments(model, names, windows.token_ids, windows.record.seed, progress))


def inspect_layers(applied: Applied, recipe: Recipe) -> tuple[tuple[LayerRecord, ...], ActivationRecord | None]:
    """Read from the graph what its layers became, put the runtime hints into it, and check what the target takes."""
    model = applied.loaded.model
    codebook = next((weights.mode for weights in recipe.weight_passes if weights.mode in CODEBOOKS), None)
    layers = layer_table(model, codebook, applied.by_kernels)
    set_runtime_options(model, runtime_options(recipe, layers))
    check_target(recipe, layers)
    # Of what is dequantized nothing is kept.
    layers = kept_layers(layers, applied.loaded.kept)
    return layers, activation_record(model, recipe.activations, applied.accuracy) if recipe.activations else None
