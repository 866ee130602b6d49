"""What a pruned model learns back from the original, in floating point, before its weights are compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.utils import parametrize

from llmcompress.spec.training import Training
from llmcompress.training.layers import layer_list
from llmcompress.training.student import Learnable


def learnables(model: Any, training: Training, *, keep_zeros: bool) -> list[Learnable]:
    """What is trained of the decoder layers of a model in f32; nothing else of it requires a gradient.

    Args:
        model: Pruned.
        training: With ``what`` of weights or adapters.
        keep_zeros: Weights of linear layers that are zero stay so.
    """
    model.requires_grad_(False)
    found = _weights(model, keep_zeros) if "weights" in training.what else _adapters(model, training, keep_zeros)
    return list(found)


def merged(model: Any) -> None:
    """Put what adapters have learned into the weights, and let go of everything that was there to train."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    model.requires_grad_(False)


def _weights(model: Any, keep_zeros: bool) -> Iterator[Learnable]:
    for parameter in layer_list(model)[1].parameters():
        parameter.requires_grad_(True)
        if keep_zeros and parameter.ndim == 2:
            parameter.register_hook(_masked(parameter.detach() == 0))  # type: ignore[no-untyped-call]
        # A vector of zeros, as a bias may be, has no size of its own.
        size = float(parameter.detach().square().mean().sqrt()) or 1.0
        yield Learnable("weight", parameter, parameter.detach().clone().clone, unit=size)


def _masked(zeros: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient.masked_fill(zeros, 0)


class _LowRank(torch.nn.Module):
    """A weight plus the product of two thin matrices (LoRA, arXiv:2106.09685), of which the second begins at zero."""

    def __init__(self, weight: torch.Tensor, rank: int, keep_zeros: bool) -> None:
        super().__init__()
        rank = min(rank, *weight.shape)
        self.down = torch.nn.Parameter(torch.empty(rank, weight.shape[1]))
        torch.nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.up = torch.nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.keep_zeros = keep_zeros

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        changed = weight + self.up @ self.down
        return changed.masked_fill(weight == 0, 0) if self.keep_zeros else changed


def _adapters(model: Any, training: Training, keep_zeros: bool) -> Iterator[Learnable]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        for module in list(layer_list(model)[1].modules()):
            if not isinstance(module, torch.nn.Linear):
                continue
            low_rank = _LowRank(module.weight, training.adapter_rank, keep_zeros).to(module.weight.device)
            parametrize.register_parametrization(module, "weight", low_rank)
            parametrized: Any = module
            parametrized.parametrizations.weight.original.requires_grad_(False)
            for parameter in (low_rank.down, low_rank.up):
                yield Learnable("adapter", parameter, parameter.detach().clone().clone)
