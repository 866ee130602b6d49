"""The model in torch with the weights of a compressed graph, of which those with the recipe's mode can be trained."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.utils import parametrize

from llmcompress.errors import ModelError
from llmcompress.graph.integer_weights import IntegerWeight, Rescaling
from llmcompress.graph.model import parameter_name
from llmcompress.spec.training import Learned
from llmcompress.training.level_quantizer import LevelQuantizer
from llmcompress.training.quantizer import WeightQuantizer

_log = logging.getLogger(__name__)


class Learnable(NamedTuple):
    """Numbers that are trained."""

    kind: Literal["scale", "zero_point", "offset", "adapter", "weight"]
    """Whose learning rate they have."""
    parameter: torch.nn.Parameter
    first: Callable[[], torch.Tensor]
    """As they were at the start."""
    unit: float = 1.0
    """Of the learning rate."""


class Trained(NamedTuple):
    """A weight that is trained."""

    name: str
    """Of its constant in the graph."""
    learnables: tuple[Learnable, ...]
    learned: Callable[[], IntegerWeight]
    """What its constants hold now."""


def fill(model: Any, weights: Mapping[str, IntegerWeight], names: Iterable[str]) -> None:
    """Give parameters the values of some of a graph's constants; what is no parameter, or was given up, is left out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for constant in names:
            parameter = parameters.get(parameter_name(constant))
            if parameter is None or parameter.is_meta:
                continue
            weight = weights[constant]
            if parameter.numel() == weight.codes.size:
                parameter.data = torch.from_numpy(weight.values()).reshape(parameter.shape).to(parameter.device)


def make_student(
    model: Any,
    weights: Mapping[str, IntegerWeight],
    trained: Iterable[str],
    learned: frozenset[Learned],
    rescaled: Mapping[str, Rescaling] = MappingProxyType({}),
    *,
    keep_zeros: bool = False,
) -> list[Trained]:
    """Give a float model the weights of a compressed graph, in place; nothing but their bits requires a gradient.

    Args:
        model: A transformers model in f32.
        weights: Of the graph, by name.
        trained: Names of those whose bits are trained. Embeddings, and heads tied to them, are left as they are, and so
            is, with a warning, what is not the weight of a module, such as experts in one tensor.
        learned: What of them.
        rescaled: What AWQ did to weights before they were compressed, by name.
        keep_zeros: Weights that a pruning has set to zero stay so; of integers only.

    Raises:
        ModelError: Nothing is left to train.
    """
    model.requires_grad_(False)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    embeddings = {id(each.weight) for each in modules.values() if isinstance(each, torch.nn.Embedding)}
    to_train = {name for name in trained if id(parameters.get(parameter_name(name))) not in embeddings}
    fill(model, weights, weights.keys() - to_train)
    for constant, each in rescaled.items():
        # What the graph holds as integers and is not trained has been filled in with its rescaled values.
        _rescale(modules, constant, each, weight=constant in to_train or constant not in weights)
    found: list[Trained] = []
    left: list[str] = []
    for constant in sorted(to_train):
        name = parameter_name(constant)
        parameter, module = parameters.get(name), modules.get(name.rpartition(".")[0])
        weight = weights[constant]
        is_whole = parameter is not None and parameter.numel() == weight.codes.size
        if parameter is None or module is None or not is_whole or not name.endswith(".weight"):
            left.append(constant)
            continue
        quantizer = _quantizer(weight, learned, keep_zeros=keep_zeros).to(parameter.device)
        parametrize.register_parametrization(module, "weight", quantizer)
        original = module.parametrizations.weight.original.requires_grad_(False)
        found.append(Trained(constant, _learnables(quantizer), functools.partial(quantizer.learned, original)))
    fill(model, weights, left)
    if left:
        _log.warning(
            "%s of %s weights keep the bits that they have: they are no layers of their own in %s (%s)",
            len(left),
            len(to_train),
            type(model).__name__,
            left[0],
        )
    _require_trainable(model)
    return found


def _require_trainable(model: Any) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "no weight has bits to train",
            where=type(model).__name__,
            hint="write more into training.what, or remove training from the recipe",
        )


def _quantizer(
    weight: IntegerWeight, learned: frozenset[Learned], *, keep_zeros: bool
) -> WeightQuantizer | LevelQuantizer:
    if weight.levels is not None:
        return LevelQuantizer(weight, learned)
    return WeightQuantizer(weight, learned, keep_zeros=keep_zeros)


def _learnables(quantizer: WeightQuantizer | LevelQuantizer) -> tuple[Learnable, ...]:
    kinds: tuple[Literal["scale", "zero_point", "offset"], ...] = ("scale", "zero_point", "offset")
    # What all were at the start is made when it is wanted: offsets are as large as the weight.
    return tuple(
        Learnable(kind, getattr(quantizer, kind), lambda number=number: quantizer.at_start()[number])  # type: ignore[misc]
        for number, kind in enumerate(kinds)
        if getattr(quantizer, kind).requires_grad
    )


def _rescale(modules: dict[str, Any], constant: str, rescaling: Rescaling, *, weight: bool) -> None:
    """Do to a module what AWQ did in the graph."""
    module = modules.get(parameter_name(constant).removesuffix(".weight"))
    if module is None:
        return
    if weight:
        with torch.no_grad():
            for factor in rescaling.factors:
                module.weight.mul_(torch.from_numpy(factor).to(module.weight.device))
    if rescaling.activations is not None:
        scale = torch.from_numpy(rescaling.activations)

        def scaled(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return inputs[0] * scale.to(inputs[0].device), *inputs[1:]

        module.register_forward_pre_hook(scaled)
