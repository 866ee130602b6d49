"""One decoder layer after another, by the error of its output (AutoRound, arXiv:2309.05516).

A layer is trained on what the compressed layers before it hand on, against what the original one makes of the
original's activations, so that it also takes back what was lost before it (GPTAQ, arXiv:2504.02692). In memory are one
layer in f32 with its gradients and, mapped from disk, the activations between two layers.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize

from llmcompress.errors import ModelError
from llmcompress.graph.integer_weights import IntegerWeight, Rescaling
from llmcompress.graph.model import parameter_name
from llmcompress.report.training import TrainingCurve
from llmcompress.spec.training import Training
from llmcompress.system.memory import forget_file_pages
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.course import Course, durations_s, run
from llmcompress.training.devices import autocast
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


class DecoderLayer(NamedTuple):
    """A decoder layer and what the model hands it besides the activations."""

    name: str
    module: torch.nn.Module
    arguments: dict[str, Any]


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
        wanted = _handed_on(blocks, layer, original, "wanted")
        with torch.enable_grad():
            course = _course(blocks, number, layer, compressed, wanted)
            if course is not None:
                yield list(course.trained), run(course)
            del course
        _handed_on(blocks, layer, compressed, "compressed")
        for window, later in zip(original, wanted, strict=True):
            window[:] = later
            _forget(window)
            _forget(later)
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
        wanted = _handed_on(blocks, layer, original, "wanted")
        handed_on_s = time.monotonic() - started
        course = _course(blocks, number, layer, compressed, wanted)
        number += 1
    if course is None:
        return LayerDurations(0, 0.0, 0.0, 0.0)
    with torch.enable_grad():
        step_s, validation_s = durations_s(course, deadline)
    started = time.monotonic()
    _handed_on(blocks, layer, compressed, "compressed")
    handed_on_s += time.monotonic() - started
    return LayerDurations(len(layers), handed_on_s / len(original), step_s, validation_s)


def _begun(blocks: Blocks) -> tuple[list[DecoderLayer], NDArray[np.float32], NDArray[np.float32]]:
    """The decoder layers, and what the first one is given by the original and by the compressed model."""
    list_name, modules = _layer_list(blocks)
    if (head := blocks.model.get_output_embeddings()) is not None:
        # No pass comes so far.
        head.to("meta")
    original = _embedded(blocks, modules, "original")
    layers = _layers(blocks, list_name, modules, original)
    outside = [name for name in blocks.weights if not parameter_name(name).startswith(f"{list_name}.")]
    fill(blocks.model, blocks.weights, outside)
    compressed = _embedded(blocks, modules, "compressed")
    # What only embeds is done.
    blocks.model.get_input_embeddings().to("meta")
    return layers, original, compressed


def _course(
    blocks: Blocks, number: int, layer: DecoderLayer, given: NDArray[np.float32], wanted: NDArray[np.float32]
) -> Course | None:
    """The course of a layer, with its compressed weights in it; None where none of these is trained."""
    training, prefix = blocks.training, f"{layer.name}."
    own = {name: blocks.weights[name] for name in blocks.weights if parameter_name(name).startswith(prefix)}
    trainable = [name for name in own if name in blocks.names]
    if not trainable:
        fill(blocks.model, own, own)
        return None
    rescaled = {name: each for name, each in blocks.rescaled.items() if parameter_name(name).startswith(prefix)}
    trained = make_student(blocks.model, own, trainable, frozenset(training.what), rescaled)
    # Of all positions: a constant, so that the loss is a share.
    powers = [_read(wanted, slice(n, n + 1)).square().mean(dtype=torch.float64) for n in range(blocks.num_training)]
    power = float(torch.stack(powers).mean())

    def error(part: slice) -> torch.Tensor:
        inputs = _read(given, part).to(blocks.device)
        with autocast(blocks.device):
            found = _output(layer.module(inputs, **layer.arguments))
        expected = _read(wanted, part).to(blocks.device)
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
    return Course(
        f"layer {number}", trained, training, blocks.num_training, backward, validate, state_file, blocks.progress
    )


def _layer_list(blocks: Blocks) -> tuple[str, torch.nn.ModuleList]:
    """The decoder layers, and their name in the model."""
    num_layers = blocks.model.config.get_text_config().num_hidden_layers
    for name, module in blocks.model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return name, module
    raise _not_in_layers(blocks, f"it has no list of {num_layers} decoder layers")


def _layers(
    blocks: Blocks, list_name: str, modules: torch.nn.ModuleList, first: NDArray[np.float32]
) -> list[DecoderLayer]:
    """Each decoder layer with its further arguments, by a pass in which layers return what they are given."""
    inputs = torch.from_numpy(first[:1].copy())
    calls = _calls(blocks, modules, returns_tuple=False, until=0)
    modules[0].to(torch.float32)
    returns_tuple = isinstance(modules[0](inputs, **_in_f32(calls[0][1])), tuple)
    calls = _calls(blocks, modules, returns_tuple=returns_tuple, until=len(modules) - 1)
    if len(calls) != len(modules) or any(not torch.equal(given.float(), inputs) for given, _ in calls):
        raise _not_in_layers(blocks, "it changes the activations between its layers")
    return [
        DecoderLayer(f"{list_name}.{number}", module, _on(_in_f32(arguments), blocks.device))
        for number, (module, (_, arguments)) in enumerate(zip(modules, calls, strict=True))
    ]


class _EnoughError(Exception):
    """Ends a pass through the model."""


def _calls(
    blocks: Blocks, modules: torch.nn.ModuleList, *, returns_tuple: bool, until: int
) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """What each layer up to one is called with when every one returns what it is given."""
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []
    names = list(inspect.signature(type(modules[0]).forward).parameters)[2:]

    def recorded(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((hidden_states, dict(zip(names, args, strict=False)) | kwargs))
        if len(calls) > until:
            raise _EnoughError
        return (hidden_states,) if returns_tuple else hidden_states

    with contextlib.ExitStack() as stack:
        for module in modules:
            vars(module)["forward"] = recorded
            stack.callback(vars(module).pop, "forward")
        with contextlib.suppress(_EnoughError):
            blocks.model(torch.from_numpy(blocks.token_ids[:1].copy()), use_cache=False)
    return calls


def _embedded(blocks: Blocks, modules: torch.nn.ModuleList, name: str) -> NDArray[np.float32]:
    """What the first layer is given, for all windows, in a mapped file."""
    blocks.model.get_input_embeddings().float()
    hidden: NDArray[np.float32] | None = None
    for number in range(len(blocks.token_ids)):
        one = blocks._replace(token_ids=blocks.token_ids[number : number + 1])
        ((given, _),) = _calls(one, modules, returns_tuple=False, until=0)
        if hidden is None:
            shape = (len(blocks.token_ids), *given.shape[1:])
            hidden = np.lib.format.open_memmap(blocks.place / f"{name}.npy", "w+", np.float32, shape)
        hidden[number] = given[0].float().numpy()
        _forget(hidden[number])
    assert hidden is not None
    return hidden


def _handed_on(blocks: Blocks, layer: DecoderLayer, given: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """What a layer makes of the activations, into the mapped file of that name."""
    into = given
    if name == "wanted":
        into = np.lib.format.open_memmap(blocks.place / "wanted.npy", "w+", np.float32, given.shape)
    size = blocks.training.batch_size
    with parametrize.cached():
        for first in range(0, len(given), size):
            part = slice(first, first + size)
            inputs = _read(given, part).to(blocks.device)
            into[part] = _output(layer.module(inputs, **layer.arguments)).cpu().numpy()
            _forget(into[part])
    return into


def _read(activations: NDArray[np.float32], part: slice) -> torch.Tensor:
    """Some windows of a mapped file, which takes no memory then."""
    windows = activations[part]
    copied = torch.from_numpy(windows.copy())
    _forget(windows)
    return copied


def _forget(windows: NDArray[np.float32]) -> None:
    forget_file_pages(windows.ctypes.data, windows.nbytes)


def _output(returned: Any) -> torch.Tensor:
    output: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
    return output


def _in_f32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_in_f32(each) for each in value)
    return {name: _in_f32(each) for name, each in value.items()} if isinstance(value, dict) else value


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_on(each, device) for each in value)
    return {name: _on(each, device) for name, each in value.items()} if isinstance(value, dict) else value


def _not_in_layers(blocks: Blocks, problem: str) -> ModelError:
    return ModelError(
        f"the layers of {type(blocks.model).__name__} cannot be trained one after another: {problem}",
        where="training.method",
        hint="write training.method: distillation",
    )
