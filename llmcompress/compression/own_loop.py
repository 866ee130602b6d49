"""Compressed weights in a training loop of one's own: on a task, with transformers' Trainer or any other program."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.artifact import staging
from llmcompress.compression.output import inputs, write
from llmcompress.compression.preparation import CompressOptions
from llmcompress.compression.run import CompressedModel, compress_in_memory
from llmcompress.errors import RecipeError, UsageError
from llmcompress.loaders.resolving import resolve
from llmcompress.report.compression import CompressionReport
from llmcompress.report.record import Stages
from llmcompress.report.training import TrainingRecord
from llmcompress.spec import Access, Recipe, Training, WeightCompression, load_recipe
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.library_call import ProgressOption, library_call, reporter


class _Prepared(NamedTuple):
    """What a model that is being trained will be written with."""

    recipe: Recipe
    compressed: CompressedModel
    trained: list[Any]
    """Of ``training.student.Trained``."""
    scratch: tempfile.TemporaryDirectory[str]
    """Where a pruned checkpoint lies; it goes with the model."""


_prepared: weakref.WeakKeyDictionary[Any, _Prepared] = weakref.WeakKeyDictionary()


@library_call
def prepare_for_training(
    source: str | Path,
    recipe: str | Path | Recipe,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    progress: ProgressOption = "auto",
) -> Any:
    """Load a checkpoint as a torch model that computes with the recipe's codes, scales and zero points.

    These are its only parameters that require gradients: train it with transformers' Trainer or any other loop. Every
    forward pass rounds as the artifact will. ``export_trained`` writes it.

    Args:
        source: Hub id or checkpoint directory.
        recipe: Its ``weights`` make the start, after its ``pruning``; weights that this sets to zero stay so. Of
            ``training``, where it has one, only ``what`` is used.
        revision: Branch, tag or commit of a Hub source.
        trust_remote_code: Run Python code that the repository brings.
        offline: Use local files and caches only.
        progress: Told of every stage.

    Returns:
        A transformers model in f32, in evaluation mode.

    Raises:
        RecipeError: The recipe compresses no weights to integers, or would train something itself.
        ModelError: No weight can be trained; and what ``compress`` raises.
    """
    from llmcompress.graph.integer_weights import integer_weights
    from llmcompress.loaders.torch_model import load_torch_model
    from llmcompress.training.student import make_student
    from llmcompress.training.train import trainable

    quiet_libraries()
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    weights = _required_weights(chosen)
    found = resolve(source, Access(revision, trust_remote_code, offline))
    scratch = tempfile.TemporaryDirectory(prefix="llmcompress-")
    options = CompressOptions(Path(scratch.name), access=Access(revision, trust_remote_code, offline))
    start = chosen.model_copy(update={"training": None})
    compressed = compress_in_memory(found, start, options, Stages(), reporter(progress))
    in_graph = integer_weights(compressed.model)
    what = frozenset(chosen.training.what if chosen.training else Training.model_fields["what"].default)
    model = load_torch_model(compressed.loaded.source).float()
    names = trainable(in_graph, weights, where=found.name)
    zeros = start.keeps_zeros
    trained = make_student(model, in_graph, names, what, compressed.rescaled, keep_zeros=zeros)
    _prepared[model] = _Prepared(start, compressed, trained, scratch)
    return model


def _required_weights(recipe: Recipe) -> WeightCompression:
    """The weights whose bits a loop of one's own can train; raises RecipeError."""
    from llmcompress.training.train import ELEMENTS

    weights, training = recipe.weights, recipe.training
    corrects = weights is not None and weights.lora_correction
    if weights is None or weights.mode not in ELEMENTS or recipe.activations is not None or corrects:
        raise RecipeError(
            "only integer weights without LoRA correction can be trained, and no activations",
            where=f"recipe {recipe.name}",
            hint=f"take method: weights with weights.mode {', '.join(sorted(ELEMENTS))}",
        )
    if training is not None and training.heals:
        raise RecipeError(
            f"bits are trained in a loop of your own, and training.what asks for {training.what[0]}",
            where=f"recipe {recipe.name}",
            hint="heal with `compress` and `save_checkpoint`, and prepare what that leaves",
        )
    return weights


@library_call
def export_trained(
    model: Any,
    recipe: str | Path | Recipe,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    progress: ProgressOption = "auto",
) -> CompressionReport:
    """Write a model that ``prepare_for_training`` made, with the bits that it has now, as one complete directory.

    Args:
        model: As it was returned, trained since.
        recipe: The one that it was prepared by.
        output_dir: Appears complete, by one rename, or not at all.
        overwrite: Replace an existing artifact, in one step.
        progress: Told of every stage.

    Returns:
        The manifest that was written; its ``training`` says that the bits come from a loop of the user's own.

    Raises:
        UsageError: The model was not made by ``prepare_for_training``, or by another recipe; or the output exists.
        WriteError: The output could not be written.
        LockedError: Another run writes the same output.
    """
    from dataclasses import replace

    from llmcompress.graph.integer_weights import integer_weights, replace_integer_weights
    from llmcompress.training.train import CodeChanges, changed_codes

    prepared = _prepared.get(model)
    if prepared is None:
        raise UsageError(
            f"this {type(model).__name__} was not made by llmcompress.prepare_for_training in this process",
            where="`model`",
            hint="give the model that it returned, not a copy or one that was loaded again",
        )
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if chosen.model_copy(update={"training": None}) != prepared.recipe:
        raise UsageError(
            f"the model was prepared by recipe {prepared.recipe.name} with other settings than {chosen.name} has",
            where="`recipe`",
            hint="give the recipe that prepare_for_training was given",
        )
    compressed = prepared.compressed.clone()
    learned = {each.name: each.learned() for each in prepared.trained}
    start = integer_weights(compressed.model)
    replace_integer_weights(compressed.model, learned)
    changes = changed_codes(start, learned, CodeChanges())
    record = TrainingRecord(method="own_loop", num_layers=changes.num_weights, changed_codes=changes.share)
    source = compressed.loaded.source
    with staging(output_dir, overwrite=overwrite, inputs=inputs(source, prepared.recipe)) as stage:
        return write(replace(compressed, training=record), stage, progress=reporter(progress))
