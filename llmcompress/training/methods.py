"""The methods of training: what each makes of a compressed model, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.data import CalibrationWindows
from llmcompress.graph.integer_weights import IntegerWeight, Rescaling
from llmcompress.loaders.source import Source
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.training import TrainingCurve
from llmcompress.spec.training import Training
from llmcompress.system.progress import Progress, Reporter, silent
from llmcompress.training.blocks import Blocks, layer_durations, train_blocks
from llmcompress.training.budget import Durations
from llmcompress.training.course import Course, durations_s, run
from llmcompress.training.distillation import Windows, distillation
from llmcompress.training.student import Trained, make_student
from llmcompress.training.teacher import Teacher, ask

AddAdapters = Callable[[Any, Mapping[str, IntegerWeight], frozenset[str], NDArray[np.int64]], list[Trained]]
"""Prepares a torch model for ``fq_lora``, given the graph's weights, the names of those to train, and token ids."""


class TrainingTask(NamedTuple):
    """All that a method needs."""

    source: Source
    original: Source
    """What answers for ``distillation``: the source, or what was pruned to it."""
    weights: Mapping[str, IntegerWeight]
    names: frozenset[str]
    """Of the weights that are trained."""
    rescaled: Mapping[str, Rescaling]
    add_adapters: AddAdapters | None
    training: Training
    windows: CalibrationWindows
    validation: CalibrationWindows
    device: torch.device
    place: Path
    """For the state and what goes with it."""
    progress: Reporter
    keep_zeros: bool = False
    """Weights that a pruning has set to zero stay so."""


def learn(task: TrainingTask) -> Iterator[tuple[dict[str, IntegerWeight], TrainingCurve]]:
    """Train by the task's method; yields what weights hold then, by their names, and how that went."""
    if task.training.method == "blocks":
        for trained, curve in train_blocks(_blocks(task)):
            learned = {each.name: each.learned() for each in trained}
            # What the next layer needs must not wait for this one's.
            trained.clear()
            yield learned, curve
            learned.clear()
        return
    # NNCF's quantizers would want a compiler.
    with torch.compiler.set_stance("force_eager"):
        model = _in_f32(task)
        trained, course = _student(task, model, _asked(task, model))
        curve = run(course)
        yield {each.name: each.learned() for each in trained}, curve


def durations(task: TrainingTask, directory: Path, deadline: float) -> Durations:
    """Measure how long a training takes, on a model that is thrown away and a few windows.

    Args:
        task: What will be trained.
        directory: Existing one, for files that are not kept.
        deadline: By ``time.monotonic``: what is begun then is ended, and the rest predicted from it.
    """
    task.progress(Progress("measure a step", 0, 1))
    num_validation, size = len(task.validation.token_ids), task.training.batch_size
    few = task._replace(
        windows=replace(task.windows, token_ids=task.windows.token_ids[:size]),
        validation=replace(task.validation, token_ids=task.validation.token_ids[:size]),
        place=directory,
        progress=silent,
    )
    share = num_validation / len(few.validation.token_ids)
    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        if task.training.method == "blocks":
            layer = layer_durations(_blocks(few), deadline)
            num_windows = len(task.windows.token_ids) + num_validation
            found = Durations(num_windows * layer.window_s, 0.0, layer.step_s, share * layer.validation_s)
            found = Durations(*(layer.num_layers * each for each in found))
        else:
            model = _in_f32(few)
            started = time.monotonic()
            asked = _asked(few, model)
            asked_s, started = time.monotonic() - started, time.monotonic()
            _, course = _student(few, model, asked)
            fixed_s = time.monotonic() - started
            step_s, validation_s = durations_s(course, deadline)
            found = Durations(fixed_s, asked_s / len(asked.windows.token_ids), step_s, share * validation_s)
    task.progress(Progress("measure a step", 1, 1))
    return found


def _in_f32(task: TrainingTask, source: Source | None = None) -> Any:
    return load_torch_model(source or task.source).float().to(task.device)


class _Asked(NamedTuple):
    windows: Windows
    teacher: Teacher


def _asked(task: TrainingTask, model: Any) -> _Asked:
    windows = Windows(task.windows.token_ids[: task.training.num_used_windows], task.validation.token_ids)
    if task.original is not task.source:
        model = _in_f32(task, task.original)
    return _Asked(windows, ask(model, windows.token_ids, task.training.num_top_tokens, task.place, task.progress))


def _student(task: TrainingTask, model: Any, asked: _Asked) -> tuple[list[Trained], Course]:
    training = task.training
    if task.add_adapters is not None:
        trained = task.add_adapters(model, task.weights, task.names, asked.windows.token_ids)
    else:
        what, zeros = frozenset(training.what), task.keep_zeros
        trained = make_student(model, task.weights, task.names, what, task.rescaled, keep_zeros=zeros)
    state_file = task.place / "state.pt"
    learnables = [learnable for each in trained for learnable in each.learnables]
    return trained, distillation(model, learnables, training, *asked, state_file, task.progress)


def _blocks(task: TrainingTask) -> Blocks:
    given = [task.windows.token_ids, task.validation.token_ids]
    return Blocks(
        model=load_torch_model(task.source),
        weights=task.weights,
        names=task.names,
        rescaled=task.rescaled,
        training=task.training,
        token_ids=np.concatenate(given),
        num_training=len(given[0]),
        device=task.device,
        place=task.place,
        progress=task.progress,
        keep_zeros=task.keep_zeros,
    )
