"""What linear layers are given: the sums over a text's tokens that pruning goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.training.layers import DecoderLayer, Walk, output, read


@torch.no_grad()
def hessians(
    walk: Walk, layer: DecoderLayer, given: NDArray[np.float32], linears: Mapping[str, torch.nn.Module]
) -> dict[str, torch.Tensor]:
    """The sum of ``x x^T`` over all tokens, f32 ``[in, in]``, of each linear layer's inputs, by its name."""
    sums: dict[str, torch.Tensor] = {}

    def added(name: str) -> Any:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            inputs = args[0].reshape(-1, args[0].shape[-1]).float()
            found = inputs.T @ inputs
            sums[name] = sums[name].add_(found) if name in sums else found

        return hook

    hooks = [module.register_forward_pre_hook(added(name)) for name, module in linears.items()]
    try:
        for first in range(0, len(given), walk.batch_size):
            output(layer.module(read(given, slice(first, first + walk.batch_size)).to(walk.device), **layer.arguments))
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def linears_of(module: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers of a decoder layer, by their names in it."""
    return {name: each for name, each in module.named_modules() if isinstance(each, torch.nn.Linear)}
