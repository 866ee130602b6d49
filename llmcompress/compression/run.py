"""A source and a recipe in, a compressed ``ov.Model`` in memory out, with all that its directory will need."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.artifact import write_errors
from llmcompress.compression.compressible import (
    check_target,
    refuse_compressed,
    require_compressible,
    require_engine,
    require_executable,
    require_kept_or_allowed,
    require_trainable,
)
from llmcompress.compression.forecast import Forecast, forecast, require_fits
from llmcompress.compression.kept import kept_layers, kept_record
from llmcompress.compression.layers import CODEBOOKS, activation_record, constants_taken_by, layer_table
from llmcompress.compression.nncf.statistics import statistics
from llmcompress.compression.parts import compress_parts, require_parts
from llmcompress.compression.pruned import (
    PrunedSource,
    PruningInputs,
    prune_for_speed,
    prune_source,
    require_prunable_source,
)
from llmcompress.data.calibration import CalibrationWindows
from llmcompress.graph.integer_weights import Rescaling
from llmcompress.graph.model import mark_quantized_source, parameter_name, set_runtime_options, unpin_cache
from llmcompress.loaders.checking import CheckedWeights, StartCheck, weights_checked
from llmcompress.loaders.context import longest_context
from llmcompress.loaders.loaded_model import LoadedModel, checkpoint_provenance, load_source
from llmcompress.loaders.processor import open_processor
from llmcompress.loaders.source import Source, fetch_side_files, fetch_weights
from llmcompress.loaders.token_ids import num_embeddings
from llmcompress.loaders.tokenizer import require_tokenizer
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.compression import (
    AccuracyRecord,
    ActivationRecord,
    Engine,
    KeptRecord,
    LayerRecord,
    runtime_options,
)
from llmcompress.report.pruning import PruningRecord
from llmcompress.report.record import CalibrationRecord, DepthSpeed, Provenance, Stages
from llmcompress.spec import Access, Calibration, Recipe, WeightCompression
from llmcompress.spec.pruning import with_num_layers
from llmcompress.spec.training import with_num_steps
from llmcompress.system.background import end_background
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.compression.nncf.runs import Samples
    from llmcompress.compression.picture_samples import PictureSamples
    from llmcompress.report.training import TrainingRecord
    from llmcompress.training.train import TrainingWindows

_log = logging.getLogger(__name__)


def recipe_windows(
    found: Source, recipe: Recipe, tokenizer: Any, *, offline: bool
) -> CalibrationWindows | PictureSamples | None:
    """Take a recipe's windows, and those that accuracy control holds out; None: the recipe needs no data.

    Raises: as ``llmcompress.data.calibration_windows``, or ``picture_samples`` where it has pictures.
    """
    if recipe.calibration is None:
        return None
    if recipe.calibration.image_field is not None:
        from llmcompress.compression.picture_samples import picture_samples

        return picture_samples(found, recipe.calibration, offline=offline)
    from llmcompress.data import calibration_windows

    control = recipe.activations.accuracy_control if recipe.activations else None
    return calibration_windows(
        recipe.calibration,
        tokenizer,
        num_held_out=control.num_samples if control else 0,
        offline=offline,
        max_seq_len=longest_context(found, recipe.calibration.seq_len),
        num_embeddings=num_embeddings(found.config),
    )


def training_windows(found: Source, recipe: Recipe, tokenizer: Any, *, offline: bool) -> TrainingWindows | None:
    """Take the windows that a recipe trains on and those that it holds out; None: it trains nothing.

    Raises: as ``llmcompress.data.calibration_windows``; DataError: training and held-out text are not disjoint.
    """
    if recipe.training is None:
        return None
    from llmcompress.data import calibration_windows
    from llmcompress.training.train import SPARE, require_apart, require_disjoint

    training, apart = recipe.training, recipe.training.validation_windows()

    def windows(text: Calibration, num_held_out: int) -> CalibrationWindows:
        return calibration_windows(
            text,
            tokenizer,
            num_held_out=num_held_out,
            offline=offline,
            max_seq_len=longest_context(found, training.seq_len),
            num_embeddings=num_embeddings(found.config),
        )

    if apart is not None:
        return require_apart(windows(training, 0), windows(apart, 0))
    wanted = training.num_validation_samples
    return require_disjoint(windows(training, SPARE * wanted), wanted)


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


class CompressOptions(NamedTuple):
    """How a model is compressed, whatever the recipe."""

    scratch_dir: Path
    """Existing empty directory for the exporter's configuration files, and for codes that wait on disk."""
    target: Path | None = None
    """Where the model will be written; None: the disk's space is not asked for."""
    access: Access = Access()
    tokenizer: bool = True
    """Load the tokenizer, and fail where there is none."""
    engine: Engine = "llmcompress"
    """Whose arithmetic makes the codes of weights."""


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
            ready = _of_loaded(source.source, recipe, options, stages, progress)
        else:
            ready = _make_ready(source, recipe, options, check, stages, progress)
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
        file_memory = FileMemory(options.scratch_dir) if ready.codes_on_disk else None
        applied = apply_recipe(loaded, recipe, ready.texts.windows, options.engine, file_memory, progress)
        parts = compress_parts(loaded.parts, recipe, engine=options.engine, file_memory=file_memory, progress=progress)
    trained = pruned.healing if pruned else None
    recipe = _as_pruned(recipe, pruned) if pruned else recipe
    if ready.texts.training is not None and trained is None:
        with stages.stage("train"):
            original = ready.source if pruned else None
            trained, recipe = _train(applied, recipe, ready.texts.training, original, options, progress)
    with stages.stage("read the layers"):
        layers, activations = _inspect(applied, recipe)
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
        kept=kept_record(applied.loaded.model, applied.loaded.kept),
        stages=stages,
    )


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
    given: Source | LoadedModel, ready: _Ready, recipe: Recipe, options: CompressOptions, progress: Reporter
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
        _inspect(applied, recipe)
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


class _Texts(NamedTuple):
    """What reads a text, and what the recipe reads of one."""

    tokenizer: Any | None
    windows: CalibrationWindows | PictureSamples | None
    training: TrainingWindows | None


class _Ready(NamedTuple):
    """A source whose files are there."""

    source: Source
    checked: CheckedWeights | None
    """The check of a checkpoint's weights, which may still be running."""
    texts: _Texts
    codes_on_disk: bool


def _of_loaded(source: Source, recipe: Recipe, options: CompressOptions, stages: Stages, progress: Reporter) -> _Ready:
    """Refuse what cannot be done with a model that is loaded already."""
    require_parts(source, recipe)
    require_kept_or_allowed(source, recipe, requantize=options.access.requantize)
    require_executable(recipe)
    require_trainable(source, recipe)
    require_prunable_source(source, recipe)
    with stages.stage("forecast"):
        predicted = _forecast(source, recipe, options, progress)
    return _Ready(source, None, _tokenize(source, recipe, options, stages), predicted.codes_on_disk)


def _make_ready(
    source: Source, recipe: Recipe, options: CompressOptions, check: StartCheck, stages: Stages, progress: Reporter
) -> _Ready:
    """Refuse what cannot be done before anything large is fetched; then fetch the weights and begin their check."""
    # The weights of a directory are here already; their check takes the time of the libraries' import.
    checked = check(fetch_weights(source)) if source.kind == "checkpoint" else None
    with stages.stage("forecast"):
        require_compressible(source, recipe, requantize=options.access.requantize)
        predicted = _forecast(source, recipe, options, progress)
        require_fits(predicted if options.target else predicted.model_copy(update={"disk_bytes": 0}))
    texts = _tokenize(source, recipe, options, stages)
    with stages.stage("fetch"):
        source = fetch_weights(source, progress=progress)
        if source.layout == "checkpoint" and checked is None:
            checked = check(source)
    return _Ready(source, checked, texts, predicted.codes_on_disk)


def _tokenize(source: Source, recipe: Recipe, options: CompressOptions, stages: Stages) -> _Texts:
    """Refuse tokens that the model has no embedding for, and read what the recipe reads of its texts.

    Also a processor of pictures that cannot be opened.
    """
    with stages.stage("tokenize"):
        source = fetch_side_files(source)
        if source.sees:
            open_processor(source.path, source.trust_remote_code)
        tokenizer = require_tokenizer(source, needed=options.tokenizer or bool(recipe.texts))
        offline = options.access.offline
        windows = recipe_windows(source, recipe, tokenizer, offline=offline)
        return _Texts(tokenizer, windows, training_windows(source, recipe, tokenizer, offline=offline))


def _forecast(source: Source, recipe: Recipe, options: CompressOptions, progress: Reporter) -> Forecast:
    progress(Progress("forecast", 0, 1))
    predicted = forecast(source, recipe, options.target, engine=options.engine)
    if predicted.min_memory_bytes > predicted.available_memory_bytes and end_background():
        predicted = forecast(source, recipe, options.target, engine=options.engine)
    for warning in predicted.warnings:
        _log.warning("%s by recipe %s: %s", source.name, recipe.name, warning)
    progress(Progress("forecast", 1, 1))
    return predicted


class Applied(NamedTuple):
    """What became of a model by a recipe."""

    loaded: LoadedModel
    accuracy: AccuracyRecord | None = None
    """What accuracy control did."""
    by_kernels: Set[str] = frozenset()
    """Names of the weights that our kernels have made."""
    rescaled: Mapping[str, Rescaling] = {}
    """What AWQ did to weights, by their names."""


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

    model = load_torch_model(loaded.source).float()
    return embeddings_by_gptq(embedding_moments(model, names, windows.token_ids, windows.record.seed, progress))


def _inspect(applied: Applied, recipe: Recipe) -> tuple[tuple[LayerRecord, ...], ActivationRecord | None]:
    """Read from the graph what its layers became, put the runtime hints into it, and check what the target takes."""
    model = applied.loaded.model
    codebook = next((weights.mode for weights in recipe.weight_passes if weights.mode in CODEBOOKS), None)
    layers = layer_table(model, codebook, applied.by_kernels)
    set_runtime_options(model, runtime_options(recipe, layers))
    check_target(recipe, layers)
    # Of what is dequantized nothing is kept.
    layers = kept_layers(layers, applied.loaded.kept)
    return layers, activation_record(model, recipe.activations, applied.accuracy) if recipe.activations else None
