"""A source and a recipe in, a compressed ``ov.Model`` in memory out, with all that its directory will need."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.artifact import write_errors
from llmcompress.compression.application import Applied, apply_late, apply_recipe, inspect_layers
from llmcompress.compression.compressible import can_be_late, require_engine
from llmcompress.compression.kept import kept_record
from llmcompress.compression.parts import compress_parts
from llmcompress.compression.preparation import CompressOptions, Ready, make_ready, ready_of_loaded
from llmcompress.compression.pruned import PrunedSource, PruningInputs, prune_for_speed, prune_source
from llmcompress.data.calibration import CalibrationWindows
from llmcompress.graph.integer_weights import Rescaling
from llmcompress.loaders.checking import CheckedWeights, weights_checked
from llmcompress.loaders.loaded_model import LoadedModel, checkpoint_provenance, load_source
from llmcompress.loaders.source import Source
from llmcompress.report.compression import ActivationRecord, KeptRecord, LayerRecord
from llmcompress.report.pruning import PruningRecord
from llmcompress.report.record import CalibrationRecord, DepthSpeed, Provenance, Stages
from llmcompress.spec import Recipe
from llmcompress.spec.pruning import with_num_layers
from llmcompress.spec.training import with_num_steps
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.compression.late_codes import LateCodes
    from llmcompress.report.training import TrainingRecord
    from llmcompress.training.train import TrainingWindows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model that is not written yet."""

    loaded: LoadedModel
    """What it was made from; ``model`` in it is the compressed graph, its runtime hints included."""
    recipe: Recipe
    tokenizer: Any | None
    """A transformers tokenizer; None where it was left out."""
    calibration: CalibrationRecord | None
    layers: tuple[LayerRecord, ...]
    parts: Mapping[str, tuple[LayerRecord, ...]]
    """The same of the graphs next to a language model."""
    activations: ActivationRecord | None
    pruning: PruningRecord | None
    depth_speed: DepthSpeed | None
    """Where a speed decided how many decoder layers went."""
    training: TrainingRecord | None
    training_windows: TrainingWindows | None
    rescaled: Mapping[str, Rescaling]
    """What AWQ did to weights, by their names."""
    late: LateCodes | None
    """Weights that are compressed when the model is saved."""
    kept: KeptRecord | None
    stages: Stages
    """Time and memory so far."""

    @property
    def model(self) -> ov.Model:
        """The compressed graph."""
        return self.loaded.model

    def clone(self) -> CompressedModel:
        """The same with a copy of the graph; the weights stay shared."""
        return replace(self, loaded=self.loaded.clone())


def compress_in_memory(
    source: Source | LoadedModel, recipe: Recipe, options: CompressOptions, stages: Stages, progress: Reporter = silent
) -> CompressedModel:
    """Check, load and compress a model; nothing is written but the exporter's configuration files.

    Args:
        source: As resolved, or loaded: its graph is copied.
        recipe: What to do.
        options: How.
        stages: Where time and memory are noted.
        progress: Told of every stage.

    Raises: as ``compress``, apart from what concerns the output directory.
    """
    require_engine(recipe, options.engine)
    with weights_checked(allow_nonfinite=options.access.allow_nonfinite, progress=progress) as check:
        if isinstance(source, LoadedModel):
            ready = ready_of_loaded(source.source, recipe, options, stages, progress)
        else:
            ready = make_ready(source, recipe, options, check, stages, progress)
        pruned = None
        if recipe.pruning is not None:
            with stages.stage("prune"):
                pruned, provenance = _prune(source, ready, recipe, options, progress)
        with stages.stage("load and trace"), write_errors(options.target or options.scratch_dir):
            if pruned is not None:
                loaded = replace(_load(pruned.source, None, options, progress), provenance=provenance)
            elif isinstance(source, LoadedModel):
                loaded = source.clone()
            else:
                loaded = _load(ready.source, ready.checked, options, progress)
    with stages.stage("compress"):
        applied, parts = _apply(loaded, recipe, ready, options, progress)
    trained = pruned.healing if pruned else None
    recipe = _as_pruned(recipe, pruned) if pruned else recipe
    if ready.texts.training is not None and trained is None:
        with stages.stage("train"):
            original = ready.source if pruned else None
            trained, recipe = _train(applied, recipe, ready.texts.training, original, options, progress)
    with stages.stage("read the layers"):
        layers, activations = inspect_layers(applied, recipe)
    return CompressedModel(
        loaded=applied.loaded,
        recipe=recipe,
        tokenizer=ready.texts.tokenizer if options.tokenizer else None,
        calibration=ready.texts.windows.record if ready.texts.windows else None,
        layers=layers,
        parts=parts,
        activations=activations,
        pruning=pruned.record if pruned else None,
        depth_speed=pruned.depth_speed if pruned else None,
        training=trained,
        training_windows=ready.texts.training,
        rescaled=applied.rescaled,
        late=applied.late,
        kept=kept_record(applied.loaded.model, applied.loaded.kept),
        stages=stages,
    )


def _apply(
    loaded: LoadedModel, recipe: Recipe, ready: Ready, options: CompressOptions, progress: Reporter
) -> tuple[Applied, Mapping[str, tuple[LayerRecord, ...]]]:
    """Compress the graph, and those next to it; of these the layers."""
    file_memory = FileMemory(options.scratch_dir) if ready.codes_on_disk else None
    if options.late_codes and can_be_late(recipe, options.engine):
        applied = apply_late(loaded, recipe, progress)
    else:
        applied = apply_recipe(loaded, recipe, ready.texts.windows, options.engine, file_memory, progress)
    parts = compress_parts(loaded.parts, recipe, engine=options.engine, file_memory=file_memory, progress=progress)
    return applied, parts


def _load(source: Source, checked: CheckedWeights | None, options: CompressOptions, progress: Reporter) -> LoadedModel:
    return load_source(
        source,
        allow_nonfinite=options.access.allow_nonfinite,
        tokenizer=False,
        scratch_dir=options.scratch_dir,
        checked=checked,
        progress=progress,
    )


def _prune(
    given: Source | LoadedModel, ready: Ready, recipe: Recipe, options: CompressOptions, progress: Reporter
) -> tuple[PrunedSource, Provenance]:
    """The pruned checkpoint that takes the source's place, and where that came from."""
    if isinstance(given, LoadedModel):
        provenance = given.provenance
    else:
        assert ready.checked is not None
        provenance = checkpoint_provenance(ready.source, ready.checked)
    target = options.target or options.scratch_dir
    windows = ready.texts.windows if isinstance(ready.texts.windows, CalibrationWindows) else None
    inputs = PruningInputs(provenance, windows, ready.texts.training, options.scratch_dir, target)
    if recipe.pruning is None or recipe.pruning.speedup is None:
        return prune_source(ready.source, recipe, inputs, progress), provenance

    def without_data(source: Source, scratch_dir: Path) -> LoadedModel:
        if isinstance(given, LoadedModel) and source is ready.source:
            loaded = given.clone()
        else:
            loaded = _load(source, None, options._replace(scratch_dir=scratch_dir), progress)
        weights = recipe.weights and recipe.weights.data_free
        further = tuple(each.data_free for each in recipe.further_weights)
        parts = {"weights": weights, "further_weights": further, "pruning": None, "training": None}
        applied = apply_recipe(loaded, recipe.model_copy(update=parts), None, options.engine, None, progress)
        inspect_layers(applied, recipe)
        return applied.loaded

    return prune_for_speed(ready.source, recipe, inputs, without_data, progress), provenance


def _as_pruned(recipe: Recipe, pruned: PrunedSource) -> Recipe:
    """The recipe with the number of layers that a speed took, and the steps that a time sufficed for."""
    if pruned.depth_speed is not None:
        recipe = with_num_layers(recipe, len(pruned.record.layers))
    if pruned.healing is not None and pruned.healing.num_steps is not None:
        recipe = with_num_steps(recipe, pruned.healing.num_steps)
    return recipe


def _train(
    applied: Applied,
    recipe: Recipe,
    windows: TrainingWindows,
    original: Source | None,
    options: CompressOptions,
    progress: Reporter,
) -> tuple[TrainingRecord, Recipe]:
    """Learn the bits of the compressed graph; with the record the recipe that says how many steps that took."""
    from llmcompress.training.train import Inputs, train

    add_adapters = None
    if recipe.training is not None and recipe.training.method == "fq_lora":
        from llmcompress.compression.nncf import fq_lora

        add_adapters = functools.partial(fq_lora.add_adapters, recipe)
    inputs = Inputs(windows, options.scratch_dir, applied.rescaled, add_adapters, original)
    trained = train(applied.loaded, recipe, inputs, progress)
    assert trained.num_steps is not None
    return trained, with_num_steps(recipe, trained.num_steps)
