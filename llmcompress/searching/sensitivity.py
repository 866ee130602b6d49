"""How much each weight's error costs, by one forward and backward pass over a few windows.

The KL divergence of a slightly changed model from the original is half the error's quadratic form with the Fisher
matrix (Kullback 1959). Its diagonal says what rounding costs, whose errors have nothing to do with each other. Those of
GPTQ make up for each other, which the diagonal does not see: of a matrix their cost is taken by the Kronecker factors
of the Fisher matrix.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.compression.fisher import Factors, backward_passes, factors_summed
from llmcompress.searching.pieces import Piece
from llmcompress.system.progress import Reporter


class Sensitivity(NamedTuple):
    """Sums over tokens, by the names of the model's parameters."""

    num_tokens: int
    diagonal: dict[str, torch.Tensor]
    """Squared gradients of each window's loss, f32, of the parameters' shapes."""
    factors: dict[str, list[Factors]]
    """Of matrices, where it was asked for, of each use."""

    def cost(self, name: str, error: torch.Tensor, piece: Piece | None = None) -> float:
        """The KL divergence in nats a token that rounding adds; of experts that were not called as if of the others.

        Args:
            name: Of the parameter.
            error: Of its shape, or of the piece's; overwritten.
            piece: Of a stack of experts.
        """
        diagonal = self.diagonal[name]
        found = float(error.square_().mul_(diagonal if piece is None else piece.of(diagonal)).sum())
        if diagonal.ndim == 3:
            called = self.called(name)
            found *= len(called) / max(int(called.sum()), 1)
        return found / (2 * self.num_tokens)

    def called(self, stack: str) -> torch.Tensor:
        """Which experts of a stack some token was sent to, bool ``[experts]``."""
        return self.diagonal[stack].flatten(1).any(1)

    def joint_cost(self, name: str, error: torch.Tensor) -> float:
        """The same of a matrix whose errors make up for each other."""
        of_uses = (float((error @ use.columns).mul_(error).sum(1) @ use.rows) for use in self.factors[name])
        return sum(of_uses) / (2 * self.num_tokens**2)


def sensitivity(
    model: Any, token_ids: NDArray[np.int64], seed: int, progress: Reporter, *, jointly: bool = False
) -> Sensitivity:
    """Run each window forth and back once.

    Args:
        model: In f32; all of its matrices are looked at.
        token_ids: int64 ``[num_windows, seq_len]``.
        seed: Of the labels.
        progress: Told of every window.
        jointly: For errors that make up for each other as well.
    """
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    model.requires_grad_(False)
    diagonal = {name: torch.zeros_like(parameter.requires_grad_(True)) for name, parameter in matrices.items()}

    def add(name: str, parameter: torch.Tensor) -> None:
        # At once: gradients of all weights together would take as much memory as these do.
        assert parameter.grad is not None
        diagonal[name].addcmul_(parameter.grad, parameter.grad)
        parameter.grad = None

    with contextlib.ExitStack() as stack:
        factors = stack.enter_context(factors_summed(model)) if jointly else {}
        for name, parameter in matrices.items():
            handle = parameter.register_post_accumulate_grad_hook(functools.partial(add, name))
            stack.callback(handle.remove)
        for _ in backward_passes(model, token_ids, seed, progress):
            pass
    return Sensitivity(token_ids.size, diagonal, factors)
