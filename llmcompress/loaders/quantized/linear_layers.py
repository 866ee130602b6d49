"""Layers that have input channels before output channels, as the linear layers of torch that compute the same.

The converter transposes the matrices of such a layer (GPT-2's ``Conv1D``) into new memory; those of a linear layer stay
where they are, rows of output channels, as files have them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def use_linear_layers(model: Any, weights: Iterable[str]) -> None:
    """Put a linear layer in the place of each layer that has one of these weights.

    Args:
        model: A torch module; changed in place.
        weights: Names of matrices ``[inputs, outputs]``.
    """
    import torch

    for name in weights:
        path = name.removesuffix(".weight")
        layer, (owner, _, attribute) = model.get_submodule(path), path.rpartition(".")
        linear = torch.nn.Linear(1, 1, bias=layer.bias is not None, device="meta")
        linear.weight, linear.bias = torch.nn.Parameter(layer.weight.T, requires_grad=False), layer.bias
        setattr(model.get_submodule(owner), attribute, linear)
