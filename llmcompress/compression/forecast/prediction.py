"""Predict size, memory and disk of a run, and compare them with what this machine has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmcompress.compression.compressible import can_be_late
from llmcompress.compression.forecast.inventory import checkpoint_inventory
from llmcompress.compression.forecast.kept import kept_layer, with_quantized
from llmcompress.compression.forecast.peak_memory import (
    BY_KERNELS,
    KernelCodes,
    PeakMemory,
    peak_memory,
    training_disk_bytes,
)
from llmcompress.compression.forecast.precision import (
    LEFT,
    Assignment,
    Precision,
    assign,
    gives_gptq_embeddings,
    primary_share,
)
from llmcompress.compression.forecast.records import BY_SENSITIVITY, Forecast, Inventory, PlannedLayer, Weight
from llmcompress.compression.forecast.stored_bytes import (
    RESHAPE_AXIS_BYTES,
    compressed_bytes,
    layout,
    lora_adapter_bytes,
    uncompressed_bytes,
)
from llmcompress.errors import RecipeError, ResourceError
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.source import Source
from llmcompress.report.compression import Engine
from llmcompress.report.file_names import MODEL_XML
from llmcompress.spec import Recipe, WeightCompression
from llmcompress.spec.modes import Mode
from llmcompress.system.cache import cache_dir
from llmcompress.system.file_memory import SEGMENT_BYTES
from llmcompress.system.files import free_bytes
from llmcompress.system.memory import memory, own_bytes

# Scalars, shapes and axes that every converted decoder holds, stored once each.
GRAPH_BYTES = 400
# The IR's .xml, the tokenizer in both forms and the configuration, next to the .bin.
SIDE_FILES_BYTES = 30_000_000
# Of codes, and of what one segment of a model left and the next one leaves; each grows by whole segments.
NUM_FILES = 3


def forecast(
    source: Source,
    recipe: Recipe,
    output_dir: Path | None = None,
    *,
    engine: Engine = "llmcompress",
    held: bool = False,
) -> Forecast:
    """Say what compressing ``source`` by ``recipe`` will give and take. Reads no weight.

    A checkpoint is judged by its ``config.json``: the model is built on the meta device. An IR is judged by its graph.

    Args:
        source: As resolved; its weights need not be fetched.
        recipe: What to do.
        output_dir: Where the output would go; its file system is asked for free space (None: the working directory's).
        engine: Whose arithmetic will make the codes of weights; NNCF's needs more memory.
        held: The model stays in memory, and is not saved.

    Raises:
        ModelError: the configuration describes no model that transformers can build, or the IR is damaged.
        RecipeError: the group size does not divide the input channels of layers that will get it, or GPTQ does not take
            these, or goes by gradients that a source does not have.
    """
    inventory = _inventory(source, recipe)
    _require_gradients(source, recipe, inventory)
    passes = [*recipe.weight_passes, *_by_activations(recipe)]
    whole = inventory if recipe.pruning else None
    if recipe.pruning:
        inventory = checkpoint_inventory(source, recipe.pruning)
    notes = [*inventory.notes, *_notes(source, recipe, passes, inventory)]
    layers, size_bytes, warned, remarks = _all_layers(inventory, recipe, passes)
    codes, by_nncf = _shares(inventory.all_weights, layers, engine, are_late=not held and can_be_late(recipe, engine))
    peak = peak_memory(inventory, recipe, size_bytes, codes, by_nncf, whole)
    # The libraries, which the peak counts, have been imported in part.
    available = memory().available + own_bytes()
    codes_on_disk = available < peak.in_memory and peak.required < peak.in_memory
    disk_bytes = size_bytes + SIDE_FILES_BYTES + (inventory.checkpoint_bytes if whole else 0)
    disk_bytes += peak.waiting + NUM_FILES * SEGMENT_BYTES if codes_on_disk else 0
    training_bytes = training_disk_bytes(inventory, recipe)
    free, free_cache_bytes = free_bytes(output_dir or Path()), free_bytes(cache_dir())
    notes += _notes_of_memory(peak, available, codes_on_disk=codes_on_disk)
    return Forecast(
        num_parameters=inventory.num_parameters,
        layers=layers,
        size_bytes=size_bytes,
        bits_per_weight=8 * size_bytes / max(inventory.num_parameters, 1),
        mapped_share=_mapped_share(inventory),
        peak_rss_bytes=peak.total,
        min_memory_bytes=peak.required,
        codes_on_disk=codes_on_disk,
        disk_bytes=disk_bytes,
        available_memory_bytes=available,
        free_disk_bytes=free,
        training_bytes=training_bytes,
        free_cache_bytes=free_cache_bytes,
        fits=peak.required <= available and disk_bytes <= free and training_bytes <= free_cache_bytes,
        notes=tuple(notes + warned + remarks),
        warnings=tuple(warned),
    )


def _shares(
    weights: Sequence[Weight], layers: Sequence[PlannedLayer], engine: Engine, *, are_late: bool
) -> tuple[KernelCodes, list[Weight]]:
    """What our kernels make, and the weights that they leave to NNCF."""
    ours = [engine == "llmcompress" and layer.mode in BY_KERNELS and layer.stored_as is None for layer in layers]
    num_bytes = sum(layer.size_bytes for layer, is_ours in zip(layers, ours, strict=True) if is_ours)
    by_nncf = [weight for weight, is_ours in zip(weights, ours, strict=True) if not is_ours]
    return KernelCodes(num_bytes, are_late), by_nncf


def _notes_of_memory(peak: PeakMemory, available: int, *, codes_on_disk: bool) -> Iterator[str]:
    if codes_on_disk:
        yield "memory is short: codes that are done, and weights that AWQ has scaled, wait in a file next to the output"
    if peak.required <= available < peak.total:
        yield "memory is short of the whole peak: pages of the checkpoint will be read again, which is slower"


def _inventory(source: Source, recipe: Recipe) -> Inventory:
    if source.layout == "ir" and (source.path / MODEL_XML).is_file():
        from llmcompress.compression.forecast.graph_inventory import graph_inventory

        return graph_inventory(source, recipe)
    return with_quantized(source, checkpoint_inventory(source), keep=recipe.method == "keep")


def _require_gradients(source: Source, recipe: Recipe, inventory: Inventory) -> None:
    """Refuse GPTQ of embeddings where there is no model in torch."""
    if gives_gptq_embeddings(inventory.weights, recipe) and (source.layout == "ir" or is_repacked(source.config)):
        raise RecipeError(
            "GPTQ of an embedding goes by gradients of the original in torch, and the source is none there",
            where=f"recipe {recipe.name}: weights.rules",
            hint="write method: data_free into the rule of the embedding, or give the original checkpoint",
        )


def require_fits(predicted: Forecast) -> None:
    """Refuse a run that this machine cannot finish.

    Raises:
        ResourceError: memory or disk is short; names what is needed, what is here, and what to try.
    """
    if predicted.min_memory_bytes > predicted.available_memory_bytes:
        raise ResourceError(
            f"it needs at least {_gigabytes(predicted.min_memory_bytes)} of memory, "
            f"{_gigabytes(predicted.available_memory_bytes)} are available",
            where="memory",
            hint="close other programs, take a data-free recipe, or a machine with more memory",
        )
    if predicted.disk_bytes > predicted.free_disk_bytes:
        raise ResourceError(
            f"the output needs {_gigabytes(predicted.disk_bytes)}, {_gigabytes(predicted.free_disk_bytes)} are free",
            where="disk",
            hint="free some space, give -o on another file system, or take a recipe with fewer bits",
        )
    if predicted.training_bytes > predicted.free_cache_bytes:
        raise ResourceError(
            f"training keeps {_gigabytes(predicted.training_bytes)} in the cache while it runs, "
            f"{_gigabytes(predicted.free_cache_bytes)} are free there",
            where="disk",
            hint="set LLMCOMPRESS_CACHE to another disk, or take fewer training.num_samples",
        )


def warnings_of(inventory: Inventory, recipe: Recipe) -> list[str]:
    """What a run has to warn of; raises RecipeError as ``forecast``."""
    return _all_layers(inventory, recipe, recipe.weight_passes)[2]


def _by_activations(recipe: Recipe) -> list[WeightCompression]:
    """What quantizing activations does to the weights that are left: as compressing them per channel would."""
    if recipe.activations is None:
        return []
    # Both kinds of 8-bit floats take the same bytes.
    mode: Mode = "int8_sym" if recipe.activations.mode == "int8" else "fp8_e4m3"
    return [WeightCompression(mode=mode, group_size=-1, ignored_scope=recipe.activations.ignored_scope)]


def _all_layers(
    inventory: Inventory, recipe: Recipe, passes: Sequence[WeightCompression]
) -> tuple[tuple[PlannedLayer, ...], int, list[str], list[str]]:
    """As ``_layers``, of all parts of a model."""
    layers, size_bytes, warned, remarks = _layers(inventory, passes)
    for part, weights in inventory.parts.items():
        chosen = recipe.weights_of(part)
        alone = inventory._replace(weights=weights, leftover_bytes=0)
        others, added_bytes, more, _ = _layers(alone, [chosen] if chosen else [])
        layers, size_bytes, warned = (*layers, *others), size_bytes + added_bytes, [*warned, *more]
    return layers, size_bytes, warned, remarks


def _layers(
    inventory: Inventory, passes: Sequence[WeightCompression]
) -> tuple[tuple[PlannedLayer, ...], int, list[str], list[str]]:
    """What each weight becomes, the size of all constants, what a run has to warn of, and remarks."""
    pending = list(enumerate(inventory.weights))
    stored = {weight.name: weight for weight in inventory.stored} if inventory.keeps_codes else {}
    layers = {
        index: kept_layer(stored[weight.name])
        if weight.name in stored
        else _planned(weight, LEFT, uncompressed_bytes(weight))
        for index, weight in pending
    }
    warned: list[str] = []
    remarks: list[str] = []
    reshapes = 0
    for number, recipe in enumerate(passes):
        weights = [weight for _, weight in pending]
        assigned, found = assign(weights, recipe, f"further_weights.{number - 1}" if number else "weights")
        warned += found
        undecided = [w for w, a in zip(weights, assigned, strict=True) if a.primary != a.backup]
        share = primary_share(undecided, recipe.ratio)
        for (index, weight), choice in zip(pending, assigned, strict=True):
            size = share * _bytes(weight, choice.primary, recipe) + (1 - share) * _bytes(weight, choice.backup, recipe)
            layers[index] = _planned(weight, choice, round(size), share)
        if undecided and 0 < share < 1:
            remarks.append(
                f"ratio {recipe.ratio}: which layers get the primary precision shows only with the weights; the size "
                f"holds the expected share of {share:.0%}"
            )
        shapes = {w.shape for w, a in zip(weights, assigned, strict=True) if a.primary.group_size != -1}
        reshapes += sum(len(shape) for shape in shapes) * RESHAPE_AXIS_BYTES
        # What one pass leaves alone, the next one takes; its own ignored scope is looked up for the first pass only.
        pending = [
            (index, weight._replace(ignored=False))
            for (index, weight), choice in zip(pending, assigned, strict=True)
            if choice.primary.mode is None and choice.backup.mode is None
        ]
    planned = tuple(layers[index] for index in range(len(layers)))
    size_bytes = sum(layer.size_bytes for layer in planned) + inventory.leftover_bytes + reshapes + GRAPH_BYTES
    return planned, size_bytes, warned, remarks


def _bytes(weight: Weight, precision: Precision, recipe: WeightCompression) -> int:
    if precision.mode is None:
        return uncompressed_bytes(weight)
    stored = layout(precision.mode, recipe.advanced)
    size = compressed_bytes(weight, stored, precision.group_size)
    if recipe.lora_correction and stored.weight_bits == 4 and weight.kind == "matmul":
        lora = recipe.advanced.lora_correction_params
        size += lora_adapter_bytes(weight, lora.adapter_rank, int8=lora.use_int8_adapters)
    return size


def _planned(weight: Weight, choice: Assignment, size: int, share: float = 1.0) -> PlannedLayer:
    precision = choice.primary if share > 0 else choice.backup
    is_open = choice.primary != choice.backup and 0 < share < 1
    return PlannedLayer(
        name=weight.name,
        shape=weight.shape,
        num_parameters=weight.num_parameters,
        mode=BY_SENSITIVITY if is_open else precision.mode or weight.dtype,
        group_size=None if is_open or precision.mode is None else precision.group_size,
        size_bytes=size,
    )


def _notes(source: Source, recipe: Recipe, passes: Sequence[WeightCompression], inventory: Inventory) -> list[str]:
    notes = []
    if source.text_only:
        notes.append(f"the language model alone: {source.config.get('model_type')}, a causal language model")
    mapped = _mapped_share(inventory)
    if mapped < 0.9 and not inventory.stored:
        notes.append(
            f"{mapped:.0%} of the weights stay mapped from the files; the rest is copied into memory, because this "
            "model class merges, casts or transposes them"
        )
    from_config = source.layout != "ir" or not (source.path / MODEL_XML).is_file()
    scoped = [not weights.ignored_scope.is_empty for weights in passes]
    if any(scoped if from_config else scoped[1:]):
        notes.append(
            "an ignored_scope names nodes of the converted graph, which "
            + ("a configuration does not show" if from_config else "are looked up for the first pass only")
            + ": the prediction leaves it out"
        )
    if from_config and source.layout == "ir":
        notes.append("the OpenVINO model is not fetched yet: predicted from its config.json as for a checkpoint")
    if from_config and source.config.get("quantization_config") and not inventory.stored:
        notes.append("the checkpoint is quantized already: the prediction is that of its unquantized model")
    if recipe.pruning is not None:
        size = _gigabytes(inventory.checkpoint_bytes)
        notes.append(f"the pruned checkpoint of {size} lies next to the output while the run lasts")
        for name in ("max_kl", "speedup"):
            if getattr(recipe.pruning, name) is not None:
                notes.append(f"how many layers pruning.{name} drops is not predicted: this is the size without a drop")
    if recipe.training is not None:
        kept = _gigabytes(training_disk_bytes(inventory, recipe))
        notes.append(f"training keeps about {kept} in the cache while it runs")
    if recipe.activations is not None:
        notes.append("the ranges and scales of activations, which add little to the size, are not predicted")
        if recipe.activations.accuracy_control is not None:
            notes.append("what accuracy control gives back to floating point is not predicted: it adds to the size")
    return notes


def _mapped_share(inventory: Inventory) -> float:
    graph_bytes = sum(map(uncompressed_bytes, inventory.all_weights)) + inventory.leftover_bytes
    return inventory.mapped_bytes / max(graph_bytes, 1)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
