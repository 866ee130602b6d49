"""Which weights of a matrix become zero, by their size alone or by what they are multiplied with."""

from __future__ import annotations

import torch

from llmcompress.spec.pruning import Pruning


def by_magnitude(weight: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """Kept weights as bool ``[out, in]``: the largest of the matrix, as in ``nncf.prune``'s local mode."""
    if pruning.zeros_of is not None:
        return largest_of(weight.abs(), *pruning.zeros_of)
    assert pruning.sparsity is not None
    sizes = weight.abs().reshape(-1)
    threshold = sizes.kthvalue(int((sizes.numel() - 1) * pruning.sparsity) + 1).values
    return weight.abs() > threshold


def by_wanda(weight: torch.Tensor, hessian: torch.Tensor, pruning: Pruning) -> torch.Tensor:
    """Kept weights as bool ``[out, in]``: the largest of each row by ``|w| * ||x||`` (Wanda, arXiv:2306.11695).

    Args:
        weight: ``[out, in]``.
        hessian: The sum of ``x x^T``; its diagonal holds the squared norms of the inputs.
        pruning: How many go.
    """
    scores = weight.abs() * hessian.diagonal().sqrt()
    if pruning.zeros_of is not None:
        return largest_of(scores, *pruning.zeros_of)
    assert pruning.sparsity is not None
    num_zeros = int(pruning.sparsity * weight.shape[1])
    kept = torch.ones_like(weight, dtype=torch.bool)
    return kept.scatter_(1, scores.topk(num_zeros, dim=1, largest=False).indices, False)


def largest_of(scores: torch.Tensor, num_zeros: int, of: int) -> torch.Tensor:
    """The largest of every ``of`` consecutive ones of a row as bool; those left over at its end are all kept."""
    num_rows, num_columns = scores.shape
    whole = num_columns // of * of
    kept = torch.ones_like(scores, dtype=torch.bool)
    groups = scores[:, :whole].reshape(num_rows, -1, of)
    smallest = groups.topk(num_zeros, dim=-1, largest=False).indices
    kept[:, :whole] = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, smallest, False).reshape(num_rows, whole)
    return kept
