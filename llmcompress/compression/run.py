"""A source and a recipe in, a compressed ``ov.Model`` in memory out, with all that its directory will need."""

from __future__ import annotations

import contextlib
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.artifact import write_errors
from llmcompress.compression.contract import check_executed, check_target
from llmcompress.compression.forecast import forecast, require_fits
from llmcompress.compression.layers import CODEBOOKS, layer_table
from llmcompress.compression.nncf.statistics_cache import statistics
from llmcompress.compression.nncf.statistics_pass import check_statistics_precision
from llmcompress.compression.quantized_operations import activation_record
from llmcompress.errors import ModelError
from llmcompress.graph.model import is_compressed, set_runtime_options
from llmcompress.loaders.architecture import check_architecture
from llmcompress.loaders.checking import weights_checked
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.source import Source, fetch_weights, longest_context
from llmcompress.report.compression import (
    AccuracyRecord,
    ActivationRecord,
    CalibrationRecord,
    Engine,
    LayerRecord,
    runtime_options,
)
from llmcompress.report.stages import Stages
from llmcompress.spec import Recipe
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.data import CalibrationWindows
    from llmcompress.evaluation.accuracy import MakeMetric


def recipe_windows(found: Source, recipe: Recipe, tokenizer: Any, *, offline: bool) -> CalibrationWindows | None:
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
    activations: ActivationRecord | None
    stages: Stages
    """Time and memory so far."""

    @property
    def model(self) -> ov.Model:
        """The compressed graph."""
        return self.loaded.model


def compress_in_memory(
    source: Source | LoadedModel,
    recipe: Recipe,
    *,
    scratch_dir: Path,
    target: Path | None = None,
    offline: bool = False,
    allow_nonfinite: bool = False,
    tokenizer: bool = True,
    engine: Engine = "llmcompress",
    make_metric: MakeMetric,
    stages: Stages,
    progress: Reporter = silent,
) -> CompressedModel:
    """Check, load and compress a model; nothing is written but the exporter's configuration files.

    Args:
        source: As resolved, or loaded: its graph is copied.
        recipe: What to do.
        scratch_dir: Existing empty directory for the exporter's configuration files, and for codes that wait on disk.
        target: Where the model will be written; None: the disk's space is not asked for.
        offline: Take calibration data from local files and caches only.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        tokenizer: Load the tokenizer, and fail where there is none.
        engine: Whose arithmetic makes the codes of weights.
        make_metric: Makes the metric that accuracy control goes by.
        stages: Where time and memory are noted.
        progress: Told of every stage.

    Raises: as ``compress``, apart from what concerns the output directory.
    """
    found = source.source if isinstance(source, LoadedModel) else source
    check_executed(recipe)
    check_statistics_precision(recipe)
    with weights_checked(allow_nonfinite=allow_nonfinite, progress=progress) as check:
        checked, is_loaded = None, isinstance(source, LoadedModel)
        if found.kind == "checkpoint" and not is_loaded:
            # The weights are here already; their check takes the time of the libraries' import.
            checked = check(fetch_weights(found))
        with stages.stage("forecast"):
            progress(Progress("forecast", 0, 1))
            if not is_loaded:
                _refuse_quantized(found, recipe)
            predicted = forecast(found, recipe, target, engine=engine)
            if not is_loaded:
                require_fits(predicted if target else predicted.model_copy(update={"disk_bytes": 0}))
            progress(Progress("forecast", 1, 1))
        if not is_loaded:
            with stages.stage("fetch"):
                found = fetch_weights(found, progress=progress)
                if found.layout == "checkpoint" and checked is None:
                    checked = check(found)
        with stages.stage("tokenize"):
            original = _tokenizer(found) if tokenizer or recipe.calibration else None
            windows = recipe_windows(found, recipe, original, offline=offline)
        with stages.stage("load and trace"), write_errors(target or scratch_dir):
            if isinstance(source, LoadedModel):
                loaded = source.clone()
            else:
                loaded = load(
                    found,
                    allow_nonfinite=allow_nonfinite,
                    tokenizer=False,
                    scratch_dir=scratch_dir,
                    checked=checked,
                    progress=progress,
                )
        with stages.stage("compress"):
            file_memory = FileMemory(scratch_dir) if predicted.codes_on_disk else None
            loaded, accuracy, ours = _carried_out(loaded, recipe, windows, make_metric, engine, file_memory, progress)
            modes = [weights.mode for weights in recipe.weight_passes]
            layers = layer_table(loaded.model, next((mode for mode in modes if mode in CODEBOOKS), None), ours)
            set_runtime_options(loaded.model, runtime_options(recipe, layers))
            check_target(recipe, layers)
            activations = activation_record(loaded.model, recipe.activations, accuracy) if recipe.activations else None
    return CompressedModel(
        loaded=loaded,
        recipe=recipe,
        tokenizer=original if tokenizer else None,
        calibration=windows.record if windows else None,
        layers=layers,
        activations=activations,
        stages=stages,
    )


def _refuse_quantized(found: Source, recipe: Recipe) -> None:
    if found.layout == "ir":
        return
    architecture = check_architecture(found.config, trust_remote_code=found.trust_remote_code)
    if architecture.quantization == "keep" and recipe.method != "none":
        raise ModelError(
            f"the checkpoint is already quantized and recipe {recipe.name} would quantize it again",
            where=found.id or found.path.name,
            hint="convert it as it is with --recipe none, or give the original checkpoint",
        )


def _tokenizer(found: Source) -> Any:
    from llmcompress.loaders.tokenizer import load_tokenizer

    return load_tokenizer(found.path, trust_remote_code=found.trust_remote_code)


def _carried_out(
    loaded: LoadedModel,
    recipe: Recipe,
    windows: CalibrationWindows | None,
    make_metric: MakeMetric,
    engine: Engine,
    file_memory: FileMemory | None,
    progress: Reporter,
) -> tuple[LoadedModel, AccuracyRecord | None, Set[str]]:
    ours: set[str] = set()
    if recipe.method == "none":
        return loaded, None, ours
    if is_compressed(loaded.model):
        raise ModelError(
            "the model is already compressed; compressing it again would add to its error unseen",
            where=loaded.source.id or loaded.source.path.name,
            hint="give the original checkpoint",
        )
    from llmcompress.compression.nncf.activations import quantize_activations
    from llmcompress.compression.nncf.weights import compress_weights

    for weights in recipe.weight_passes:
        with contextlib.ExitStack() as stack:
            path = None
            # Of a graph that an earlier pass changed the statistics are others.
            if windows is not None and weights is recipe.weights and weights.collects_statistics:
                collected = statistics(loaded.provenance, windows.record, weights.statistics_precision)
                path = stack.enter_context(collected)
            ours |= compress_weights(
                loaded.model,
                weights,
                windows.token_ids if windows and weights.uses_data else None,
                statistics_path=path,
                engine=engine,
                file_memory=file_memory,
                progress=progress,
            )
    if recipe.activations is None or windows is None:
        return loaded, None, ours
    model, accuracy = quantize_activations(loaded.model, recipe.activations, windows, make_metric, progress=progress)
    return replace(loaded, model=model), accuracy, ours
