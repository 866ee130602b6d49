"""A compressed graph and its checkpoint in, the same graph with learned bits out."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.data import CalibrationWindows
from llmcompress.errors import DataError, ModelError
from llmcompress.graph.integer_weights import INTEGERS, IntegerWeight, integer_weights, replace_integer_weights
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.training import TrainingCurve, TrainingRecord
from llmcompress.spec import Recipe
from llmcompress.spec.training import Training
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, installed_versions
from llmcompress.system.progress import Reporter

ELEMENTS = {mode: element for element, mode in INTEGERS.items()}
"""How the codes of each mode are stored."""
SPARE = 2
"""Times the windows that are to validate are drawn: some may repeat what is trained on."""


class TrainingWindows(NamedTuple):
    """What is trained on, and what is held out."""

    training: CalibrationWindows
    validation: CalibrationWindows


def train(
    loaded: LoadedModel, recipe: Recipe, windows: TrainingWindows, scratch_dir: Path, progress: Reporter
) -> TrainingRecord:
    """Learn the bits of a compressed graph's weights, and put them into it.

    An interrupted training leaves its state in the cache; the same call goes on from there and ends in the same bytes
    (same versions and number of threads; accelerators may sum in another order).

    Args:
        loaded: Its model is compressed by the recipe.
        recipe: With a part ``training``.
        windows: Its text.
        scratch_dir: Existing directory for what need not be kept.
        progress: Told of every step.

    Raises:
        ModelError: No weight can be trained.
        UsageError: This machine does not have the device.
    """

    from llmcompress.training.devices import multiplies_in, training_device

    training = recipe.training
    assert training is not None
    assert recipe.weights is not None
    device = training_device(training.device)
    weights = integer_weights(loaded.model)
    names = trainable(weights, recipe.weights.mode, where=loaded.source.name)
    state_dir = cache_dir() / "training" / _key(loaded, recipe, windows)
    hold(state_dir)
    with _writable(state_dir, scratch_dir) as place:
        task = _Task(loaded, weights, names, training, windows, device, place, progress)
        learned, curves = (_distill if training.method == "distillation" else _by_blocks)(task)
    replace_integer_weights(loaded.model, learned)
    shutil.rmtree(state_dir, ignore_errors=True)
    return TrainingRecord(
        method=training.method,
        loss="kl_divergence" if training.method == "distillation" else "output_error",
        windows=windows.training.record,
        validation=windows.validation.record,
        num_steps=training.num_steps,
        num_layers=len(learned),
        changed_codes=changed_codes(weights, learned),
        device=device.type,
        products_in=multiplies_in(device),
        curves=tuple(curves),
    )


def trainable(weights: dict[str, IntegerWeight], mode: str, *, where: str) -> frozenset[str]:
    """Names of the weights that a mode's integers hold.

    Raises:
        ModelError: There are none.
    """
    names = frozenset(name for name, weight in weights.items() if weight.element == ELEMENTS.get(mode))
    if not names:
        raise ModelError(
            f"no layer was compressed to integers of {mode}, so that there is nothing to train",
            where=where,
            hint="take another group_size or ratio, or a recipe without training",
        )
    return names


class _Task(NamedTuple):
    """All that a method needs."""

    loaded: LoadedModel
    weights: dict[str, IntegerWeight]
    names: frozenset[str]
    """Of the weights that are trained."""
    training: Training
    windows: TrainingWindows
    device: Any
    """torch's."""
    place: Path
    """For the state and what goes with it."""
    progress: Reporter


_Learned = tuple[dict[str, IntegerWeight], list[TrainingCurve]]


def _distill(task: _Task) -> _Learned:
    from llmcompress.training.distillation import Windows, distill
    from llmcompress.training.student import make_student
    from llmcompress.training.teacher import ask

    training = task.training
    model = load_torch_model(task.loaded.source).float().to(task.device)
    num_used = min(len(task.windows.training.token_ids), training.num_steps * training.batch_size)
    windows = Windows(task.windows.training.token_ids[:num_used], task.windows.validation.token_ids)
    teacher = ask(model, windows.token_ids, training.num_top_tokens, task.place, task.progress)
    trained = make_student(model, task.weights, task.names, frozenset(training.what))
    curve = distill(model, trained, training, windows, teacher, task.place / "state.pt", task.progress)
    return {each.name: each.learned() for each in trained}, [curve]


def _by_blocks(task: _Task) -> _Learned:
    import numpy as np

    from llmcompress.training.blocks import Blocks, train_blocks

    given = [task.windows.training.token_ids, task.windows.validation.token_ids]
    model = load_torch_model(task.loaded.source)
    blocks = Blocks(
        model=model,
        weights=task.weights,
        names=task.names,
        training=task.training,
        token_ids=np.concatenate(given),
        num_training=len(given[0]),
        device=task.device,
        place=task.place,
        progress=task.progress,
    )
    learned: dict[str, IntegerWeight] = {}
    curves = []
    for trained, curve in train_blocks(blocks):
        # Before the layer's weights are given up.
        learned |= {each.name: each.learned() for each in trained}
        curves.append(curve)
    return learned, curves


def require_disjoint(windows: CalibrationWindows, num_wanted: int) -> TrainingWindows:
    """Split windows and those held out; of the latter the first that have no sequence in common with the former.

    Raises:
        DataError: Too few are left.
    """
    from dataclasses import replace

    from llmcompress.data import of_windows
    from llmcompress.data.disjoint import SEQUENCE, sequence_hashes, shares_sequence

    held_out = windows.held_out
    assert held_out is not None
    hashes = sequence_hashes(windows.token_ids)
    apart = held_out.token_ids[~shares_sequence(held_out.token_ids, hashes)][:num_wanted]
    if len(apart) < num_wanted:
        raise DataError(
            f"of the held-out windows {len(apart)} have no sequence of {SEQUENCE} tokens in common with those to train "
            f"on, {num_wanted} are to validate",
            where=windows.record.dataset,
            hint="take a text that repeats itself less, or fewer of training.num_validation_samples",
        )
    validation = of_windows(apart, held_out.record.dataset, held_out.record.seed)
    return TrainingWindows(replace(windows, held_out=None), validation)


def _key(loaded: LoadedModel, recipe: Recipe, windows: TrainingWindows) -> str:
    """What the state of an interrupted training belongs to."""
    import torch

    return content_key(
        {
            "files": [file.sha256 for file in loaded.provenance.files],
            "recipe": recipe.portable().model_dump(mode="json", exclude={"name", "description", "gate", "runtime"}),
            "training": windows.training.record.token_ids_sha256,
            "validation": windows.validation.record.token_ids_sha256,
            "versions": installed_versions(PACKAGES_THAT_DECIDE_BYTES),
            "num_threads": torch.get_num_threads(),
        }
    )


@contextlib.contextmanager
def _writable(state_dir: Path, scratch_dir: Path) -> Any:
    """The state's directory, or where the cache cannot be written the scratch one: nothing is kept then."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield scratch_dir
        return
    yield state_dir


def changed_codes(start: dict[str, IntegerWeight], learned: dict[str, IntegerWeight]) -> float:
    """Share of the learned weights' codes that differ from the start's."""
    different = sum(int((weight.codes != start[name].codes).sum()) for name, weight in learned.items())
    return different / sum(weight.codes.size for weight in learned.values())
