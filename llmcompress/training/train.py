"""A compressed graph and its checkpoint in, the same graph with learned bits out."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.data import CalibrationWindows
from llmcompress.errors import DataError, ModelError
from llmcompress.graph.integer_weights import (
    FLOATS,
    INTEGERS,
    GraphWeights,
    IntegerWeight,
    Rescaling,
    integer_weights,
    replace_integer_weights,
)
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.source import Source
from llmcompress.report.record import Provenance
from llmcompress.report.training import TrainingCurve, TrainingRecord
from llmcompress.spec import Recipe, Training, WeightCompression
from llmcompress.spec.modes import INT8
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, installed_versions
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    import torch

    from llmcompress.training.methods import AddAdapters, TrainingTask

ELEMENTS = {mode: element for element, mode in (INTEGERS | FLOATS).items()}
"""How the codes of each mode are stored."""
SPARE = 2
"""Times the windows that are to validate are drawn: some may repeat what is trained on."""


class TrainingWindows(NamedTuple):
    """What is trained on, and what is held out."""

    training: CalibrationWindows
    validation: CalibrationWindows


class Inputs(NamedTuple):
    """What a training needs besides the model and the recipe."""

    windows: TrainingWindows
    scratch_dir: Path
    """Existing directory for what need not be kept."""
    rescaled: Mapping[str, Rescaling]
    """What AWQ did to weights, by their names."""
    add_adapters: AddAdapters | None = None
    """For ``fq_lora``."""
    original: Source | None = None
    """What answers for ``distillation`` where the loaded model was pruned."""


def train(loaded: LoadedModel, recipe: Recipe, inputs: Inputs, progress: Reporter) -> TrainingRecord:
    """Learn the bits of a compressed graph's weights, and put them into it.

    An interrupted training leaves its state in the cache; the same call goes on from there and ends in the same bytes
    (same versions and number of threads; accelerators may sum in another order).

    Args:
        loaded: Its model is compressed by the recipe.
        recipe: With a part ``training``.
        inputs: Text, place and time.
        progress: Told of every step.

    Raises:
        ModelError: No weight can be trained.
        UsageError: This machine does not have the device, or there is no time for a step.
    """
    from llmcompress.training.devices import training_device
    from llmcompress.training.methods import TrainingTask, learn

    training, windows = recipe.training, inputs.windows
    assert training is not None
    assert recipe.weights is not None
    device = training_device(training.device)
    weights = integer_weights(loaded.model)
    names = trainable(weights, recipe.weights, where=loaded.source.name)
    state_dir = state_directory(loaded.provenance, recipe, windows)
    with writable(state_dir, inputs.scratch_dir) as place:
        task = TrainingTask(
            source=loaded.source,
            original=inputs.original or loaded.source,
            weights=weights,
            names=names,
            rescaled=inputs.rescaled,
            add_adapters=inputs.add_adapters,
            training=training,
            windows=windows.training,
            validation=windows.validation,
            device=device,
            place=place,
            progress=progress,
            keep_zeros=recipe.keeps_zeros,
        )
        if training.budget_s is not None:
            task = task._replace(training=_within(task, training.budget_s))
        curves, changes = [], CodeChanges()
        for learned, curve in learn(task):
            changes = changed_codes(weights, learned, changes)
            replace_integer_weights(loaded.model, learned)
            curves.append(curve)
    shutil.rmtree(state_dir, ignore_errors=True)
    return _record(task, training.budget_s, changes, curves)


def _within(task: TrainingTask, budget_s: float) -> Training:
    from llmcompress.training.budget import kept_num_steps
    from llmcompress.training.methods import durations

    measure = functools.partial(durations, task)
    num_windows = len(task.windows.token_ids)
    return task.training.with_num_steps(kept_num_steps(task.place, budget_s, task.training, num_windows, measure))


def training_record(
    training: Training, windows: TrainingWindows, device: torch.device, curves: Sequence[TrainingCurve]
) -> TrainingRecord:
    """What every method's record holds."""
    from llmcompress.training.devices import multiplies_in

    return TrainingRecord(
        method=training.method,
        loss="output_error" if training.method == "blocks" else "kl_divergence",
        windows=windows.training.record,
        validation=windows.validation.record,
        num_steps=training.num_steps,
        device=device.type,
        products_in=multiplies_in(device),
        curves=tuple(curves),
    )


def _record(
    task: TrainingTask, budget_s: float | None, changes: CodeChanges, curves: Sequence[TrainingCurve]
) -> TrainingRecord:
    record = training_record(task.training, TrainingWindows(task.windows, task.validation), task.device, curves)
    bits = {"budget_s": budget_s, "num_layers": changes.num_weights, "changed_codes": changes.share}
    return record.model_copy(update=bits)


def trainable(weights: GraphWeights, compression: WeightCompression, *, where: str) -> frozenset[str]:
    """Names of the weights with codes of a compression's mode, or of a rule's mode of fewer than 8 bits.

    Raises:
        ModelError: There are none.
    """
    modes = {compression.mode, *(rule.mode for rule in compression.rules if rule.mode not in INT8)}
    names = frozenset().union(*(weights.names_of(ELEMENTS.get(mode)) for mode in modes))
    if not names:
        raise ModelError(
            f"no layer was compressed to integers of {compression.mode}, so that there is nothing to train",
            where=where,
            hint="take another group_size or ratio, or a recipe without training",
        )
    return names


def require_apart(windows: CalibrationWindows, validation: CalibrationWindows) -> TrainingWindows:
    """Windows with those of a validation text of its own.

    Raises:
        DataError: The two have a sequence in common.
    """
    from llmcompress.data.disjoint import SEQUENCE, sequence_hashes, shares_sequence

    num_shared = int(shares_sequence(validation.token_ids, sequence_hashes(windows.token_ids)).sum())
    if num_shared:
        raise DataError(
            f"{num_shared} of {len(validation.token_ids)} windows to validate on have a sequence of {SEQUENCE} tokens "
            f"in common with those to train on",
            where=validation.record.dataset,
            hint="take another text for training.validation, or leave it out: windows are held out then",
        )
    return TrainingWindows(windows, validation)


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


def state_directory(provenance: Provenance, recipe: Recipe, windows: TrainingWindows) -> Path:
    """Where the state of an interrupted training is kept; it is held from now on."""
    import torch

    key = content_key(
        {
            "files": [file.sha256 for file in provenance.files],
            "recipe": recipe.portable().model_dump(mode="json", exclude={"name", "description", "gate", "runtime"}),
            "training": windows.training.record.token_ids_sha256,
            "validation": windows.validation.record.token_ids_sha256,
            "versions": installed_versions(PACKAGES_THAT_DECIDE_BYTES),
            "num_threads": torch.get_num_threads(),
        }
    )
    state_dir = cache_dir() / "training" / key
    hold(state_dir)
    return state_dir


@contextlib.contextmanager
def writable(state_dir: Path, scratch_dir: Path) -> Iterator[Path]:
    """The state's directory, or where the cache cannot be written the scratch one: nothing is kept then."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield scratch_dir
        return
    yield state_dir


class CodeChanges(NamedTuple):
    """What became of codes."""

    num_weights: int = 0
    num_codes: int = 0
    num_changed: int = 0

    @property
    def share(self) -> float:
        """Of the codes."""
        return self.num_changed / self.num_codes


def changed_codes(
    start: Mapping[str, IntegerWeight], learned: Mapping[str, IntegerWeight], before: CodeChanges
) -> CodeChanges:
    """Count the learned weights' codes and those that differ from the start's, on top of those counted before."""
    return CodeChanges(
        before.num_weights + len(learned),
        before.num_codes + sum(weight.codes.size for weight in learned.values()),
        before.num_changed + sum(int((each.codes != start[name].codes).sum()) for name, each in learned.items()),
    )
