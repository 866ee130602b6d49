"""A checkpoint in, a smaller one out: what goes is chosen, taken away and healed in torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.loaders.source import Source
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.pruning import PrunedLayer, PruningRecord
from llmcompress.report.training import TrainingCurve
from llmcompress.spec.pruning import UNSTRUCTURED, Pruning
from llmcompress.spec.training import Training
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.budget import Durations, kept_num_steps
from llmcompress.training.course import Course, durations_s, put_back, run
from llmcompress.training.devices import training_device
from llmcompress.training.distillation import Windows, distillation
from llmcompress.training.layers import Walk, decoder_layers, embedded, handed_on, layer_list
from llmcompress.training.pruning.checkpoint import save_checkpoint
from llmcompress.training.pruning.configuration import require_prunable, shrink
from llmcompress.training.pruning.depth import choose_layers, drop_layers
from llmcompress.training.pruning.experts import drop_experts
from llmcompress.training.pruning.healing import learnables, merged
from llmcompress.training.pruning.inputs import hessians, linears_of
from llmcompress.training.pruning.masks import by_magnitude, by_wanda
from llmcompress.training.pruning.sparsegpt import sparsegpt
from llmcompress.training.pruning.text import Text, divergence, text_of
from llmcompress.training.pruning.width import narrow
from llmcompress.training.teacher import Teacher, ask

BATCH_SIZE = 8
"""Windows that a decoder layer is given at once."""


class Healing(NamedTuple):
    """How, and on what."""

    training: Training
    windows: Windows
    state_dir: Path
    """Existing directory, for the state of an interrupted training and the original's answers."""


class PruneTask(NamedTuple):
    """All that a pruning needs."""

    source: Source
    """A checkpoint whose files are there."""
    pruning: Pruning
    token_ids: NDArray[np.int64] | None
    """Windows of the text that decides; None: none is needed."""
    healing: Healing | None
    place: Path
    """Existing directory for what need not be kept."""
    progress: Reporter


class Healed(NamedTuple):
    """How a healing went."""

    training: Training
    """With the steps that its time sufficed for."""
    curve: TrainingCurve


class Pruned(NamedTuple):
    """What became of a checkpoint."""

    path: Path
    """A directory with a checkpoint as transformers saves it, and the original's tokenizer."""
    record: PruningRecord
    healed: Healed | None


def prune(task: PruneTask) -> Pruned:
    """Prune a checkpoint into one of its own.

    Raises:
        RecipeError: The model has not what is to go, or nothing would be left of it.
        ModelError: Its parts have other names, or what is left does not open as a checkpoint.
        UsageError: The time for the healing is too short for one step.
    """
    healing = task.healing
    device = training_device(healing.training.device if healing else "cpu")
    model = load_torch_model(task.source)
    require_prunable(model.config, task.pruning)
    dtype, num_before = model.dtype, _num_parameters(model)
    model = model.float().to(device)
    text = None if task.token_ids is None else text_of(model, task.token_ids, task.place, task.progress)
    answers = _answers(model, healing, task.progress) if healing else None
    record = _taken_away(model, task, text)
    before = divergence(model, text) if text else None
    healed = _healed(model, healing, answers, task) if healing and answers else None
    model = model.to("cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    record = record.model_copy(
        update={
            "num_parameters_before": num_before,
            "num_parameters": _num_parameters(model),
            "kl_divergence": before,
            "kl_divergence_healed": divergence(model, text) if text and healed is not None else None,
            "density": _density(model) if task.pruning.method in UNSTRUCTURED else None,
        }
    )
    return Pruned(save_checkpoint(model, dtype, task.source, task.place), record, healed)


def _taken_away(model: Any, task: PruneTask, text: Text | None) -> PruningRecord:
    pruning, record = task.pruning, PruningRecord(method=task.pruning.method, num_parameters_before=0, num_parameters=0)
    token_ids = task.token_ids if task.token_ids is not None else np.zeros((0, 0), np.int64)
    if pruning.method == "depth":
        dropped = choose_layers(model, pruning, text, task.progress)
        drop_layers(model, pruning, dropped.layers)
        return record.model_copy(update={"layers": dropped.layers, "layer_scores": dropped.scores})
    if pruning.method == "experts":
        return record.model_copy(update={"parts": drop_experts(model, pruning, token_ids, task.progress)})
    if pruning.method == "magnitude":
        for module in layer_list(model)[1]:
            for linear in linears_of(module).values():
                linear.weight.data.mul_(by_magnitude(linear.weight.data, pruning))
        return record
    return record.model_copy(update={"parts": _layer_by_layer(model, task, token_ids)})


@torch.no_grad()
def _layer_by_layer(model: Any, task: PruneTask, token_ids: NDArray[np.int64]) -> tuple[PrunedLayer, ...]:
    """Prune one decoder layer after another, each by what the pruned ones before it hand on."""
    pruning, lost = task.pruning, []
    walk = Walk(model, token_ids, model.device, task.place, BATCH_SIZE)
    name, modules = layer_list(model)
    hidden = embedded(walk, modules, "hidden")
    layers = decoder_layers(walk, name, modules, hidden)
    for number, layer in enumerate(layers):
        task.progress(Progress("prune layers", number, len(layers), "layers"))
        if pruning.method == "width":
            lost += narrow(walk, layer, hidden, pruning)
        else:
            linears = linears_of(layer.module)
            # What is given to a layer that no token reaches, such as an expert, is unknown.
            for each, hessian in hessians(walk, layer, hidden, linears).items():
                weight = linears[each].weight.data
                if pruning.method == "wanda":
                    weight.mul_(by_wanda(weight, hessian, pruning))
                else:
                    weight.copy_(sparsegpt(weight, hessian, pruning))
        handed_on(walk, layer, hidden, hidden)
    if pruning.method == "width":
        shrink(model.config, pruning)
    task.progress(Progress("prune layers", len(layers), len(layers), "layers"))
    return tuple(lost)


class _Answers(NamedTuple):
    """What the original says, and how long that took."""

    teacher: Teacher
    duration_s: float


def _answers(model: Any, healing: Healing, progress: Reporter) -> _Answers:
    started = time.monotonic()
    teacher = ask(model, healing.windows.token_ids, healing.training.num_top_tokens, healing.state_dir, progress)
    return _Answers(teacher, time.monotonic() - started)


def _healed(model: Any, healing: Healing, answers: _Answers, task: PruneTask) -> Healed:
    training = healing.training
    # Not of what wants no gradient, such as the text's answers.
    with torch.enable_grad():
        parts = learnables(model, training, keep_zeros=task.pruning.method in UNSTRUCTURED)

        def course(training: Training, state_dir: Path) -> Course:
            file = state_dir / "healing.pt"
            return distillation(model, parts, training, healing.windows, answers.teacher, file, task.progress)

        def measure(directory: Path, deadline: float) -> Durations:
            task.progress(Progress("measure a step", 0, 1))
            step_s, validation_s = durations_s(course(training, directory), deadline)
            put_back(parts)
            task.progress(Progress("measure a step", 1, 1))
            return Durations(0.0, 0.0, step_s, validation_s)

        if training.budget_s is not None:
            left_s, num_windows = training.budget_s - answers.duration_s, healing.windows.num_training
            num_steps = kept_num_steps(healing.state_dir, left_s, training, num_windows, measure)
            training = training.with_num_steps(num_steps)
        curve = run(course(training, healing.state_dir))
    model.gradient_checkpointing_disable()
    model.eval()
    merged(model)
    return Healed(training, curve)


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _density(model: Any) -> float:
    linears = [linear for module in layer_list(model)[1] for linear in linears_of(module).values()]
    total = sum(linear.weight.numel() for linear in linears)
    return sum(int(linear.weight.count_nonzero()) for linear in linears) / total
