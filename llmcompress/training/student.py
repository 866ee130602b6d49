"""The model in torch with the weights of a compressed graph, of which those with the recipe's mode can be trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from llmcompress.errors import ModelError
from llmcompress.graph.integer_weights import IntegerWeight
from llmcompress.graph.model import parameter_name
from llmcompress.spec.training import Learned
from llmcompress.training.quantizer import WeightQuantizer

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A weight that is trained."""

    name: str
    """Of its constant in the graph."""
    module: torch.nn.Module
    quantizer: WeightQuantizer

    @property
    def original(self) -> torch.Tensor:
        """The float weight."""
        parametrizations: Any = self.module.parametrizations
        original: torch.Tensor = parametrizations.weight.original
        return original

    def learned(self) -> IntegerWeight:
        """What its constants hold now."""
        return self.quantizer.learned(self.original)


def fill(model: Any, weights: dict[str, IntegerWeight]) -> None:
    """Give parameters the values of a graph's constants; a constant that is no parameter of the model is left out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for constant, weight in weights.items():
            parameter = parameters.get(parameter_name(constant))
            if parameter is not None and parameter.numel() == weight.codes.size:
                parameter.data = torch.from_numpy(weight.values()).reshape(parameter.shape).to(parameter.device)


def make_student(
    model: Any, weights: dict[str, IntegerWeight], trained: Iterable[str], learned: frozenset[Learned]
) -> list[Trained]:
    """Give a float model the weights of a compressed graph, in place; nothing but their bits requires a gradient.

    Args:
        model: A transformers model in f32.
        weights: Of the graph, by name.
        trained: Names of those whose bits are trained. Embeddings, and heads tied to them, are left as they are, and so
            is, with a warning, what is not the weight of a module, such as experts in one tensor.
        learned: What of them.

    Raises:
        ModelError: Nothing is left to train.
    """
    model.requires_grad_(False)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    embeddings = {id(each.weight) for each in modules.values() if isinstance(each, torch.nn.Embedding)}
    to_train = {name for name in trained if id(parameters.get(parameter_name(name))) not in embeddings}
    fill(model, {name: weight for name, weight in weights.items() if name not in to_train})
    found: list[Trained] = []
    left: list[str] = []
    for constant in sorted(to_train):
        name = parameter_name(constant)
        parameter, module = parameters.get(name), modules.get(name.rpartition(".")[0])
        is_whole = parameter is not None and parameter.numel() == weights[constant].codes.size
        if parameter is None or module is None or not is_whole or not name.endswith(".weight"):
            left.append(constant)
            continue
        quantizer = WeightQuantizer(weights[constant], learned).to(parameter.device)
        parametrize.register_parametrization(module, "weight", quantizer)
        module.parametrizations.weight.original.requires_grad_(False)
        found.append(Trained(constant, module, quantizer))
    fill(model, {name: weights[name] for name in left})
    if left:
        _log.warning(
            "%s of %s weights keep the bits that they have: they are no layers of their own in %s (%s)",
            len(left),
            len(to_train),
            type(model).__name__,
            left[0],
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "no weight has bits to train",
            where=type(model).__name__,
            hint="write more into training.what, or remove training from the recipe",
        )
    return found
