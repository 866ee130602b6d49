"""The decoder layers of a torch model one after another, with the activations between two of them on disk."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize

from llmcompress.errors import ModelError
from llmcompress.system.memory import forget_file_pages


class Walk(NamedTuple):
    """A model whose layers are taken one after another."""

    model: Any
    """Of the checkpoint's precision."""
    token_ids: NDArray[np.int64]
    """``[num_windows, seq_len]``."""
    device: torch.device
    place: Path
    """Existing directory for the activations."""
    batch_size: int
    """Windows that a layer is given at once."""


class DecoderLayer(NamedTuple):
    """A decoder layer and what the model hands it besides the activations."""

    name: str
    module: torch.nn.Module
    arguments: dict[str, Any]


def layer_list(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The decoder layers, and their name in the model."""
    num_layers = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    ]
    if not found:
        raise _not_in_layers(model, f"it has no list of {num_layers} decoder layers")
    # What sees may have as many.
    return next((each for each in found if "language_model" in each[0]), found[0])


def decoder_layers(
    walk: Walk, list_name: str, modules: torch.nn.ModuleList, first: NDArray[np.float32]
) -> list[DecoderLayer]:
    """Each decoder layer with its further arguments, by a pass in which layers return what they are given."""
    inputs = torch.from_numpy(first[:1].copy())
    calls = _calls(walk, modules, returns_tuple=False, until=0)
    modules[0].to(torch.float32)
    returns_tuple = isinstance(modules[0](inputs, **_in_f32(calls[0][1])), tuple)
    calls = _calls(walk, modules, returns_tuple=returns_tuple, until=len(modules) - 1)
    if len(calls) != len(modules) or any(not torch.equal(given.float(), inputs) for given, _ in calls):
        raise _not_in_layers(walk.model, "it changes the activations between its layers")
    return [
        DecoderLayer(f"{list_name}.{number}", module, _on(_in_f32(arguments), walk.device))
        for number, (module, (_, arguments)) in enumerate(zip(modules, calls, strict=True))
    ]


class _EnoughError(Exception):
    """Ends a pass through the model."""


def _calls(
    walk: Walk, modules: torch.nn.ModuleList, *, returns_tuple: bool, until: int
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
            walk.model(torch.from_numpy(walk.token_ids[:1].copy()), use_cache=False)
    return calls


def embedded(walk: Walk, modules: torch.nn.ModuleList, name: str) -> NDArray[np.float32]:
    """What the first layer is given, for all windows, in a mapped file."""
    walk.model.get_input_embeddings().float()
    hidden: NDArray[np.float32] | None = None
    for number in range(len(walk.token_ids)):
        one = walk._replace(token_ids=walk.token_ids[number : number + 1])
        ((given, _),) = _calls(one, modules, returns_tuple=False, until=0)
        if hidden is None:
            shape = (len(walk.token_ids), *given.shape[1:])
            hidden = np.lib.format.open_memmap(walk.place / f"{name}.npy", "w+", np.float32, shape)
        hidden[number] = given[0].float().numpy()
        forget(hidden[number])
    assert hidden is not None
    return hidden


def handed_on(walk: Walk, layer: DecoderLayer, given: NDArray[np.float32], into: NDArray[np.float32]) -> None:
    """Write what a layer makes of the activations into a mapped file of their shape, which may be their own."""
    with parametrize.cached():
        for first in range(0, len(given), walk.batch_size):
            part = slice(first, first + walk.batch_size)
            into[part] = output(layer.module(read(given, part).to(walk.device), **layer.arguments)).cpu().numpy()
            forget(into[part])


def mapped_like(walk: Walk, activations: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """A mapped file for further activations."""
    return np.lib.format.open_memmap(walk.place / f"{name}.npy", "w+", np.float32, activations.shape)


def read(activations: NDArray[np.float32], part: slice) -> torch.Tensor:
    """Some windows of a mapped file, which takes no memory then."""
    windows = activations[part]
    copied = torch.from_numpy(windows.copy())
    forget(windows)
    return copied


def forget(windows: NDArray[np.float32]) -> None:
    """Give the memory of some windows of a mapped file back to the system."""
    forget_file_pages(windows.ctypes.data, windows.nbytes)


def output(returned: Any) -> torch.Tensor:
    """The activations in what a layer returns."""
    activations: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
    return activations


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


def _not_in_layers(model: Any, problem: str) -> ModelError:
    return ModelError(
        f"the layers of {type(model).__name__} cannot be taken one after another: {problem}",
        hint="write training.method: distillation, or pruning.method: depth or magnitude",
    )
