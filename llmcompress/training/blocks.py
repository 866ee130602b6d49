"""One decoder layer after another, by the error of its output (AutoRound, arXiv:2309.05516).

A layer is trained on what the compressed layers before it hand on, against what the original one makes of the
original's activations, so that it also takes back what was lost before it (GPTAQ, arXiv:2504.02692). In memory are one
layer in f32 with its gradients and, mapped from disk, the activations between two layers.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.graph.integer_weights import IntegerWeight, Rescaling
from llmcompress.graph.model import parameter_name
from llmcompress.report.training import TrainingCurve
from llmcompress.spec.training import Training
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.course import Course, durations_s, run
from llmcompress.training.devices import autocast
from llmcompress.training.layers import (
    DecoderLayer,
    Walk,
    decoder_layers,
    embedded,
    forget,
    handed_on,
    layer_list,
    mapped_like,
    output,
    read,
)
from llmcompress.training.student import Trained, fill, make_student


class Blocks(NamedTuple):
    """What is trained, and on what."""

    model: Any
    """Of the checkpoint's precision, weights as loaded; its layers are given up one by one."""
    weights: Mapping[str, IntegerWeight]
    names: frozenset[str]
    """Of those that are trained."""
    training: Training
    token_ids: NDArray[np.int64]
    """Windows to train on and, behind them, those held out."""
    num_training: int
    device: torch.device
    place: Path
    progress: Reporter
    rescaled: Mapping[str, Rescaling] = MappingProxyType({})
    """What AWQ did to weights, by their names."""
    keep_zeros: bool = False
    """Weights that a pruning has set to zero stay so."""

    @property
    def walk(self) -> Walk:
        """How its layers are taken."""
        return Walk(self.model, self.token_ids, self.device, self.place, self.training.batch_size)


@torch.no_grad()
def train_blocks(blocks: Blocks) -> Iterator[tuple[list[Trained], TrainingCurve]]:
    """Yield the trained weights of each decoder layer with its curve, before that layer is given up.

    What an earlier run finished is taken from the disk.

    Raises:
        ModelError: The model does not hand its activations from layer to layer unchanged.
    """
    layers, original, compressed = _begun(blocks)
    for number in range(len(layers)):
        layer = layers[number]
        layer.module.to(blocks.device, torch.float32)
        wanted = _wanted(blocks, layer, original)
        with torch.enable_grad():
            trained, course = _course(blocks, number, layer, compressed, wanted)
            if course is not None:
                yield trained, run(course)
            del trained, course
        handed_on(blocks.walk, layer, compressed, compressed)
        for window, later in zip(original, wanted, strict=True):
            window[:] = later
            forget(window)
            forget(later)
        _give_up(blocks, layers, number)
        del layer
        blocks.progress(Progress("train layers", number + 1, len(layers), "layers"))


def _give_up(blocks: Blocks, layers: list[DecoderLayer], number: int) -> None:
    """Let go of a layer that is done, and of all that its quantizers hold: two at once are more than memory should."""
    gone = torch.nn.Identity()
    blocks.model.get_submodule(layers[number].name.rpartition(".")[0])[number] = gone
    layers[number] = layers[number]._replace(module=gone)
    # Optimizers and parametrizations refer to themselves.
    gc.collect()


class LayerDurations(NamedTuple):
    """What a decoder layer takes, in seconds, measured by the first one."""

    num_layers: int
    window_s: float
    """To hand a window on, by the original and by the compressed layer."""
    step_s: float
    validation_s: float


@torch.no_grad()
def layer_durations(blocks: Blocks, deadline: float) -> LayerDurations:
    """Measure a model that is not to be used again, on few windows, until ``deadline`` (by ``time.monotonic``)."""
    layers, original, compressed = _begun(blocks)
    number, course, handed_on_s = 0, None, 0.0
    while course is None and number < len(layers):
        layer = layers[number]
        layer.module.to(blocks.device, torch.float32)
        started = time.monotonic()
        wanted = _wanted(blocks, layer, original)
        handed_on_s = time.monotonic() - started
        _, course = _course(blocks, number, layer, compressed, wanted)
        number += 1
    if course is None:
        return LayerDurations(0, 0.0, 0.0, 0.0)
    with torch.enable_grad():
        step_s, validation_s = durations_s(course, deadline)
    started = time.monotonic()
    handed_on(blocks.walk, layer, compressed, compressed)
    handed_on_s += time.monotonic() - started
    return LayerDurations(len(layers), handed_on_s / len(original), step_s, validation_s)


def _begun(blocks: Blocks) -> tuple[list[DecoderLayer], NDArray[np.float32], NDArray[np.float32]]:
    """The decoder layers, and what the first one is given by the original and by the compressed model."""
    list_name, modules = layer_list(blocks.model)
    if (head := blocks.model.get_output_embeddings()) is not None:
        # No pass comes so far.
        head.to("meta")
    original = embedded(blocks.walk, modules, "original")
    layers = decoder_layers(blocks.walk, list_name, modules, original)
    outside = [name for name in blocks.weights if not parameter_name(name).startswith(f"{list_name}.")]
    fill(blocks.model, blocks.weights, outside)
    compressed = embedded(blocks.walk, modules, "compressed")
    # What only embeds is done.
    blocks.model.get_input_embeddings().to("meta")
    return layers, original, compressed


def _wanted(blocks: Blocks, layer: DecoderLayer, original: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the original layer makes of the original's activations."""
    wanted = mapped_like(blocks.walk, original, "wanted")
    handed_on(blocks.walk, layer, original, wanted)
    return wanted


def _course(
    blocks: Blocks, number: int, layer: DecoderLayer, given: NDArray[np.float32], wanted: NDArray[np.float32]
) -> tuple[list[Trained], Course | None]:
    """The course of a layer, with its compressed weights in it; None where none of these is trained."""
    training, prefix = blocks.training, f"{layer.name}."
    own = {name: blocks.weights[name] for name in blocks.weights if parameter_name(name).startswith(prefix)}
    trainable = [name for name in own if name in blocks.names]
    if not trainable:
        fill(blocks.model, own, own)
        return [], None
    rescaled = {name: each for name, each in blocks.rescaled.items() if parameter_name(name).startswith(prefix)}
    what, zeros = frozenset(training.what), blocks.keep_zeros
    trained = make_student(blocks.model, own, trainable, what, rescaled, keep_zeros=zeros)
    # Of all positions: a constant, so that the loss is a share.
    powers = [read(wanted, slice(n, n + 1)).square().mean(dtype=torch.float64) for n in range(blocks.num_training)]
    power = float(torch.stack(powers).mean())

    def error(part: slice) -> torch.Tensor:
        inputs = read(given, part).to(blocks.device)
        with autocast(blocks.device):
            found = output(layer.module(inputs, **layer.arguments))
        expected = read(wanted, part).to(blocks.device)
        return (found.float() - expected).square().mean((1, 2)) / power

    def backward(batch: slice) -> float:
        loss = error(batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    @torch.no_grad()
    def validate() -> torch.Tensor:
        size, end = training.batch_size, len(blocks.token_ids)
        parts = range(blocks.num_training, end, size)
        return torch.cat([error(slice(first, min(first + size, end))).cpu() for first in parts])

    state_file = blocks.place / f"layer-{number:04d}.pt"
    learnables, num_windows = [learnable for each in trained for learnable in each.learnables], blocks.num_training
    name, progress = f"layer {number}", blocks.progress
    return trained, Course(name, learnables, training, num_windows, backward, validate, state_file, progress)
