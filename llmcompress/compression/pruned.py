"""A checkpoint that a recipe prunes: what stands in its place from then on."""

from __future__ import annotations

import functools
import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.artifact import write_errors
from llmcompress.compression.depth_speed import depth_for_speed
from llmcompress.errors import RecipeError
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.source import Source
from llmcompress.report.pruning import PruningRecord
from llmcompress.report.record import DepthSpeed, Provenance
from llmcompress.report.training import TrainingRecord
from llmcompress.spec import Recipe
from llmcompress.spec.pruning import Pruning, with_num_layers
from llmcompress.system.files import sync_tree
from llmcompress.system.json_file import read_json
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    from llmcompress.data import CalibrationWindows
    from llmcompress.loaders.loaded_model import LoadedModel
    from llmcompress.training.pruning.prune import Healing
    from llmcompress.training.train import TrainingWindows


_PLACE = "pruning"
"""Within the scratch directory."""


class PrunedSource(NamedTuple):
    """A checkpoint of our own making."""

    source: Source
    record: PruningRecord
    healing: TrainingRecord | None
    """How what was left was healed."""
    depth_speed: DepthSpeed | None = None
    """What was measured where a speed decides."""


class PruningInputs(NamedTuple):
    """What a pruning needs besides the source and the recipe."""

    provenance: Provenance
    """Of the source."""
    windows: CalibrationWindows | None
    training: TrainingWindows | None
    scratch_dir: Path
    """Existing directory, in which the checkpoint is written."""
    target: Path
    """Named where the disk refuses something."""


def require_prunable_source(source: Source, recipe: Recipe) -> None:
    """Refuse to prune what is no checkpoint of floats in classes of transformers.

    Raises:
        RecipeError: Says so.
    """
    if recipe.pruning is None:
        return
    problem = None
    if source.layout == "ir":
        problem = "an OpenVINO model has no layers in torch that could be taken out"
    elif source.text_only:
        problem = "it is the language model of a vision-language checkpoint"
    elif is_repacked(source.config):
        problem = "the weights of this checkpoint are quantized already"
    elif source.config.get("auto_map") and source.trust_remote_code:
        problem = "the model's classes are code of its repository, which a pruned checkpoint would not carry"
    if problem is not None:
        where, hint = f"recipe {recipe.name}: pruning", "give a checkpoint in floats, or a recipe without pruning"
        raise RecipeError(problem, where=where, hint=hint)


def prune_for_speed(
    source: Source,
    recipe: Recipe,
    inputs: PruningInputs,
    compressed: Callable[[Source, Path], LoadedModel],
    progress: Reporter,
) -> PrunedSource:
    """Prune as ``prune_source``, of as few decoder layers as the recipe's speed takes.

    Args:
        source: A checkpoint whose files are there.
        recipe: Its pruning has a speed.
        inputs: What else it needs.
        compressed: Compresses a checkpoint as the recipe does where there is no data, with an empty directory for
            files of its own.
        progress: Told of every stage.

    Raises:
        RecipeError: No drop that leaves a layer makes the model as fast; and as ``prune_source``.
        ModelError, UsageError, WriteError: As ``prune_source``.
    """
    from transformers import AutoConfig

    asked = recipe.pruning
    assert asked is not None
    assert asked.speedup is not None
    config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=source.trust_remote_code)
    num_layers: int = config.get_text_config().num_hidden_layers
    half = num_layers // 2
    of_half = Pruning(method="depth", layers=tuple(range(half, num_layers)))
    part = prune_source(source, recipe.model_copy(update={"pruning": of_half, "training": None}), inputs, progress)
    models = {num_layers: functools.partial(compressed, source), half: functools.partial(compressed, part.source)}
    found = depth_for_speed(asked.speedup, models, inputs.scratch_dir, inputs.target, progress)
    shutil.rmtree(inputs.scratch_dir / _PLACE)
    pruned = prune_source(source, with_num_layers(recipe, found.num_layers), inputs, progress)
    record = pruned.record.model_copy(update={"speedup": asked.speedup})
    return pruned._replace(record=record, depth_speed=found.measured)


def prune_source(source: Source, recipe: Recipe, inputs: PruningInputs, progress: Reporter) -> PrunedSource:
    """Prune a checkpoint whose files are there, and heal it where the recipe says so.

    Raises:
        RecipeError, ModelError, UsageError: As ``prune``.
        WriteError: The disk does not hold the pruned checkpoint.
    """
    from llmcompress.training.devices import training_device
    from llmcompress.training.pruning.prune import PruneTask, prune
    from llmcompress.training.train import state_directory, training_record, writable

    assert recipe.pruning is not None
    place = inputs.scratch_dir / _PLACE
    with ExitStack() as stack:
        healing, state_dir = None, None
        if inputs.training is not None and recipe.training is not None and recipe.training.heals:
            state_dir = state_directory(inputs.provenance, recipe, inputs.training)
            healing = _healing(recipe, inputs.training, stack.enter_context(writable(state_dir, inputs.scratch_dir)))
        with write_errors(inputs.target):
            place.mkdir()
            token_ids = inputs.windows.token_ids if inputs.windows and recipe.pruning.uses_data else None
            pruned = prune(PruneTask(source, recipe.pruning, token_ids, healing, place, progress))
    if state_dir is not None:
        shutil.rmtree(state_dir, ignore_errors=True)
    own = source._replace(
        kind="checkpoint",
        path=pruned.path,
        config=read_json(pruned.path / "config.json"),
        id=None,
        revision=None,
        files=None,
        expected_sha256={},
        adapter=None,
    )
    healed = None
    if pruned.healed is not None and inputs.training is not None and recipe.training is not None:
        training, curve = pruned.healed
        healed = training_record(training, inputs.training, training_device(training.device), [curve])
        healed = healed.model_copy(update={"budget_s": recipe.training.budget_s})
    return PrunedSource(own, pruned.record, healed)


def save_pruned(checkpoint: Path, target: Path) -> None:
    """Copy a pruned checkpoint to where it is to stay; it appears there complete, or not at all.

    Raises:
        WriteError: The disk refuses it.
    """
    copy = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with write_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(checkpoint, copy)
            sync_tree(copy)
            copy.rename(target)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _healing(recipe: Recipe, windows: TrainingWindows, place: Path) -> Healing:
    from llmcompress.training.distillation import Windows
    from llmcompress.training.pruning.prune import Healing

    assert recipe.training is not None
    used = windows.training.token_ids[: recipe.training.num_used_windows]
    return Healing(recipe.training, Windows(used, windows.validation.token_ids), place)
