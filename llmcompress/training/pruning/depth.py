"""Decoder layers that a model can do without."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch

from llmcompress.spec.pruning import Pruning
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.layers import layer_list, output
from llmcompress.training.pruning.configuration import chosen, shrink
from llmcompress.training.pruning.text import Text, window, window_divergence


class DroppedLayers(NamedTuple):
    """What went, by the numbers in the original, in the order in which it did."""

    layers: tuple[int, ...]
    scores: tuple[float, ...] = ()
    """KL divergence of dropping each layer alone; empty where nothing was measured."""


def drop_layers(model: Any, pruning: Pruning, layers: Collection[int]) -> None:
    """Take layers out of a model, and say so in its configuration."""
    name, modules = layer_list(model)
    _put(model, name, [module for number, module in enumerate(modules) if number not in layers])
    shrink(model.config, pruning, layers)


@torch.no_grad()
def choose_layers(model: Any, pruning: Pruning, text: Text | None, progress: Reporter) -> DroppedLayers:
    """Choose the layers that go; the model stays whole.

    Args:
        model: The original.
        pruning: How many, or up to what.
        text: What decides; None where layers are named.
        progress: Told of every drop that is measured.
    """
    if pruning.layers is not None or text is None:
        return DroppedLayers(tuple(sorted(chosen(model.config.get_text_config(), pruning))))
    if pruning.selection == "contiguous":
        return DroppedLayers(_nearest_in_angle(model, text, len(chosen(model.config.get_text_config(), pruning))))
    return _greedy(model, pruning, text, progress)


def _greedy(model: Any, pruning: Pruning, text: Text, progress: Reporter) -> DroppedLayers:
    num_layers = len(layer_list(model)[1])
    num_dropped = len(chosen(model.config.get_text_config(), pruning)) if pruning.num_layers else num_layers - 1
    can_skip = _can_skip(model, window(model, text.token_ids, 0))
    dropped: list[int] = []
    first: tuple[float, ...] = ()
    while len(dropped) < num_dropped:
        left = [number for number in range(num_layers) if number not in dropped]
        total, stage = len(text.token_ids) * len(left), f"drop layer {len(dropped) + 1} of {num_dropped}"
        found: list[list[float]] = [[] for _ in left]
        for number in range(len(text.token_ids)):
            with _without(model, pruning, dropped):
                handed = _handed(model, window(model, text.token_ids, number)) if can_skip else ()
            for place, layer in enumerate(left):
                progress(Progress(stage, number * len(left) + place, total, "measurements"))
                with _without(model, pruning, {*dropped, layer}), _skipped(model, place, handed):
                    found[place].append(window_divergence(model, text, number))
        progress(Progress(stage, total, total, "measurements"))
        scores = [fmean(each) for each in found]
        first = first or tuple(scores)
        best = min(range(len(left)), key=lambda place: scores[place])
        if pruning.max_kl is not None and scores[best] > pruning.max_kl:
            break
        dropped.append(left[best])
    return DroppedLayers(tuple(dropped), first)


def _handed(model: Any, ids: torch.Tensor) -> list[Any]:
    """What each layer, and then the end of the model, is handed on a window, as layers return it."""
    handed: list[Any] = []
    modules = layer_list(model)[1]

    def given(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        handed.append(args[0])

    def made(module: torch.nn.Module, args: tuple[Any, ...], returned: Any) -> None:
        is_tuple = isinstance(returned, tuple)
        handed[:] = [((each, *returned[1:]) if is_tuple else each) for each in (*handed, output(returned))]

    hooks = [module.register_forward_pre_hook(given) for module in modules]
    hooks.append(modules[-1].register_forward_hook(made))
    try:
        model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return handed


@contextlib.contextmanager
def _skipped(model: Any, num_layers: int, handed: Sequence[Any]) -> Iterator[None]:
    """The first layers hand on what was handed to the one after them, and compute nothing."""
    with contextlib.ExitStack() as stack:
        for module in layer_list(model)[1][: num_layers if handed else 0]:
            vars(module)["forward"] = lambda *_, **__: handed[num_layers]
            stack.callback(vars(module).pop, "forward")
        yield


def _can_skip(model: Any, ids: torch.Tensor) -> bool:
    """Whether layers compute the same without those before them, which may leave more behind than what they return."""
    try:
        handed = _handed(model, ids)
        whole = model(ids, use_cache=False).logits
        for place in range(1, len(handed)):
            with _skipped(model, place, handed):
                if not torch.equal(model(ids, use_cache=False).logits, whole):
                    return False
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return True


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


def _nearest_in_angle(model: Any, text: Text, num_dropped: int) -> tuple[int, ...]:
    """The block whose input and output are nearest, by the mean angle of the last token's (arXiv:2403.17887)."""
    angles = torch.zeros(len(layer_list(model)[1]) - num_dropped + 1, dtype=torch.float64)
    for number in range(len(text.token_ids)):
        states = [output(each)[:, -1].float() for each in _handed(model, window(model, text.token_ids, number))]
        for first in range(len(angles)):
            cosine = torch.cosine_similarity(states[first], states[first + num_dropped], dim=-1)
            angles[first] += float(cosine.clamp(-1, 1).arccos().mean()) / math.pi
    first = int(angles.argmin())
    return tuple(range(first, first + num_dropped))
