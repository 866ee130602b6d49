"""Channels of an MLP and groups of attention heads that a decoder layer can do without."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.errors import ModelError
from llmcompress.report.pruning import PrunedLayer
from llmcompress.spec.pruning import Pruning
from llmcompress.training.layers import DecoderLayer, Walk
from llmcompress.training.pruning.inputs import hessians

DAMPING = 0.01
"""Of the Hessian's mean diagonal, added to it before the least squares, as GPTQ does."""


class _Part(NamedTuple):
    """Units of a decoder layer, of which some go: channels, or heads that share keys and values."""

    name: str
    num_units: int
    num_kept: int
    before: tuple[torch.nn.Linear, ...]
    """What makes them; a unit has the same number of rows as any other in each."""
    behind: torch.nn.Linear
    """What reads them."""


@torch.no_grad()
def narrow(walk: Walk, layer: DecoderLayer, given: NDArray[np.float32], pruning: Pruning) -> list[PrunedLayer]:
    """Take channels and heads out of a decoder layer in f32, in place.

    Args:
        walk: The model, whose configuration is still the original's.
        layer: One of its layers.
        given: What the pruned layers before it hand on, ``[num_windows, seq_len, hidden]``.
        pruning: How many are kept.

    Raises:
        ModelError: The layer's projections have other names.
    """
    lost = []
    for part in _parts(walk, layer, pruning):
        hessian = hessians(walk, layer, given, {part.name: part.behind})[part.name]
        columns = part.behind.in_features // part.num_units
        norms = hessian.diagonal() * part.behind.weight.square().sum(0)
        kept = norms.reshape(part.num_units, columns).sum(1).topk(part.num_kept).indices.sort().values
        for linear in part.before:
            _keep_rows(linear, _members(kept, linear.out_features // part.num_units))
        _refit(part.behind, hessian, _members(kept, columns))
        stays = set(kept.tolist())
        dropped = tuple(number for number in range(part.num_units) if number not in stays)
        lost.append(PrunedLayer(name=f"{layer.name}.{part.name}", dropped=dropped))
    return lost


def _parts(walk: Walk, layer: DecoderLayer, pruning: Pruning) -> list[_Part]:
    config, found = walk.model.config.get_text_config(), []
    if pruning.num_key_value_heads is not None:
        name, (*before, behind) = _projections(layer, ("q_proj", "k_proj", "v_proj", "o_proj"))
        num_groups: int = config.num_key_value_heads
        found.append(_Part(name, num_groups, pruning.num_key_value_heads, tuple(before), behind))
    if pruning.intermediate_size is not None:
        name, (*before, behind) = _projections(layer, ("gate_proj", "up_proj", "down_proj"))
        found.append(_Part(name, behind.in_features, pruning.intermediate_size, tuple(before), behind))
    return found


def _projections(layer: DecoderLayer, names: tuple[str, ...]) -> tuple[str, list[torch.nn.Linear]]:
    for name, module in layer.module.named_modules():
        found = [getattr(module, each, None) for each in names]
        if all(isinstance(each, torch.nn.Linear) for each in found):
            return name, found  # type: ignore[return-value]
    raise ModelError(
        f"{layer.name} has no part with the linear layers {', '.join(names)}",
        where="pruning.method",
        hint="write pruning.method: depth, which drops whole layers of any architecture",
    )


def _members(kept: torch.Tensor, size: int) -> torch.Tensor:
    """The rows or columns of units."""
    return (kept[:, None] * size + torch.arange(size, device=kept.device)).reshape(-1)


def _keep_rows(linear: torch.nn.Linear, rows: torch.Tensor) -> None:
    linear.weight = torch.nn.Parameter(linear.weight[rows].clone(), requires_grad=False)
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias[rows].clone(), requires_grad=False)
    linear.out_features = len(rows)


def _refit(linear: torch.nn.Linear, hessian: torch.Tensor, columns: torch.Tensor) -> None:
    """Keep columns, with the weights that come nearest to the whole layer's output: ``W H_k (H_kk)^-1``."""
    of_kept = hessian[columns][:, columns].double()
    of_kept.diagonal().add_(DAMPING * of_kept.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    wanted = linear.weight.double() @ hessian[:, columns].double()
    fitted = torch.linalg.solve(of_kept, wanted.T).T.float().contiguous()
    linear.weight = torch.nn.Parameter(fitted, requires_grad=False)
    linear.in_features = len(columns)
