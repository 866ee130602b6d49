"""Decoder layers that a model can do without."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.spec.pruning import Pruning
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.layers import layer_list, output
from llmcompress.training.pruning.configuration import chosen, shrink


class DroppedLayers(NamedTuple):
    """What went, by the numbers in the original."""

    layers: tuple[int, ...]
    scores: tuple[float, ...] = ()
    """KL divergence of dropping each layer alone; empty where nothing was measured."""


def drop_layers(model: Any, pruning: Pruning, layers: Collection[int]) -> None:
    """Take layers out of a model, and say so in its configuration."""
    name, modules = layer_list(model)
    _put(model, name, [module for number, module in enumerate(modules) if number not in layers])
    shrink(model.config, pruning, layers)


@torch.no_grad()
def choose_layers(
    model: Any,
    pruning: Pruning,
    token_ids: NDArray[np.int64],
    divergence: Callable[[], float],
    progress: Reporter,
) -> DroppedLayers:
    """Choose the layers that go; the model stays whole.

    Args:
        model: The original.
        pruning: How many, or up to what.
        token_ids: int64 ``[num_windows, seq_len]``.
        divergence: The KL divergence of the model, as it is, to the original on these windows.
        progress: Told of every drop that is measured.
    """
    if pruning.layers is not None:
        return DroppedLayers(tuple(sorted(chosen(model.config.get_text_config(), pruning))))
    if pruning.selection == "contiguous":
        return DroppedLayers(_nearest_in_angle(model, token_ids, len(chosen(model.config.get_text_config(), pruning))))
    return _greedy(model, pruning, divergence, progress)


def _greedy(model: Any, pruning: Pruning, divergence: Callable[[], float], progress: Reporter) -> DroppedLayers:
    num_layers = len(layer_list(model)[1])
    num_dropped = len(chosen(model.config.get_text_config(), pruning)) if pruning.num_layers else num_layers - 1
    dropped: list[int] = []
    first: tuple[float, ...] = ()
    while len(dropped) < num_dropped:
        scores: dict[int, float] = {}
        left = [number for number in range(num_layers) if number not in dropped]
        stage = f"drop layer {len(dropped) + 1} of {num_dropped}"
        for number in left:
            progress(Progress(stage, len(scores), len(left), "measured"))
            with _without(model, pruning, {*dropped, number}):
                scores[number] = divergence()
        progress(Progress(stage, len(left), len(left), "measured"))
        first = first or tuple(scores.values())
        best = min(scores, key=lambda number: scores[number])
        if pruning.max_kl is not None and scores[best] > pruning.max_kl:
            break
        dropped.append(best)
    return DroppedLayers(tuple(sorted(dropped)), first)


@contextlib.contextmanager
def _without(model: Any, pruning: Pruning, layers: Collection[int]) -> Iterator[None]:
    (name, modules), text = layer_list(model), model.config.get_text_config()
    before = dict(vars(text))
    drop_layers(model, pruning, layers)
    try:
        yield
    finally:
        vars(text).update(before)
        _put(model, name, modules)


def _put(model: Any, name: str, modules: Iterable[torch.nn.Module]) -> None:
    """Make these the decoder layers, each with its place in the cache."""
    modules = list(modules)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, torch.nn.ModuleList(modules))
    for number, module in enumerate(modules):
        for each in module.modules():
            if isinstance(getattr(each, "layer_idx", None), int):
                each.layer_idx = number  # type: ignore[assignment]


def _nearest_in_angle(model: Any, token_ids: NDArray[np.int64], num_dropped: int) -> tuple[int, ...]:
    """The block whose input and output are nearest, by the mean angle of the last token's (arXiv:2403.17887)."""
    modules = layer_list(model)[1]
    states: list[torch.Tensor] = []

    def given(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        states.append(args[0][:, -1].float())

    def made(_: Any, __: Any, returned: Any) -> None:
        states.append(output(returned)[:, -1].float())

    hooks = [module.register_forward_pre_hook(given) for module in modules]
    hooks.append(modules[-1].register_forward_hook(made))
    angles = torch.zeros(len(modules) - num_dropped + 1, dtype=torch.float64)
    try:
        for window in token_ids:
            states.clear()
            model(torch.from_numpy(window[None].copy()).to(model.device), use_cache=False)
            for first in range(len(angles)):
                cosine = torch.cosine_similarity(states[first], states[first + num_dropped], dim=-1)
                angles[first] += float(cosine.clamp(-1, 1).arccos().mean()) / math.pi
    finally:
        for hook in hooks:
            hook.remove()
    first = int(angles.argmin())
    return tuple(range(first, first + num_dropped))
