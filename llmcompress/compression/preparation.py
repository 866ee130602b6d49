"""What a compression needs before it begins: everything refused that can be, texts read, weights fetched."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.compression.compressible import (
    require_compressible,
    require_executable,
    require_kept_or_allowed,
    require_trainable,
)
from llmcompress.compression.forecast import Forecast, forecast, require_fits
from llmcompress.compression.parts import require_parts
from llmcompress.compression.pruned import require_prunable_source
from llmcompress.data.calibration import CalibrationWindows
from llmcompress.loaders.checking import CheckedWeights, StartCheck
from llmcompress.loaders.context import longest_context
from llmcompress.loaders.fetching import fetch_side_files, fetch_weights
from llmcompress.loaders.light_imports import light_imports
from llmcompress.loaders.processor import open_processor
from llmcompress.loaders.source import Source
from llmcompress.loaders.token_ids import num_embeddings
from llmcompress.loaders.tokenizer import require_tokenizer
from llmcompress.report.compression import Engine
from llmcompress.report.record import Stages
from llmcompress.spec import Access, Calibration, Recipe
from llmcompress.system.background import end_background
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    from llmcompress.compression.picture_samples import PictureSamples
    from llmcompress.training.train import TrainingWindows

_log = logging.getLogger(__name__)


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
    late_codes: bool = False
    """Leave to ``save_with_codes`` what can be left to it."""


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


class Texts(NamedTuple):
    """What reads a text, and what the recipe reads of one."""

    tokenizer: Any | None
    windows: CalibrationWindows | PictureSamples | None
    training: TrainingWindows | None


class Ready(NamedTuple):
    """A source whose files are there."""

    source: Source
    checked: CheckedWeights | None
    """The check of a checkpoint's weights, which may still be running."""
    texts: Texts
    codes_on_disk: bool


def ready_of_loaded(
    source: Source, recipe: Recipe, options: CompressOptions, stages: Stages, progress: Reporter
) -> Ready:
    """Refuse what cannot be done with a model that is loaded already."""
    require_parts(source, recipe)
    require_kept_or_allowed(source, recipe, requantize=options.access.requantize)
    require_executable(recipe)
    require_trainable(source, recipe)
    require_prunable_source(source, recipe)
    with stages.stage("forecast"):
        predicted = _forecast(source, recipe, options, progress)
    return Ready(source, None, _tokenize(source, recipe, options, stages), predicted.codes_on_disk)


def make_ready(
    source: Source, recipe: Recipe, options: CompressOptions, check: StartCheck, stages: Stages, progress: Reporter
) -> Ready:
    """Refuse what cannot be done before anything large is fetched; then fetch the weights and begin their check."""
    # The weights of a directory are here already; their check takes the time of the libraries' import.
    checked = check(fetch_weights(source)) if source.kind == "checkpoint" else None
    with stages.stage("forecast"), light_imports(source):
        require_compressible(source, recipe, requantize=options.access.requantize)
        predicted = _forecast(source, recipe, options, progress)
        require_fits(predicted if options.target else predicted.model_copy(update={"disk_bytes": 0}))
    texts = _tokenize(source, recipe, options, stages)
    with stages.stage("fetch"):
        source = fetch_weights(source, progress=progress)
        if source.layout == "checkpoint" and checked is None:
            checked = check(source)
    return Ready(source, checked, texts, predicted.codes_on_disk)


def _tokenize(source: Source, recipe: Recipe, options: CompressOptions, stages: Stages) -> Texts:
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
        return Texts(tokenizer, windows, training_windows(source, recipe, tokenizer, offline=offline))


def _forecast(source: Source, recipe: Recipe, options: CompressOptions, progress: Reporter) -> Forecast:
    progress(Progress("forecast", 0, 1))
    how: dict[str, Any] = {"engine": options.engine, "held": not options.late_codes}
    predicted = forecast(source, recipe, options.target, **how)
    if predicted.min_memory_bytes > predicted.available_memory_bytes and end_background():
        predicted = forecast(source, recipe, options.target, **how)
    for warning in predicted.warnings:
        _log.warning("%s by recipe %s: %s", source.name, recipe.name, warning)
    progress(Progress("forecast", 1, 1))
    return predicted
