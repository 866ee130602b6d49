"""Experts that a text calls seldom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.errors import ModelError
from llmcompress.report.pruning import PrunedLayer
from llmcompress.spec.pruning import Pruning
from llmcompress.system.progress import Progress, Reporter
from llmcompress.training.pruning.configuration import NUM_EXPERTS, experts_of, num_kept_experts, shrink


class _Mixture(NamedTuple):
    """The experts of one decoder layer."""

    name: str
    router: Any
    experts: Any
    """One tensor for all experts, of each projection."""
    saliency: torch.Tensor
    """Of each expert: the sum of its router's weight times its output's norm (REAP, arXiv:2510.13999)."""
    num_calls: torch.Tensor


@torch.no_grad()
def drop_experts(
    model: Any, pruning: Pruning, token_ids: NDArray[np.int64], progress: Reporter
) -> tuple[PrunedLayer, ...]:
    """Take out of every layer the experts that matter least on a text, in place, with their rows of the router.

    Args:
        model: In f32.
        pruning: How many go.
        token_ids: int64 ``[num_windows, seq_len]``.
        progress: Told of every window.

    Raises:
        RecipeError: The model has no experts, or too few would be left.
        ModelError: Its experts are not kept as transformers keeps them, stacked in one tensor.
    """
    text = model.config.get_text_config()
    _, num_experts = experts_of(text)
    num_kept = num_kept_experts(text, num_experts, pruning)
    mixtures = list(_mixtures(model, num_experts))
    if not mixtures:
        raise ModelError(
            f"{type(model).__name__} has no layer with {num_experts} experts stacked in one tensor",
            where="pruning.method",
            hint="write pruning.method: depth, which drops whole layers of any architecture",
        )
    hooks = [mixture.experts.register_forward_pre_hook(_counted(mixture), with_kwargs=True) for mixture in mixtures]
    try:
        for number, window in enumerate(token_ids):
            progress(Progress("count calls of experts", number, len(token_ids), "windows"))
            model(torch.from_numpy(window[None].copy()).to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    lost = tuple(_dropped(mixture, num_experts, num_kept) for mixture in mixtures)
    shrink(model.config, pruning)
    return lost


def _mixtures(model: Any, num_experts: int) -> Iterator[_Mixture]:
    """Modules with a stack of weights of that many experts, each with the module next to it that routes to them."""
    for name, block in model.named_modules():
        children = dict(block.named_children())
        stacks = [each for each in children.values() if _stacks(each, num_experts, 3)]
        routers = [each for each in children.values() if each not in stacks and _stacks(each, num_experts, 2)]
        if len(stacks) == 1 and len(routers) == 1:
            zeros = torch.zeros(num_experts, dtype=torch.float64)
            yield _Mixture(name, routers[0], stacks[0], zeros, zeros.clone())


def _stacks(module: torch.nn.Module, num_experts: int, ndim: int) -> bool:
    return any(each.ndim == ndim and each.shape[0] == num_experts for each in module.parameters(recurse=False))


def _counted(mixture: _Mixture) -> Any:
    inside = False

    def hook(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        try:
            values = (*args, *kwargs.values())
            hidden, chosen, weights = values[:3]
            for expert in chosen.unique().tolist():
                tokens, places = (chosen == expert).nonzero(as_tuple=True)
                alone = torch.full((len(tokens), 1), expert, dtype=chosen.dtype, device=chosen.device)
                found = experts(hidden[tokens], alone, torch.ones_like(alone, dtype=weights.dtype))
                mixture.saliency[expert] += float((weights[tokens, places] * found.norm(dim=-1)).sum())
                mixture.num_calls[expert] += len(tokens)
        finally:
            inside = False

    return hook


def _dropped(mixture: _Mixture, num_experts: int, num_kept: int) -> PrunedLayer:
    kept = mixture.saliency.topk(num_kept).indices.sort().values
    for module in (mixture.router, mixture.experts):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.shape[0] == num_experts:
                setattr(module, name, torch.nn.Parameter(parameter[kept].clone(), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.ndim and buffer.shape[0] == num_experts:
                setattr(module, name, buffer[kept].clone())
        for name in NUM_EXPERTS:
            if getattr(module, name, None) == num_experts:
                setattr(module, name, num_kept)
    stays = set(kept.tolist())
    total = float(mixture.num_calls.sum())
    return PrunedLayer(
        name=mixture.name,
        dropped=tuple(number for number in range(num_experts) if number not in stays),
        coverage=float(mixture.num_calls[kept].sum()) / total if total else 1.0,
    )
