"""SparseGPT (arXiv:2301.00774): weights go one column after another, and those behind make up for each."""

from __future__ import annotations

import torch

from llmcompress.spec.pruning import Pruning
from llmcompress.training.pruning.masks import largest_of

BLOCK_SIZE = 128
"""Columns whose weights are chosen together, as in the paper."""
DAMPING = 0.01
"""Of the Hessian's mean diagonal, added to it, as in the paper."""


def sparsegpt(weight: torch.Tensor, hessian: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """The pruned weight, f32 ``[out, in]``.

    Args:
        weight: ``[out, in]``.
        hessian: The sum of ``x x^T``, ``[in, in]``.
        pruning: How many become zero.
    """
    weight, hessian = weight.float().clone(), hessian.clone()
    unused = hessian.diagonal() == 0
    hessian.diagonal()[unused] = 1
    weight[:, unused] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    num_columns = weight.shape[1]
    for start in range(0, num_columns, BLOCK_SIZE):
        end = min(start + BLOCK_SIZE, num_columns)
        block, factors = weight[:, start:end].clone(), upper[start:end, start:end]
        kept = None if pruning.zeros_of else _largest(block.square() / factors.diagonal().square(), pruning)
        errors = torch.zeros_like(block)
        for column in range(end - start):
            if pruning.zeros_of is not None and column % pruning.zeros_of[1] == 0:
                group = slice(column, column + pruning.zeros_of[1])
                kept_of_group = largest_of(
                    block[:, group].square() / factors.diagonal()[group].square(), *pruning.zeros_of
                )
                kept = kept_of_group if kept is None else torch.cat([kept, kept_of_group], 1)
            assert kept is not None
            pruned = block[:, column] * kept[:, column]
            errors[:, column] = (block[:, column] - pruned) / factors[column, column]
            block[:, column] = pruned
            block[:, column + 1 :] -= errors[:, column, None] * factors[column, column + 1 :]
        weight[:, start:end] = block
        weight[:, end:] -= errors @ upper[start:end, end:]
    return weight


def _largest(scores: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    assert pruning.sparsity is not None
    num_zeros = int(scores.numel() * pruning.sparsity)
    if num_zeros == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > scores.reshape(-1).kthvalue(num_zeros).values
