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
    answers: dict[int, torch.Tensor] | None = None
    """Of each expert the sum of what it makes of every token, float64 ``[hidden_size]``; None: nothing is merged."""


@torch.no_grad()
def drop_experts(
    model: Any, pruning: Pruning, token_ids: NDArray[np.int64], progress: Reporter
) -> tuple[PrunedLayer, ...]:
    """Take out of every layer the experts that matter least on a text, in place, with their rows of the router.

    With ``merge`` each is averaged into the expert that stays and whose mean answer over all tokens lies nearest, all
    weighted by how often they are called (HC-SMoE, arXiv:2410.08589, around the experts that matter most).

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
    if pruning.merge:
        mixtures = [mixture._replace(answers={}) for mixture in mixtures]
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
            everyone = range(len(mixture.num_calls))
            for expert in chosen.unique().tolist() if mixture.answers is None else everyone:
                tokens, places = (chosen == expert).nonzero(as_tuple=True)
                asked = tokens if mixture.answers is None else torch.arange(len(hidden), device=hidden.device)
                alone = torch.full((len(asked), 1), expert, dtype=chosen.dtype, device=chosen.device)
                found = experts(hidden[asked], alone, torch.ones_like(alone, dtype=weights.dtype))
                if mixture.answers is not None:
                    answer = found.sum(dim=0, dtype=torch.float64).cpu()
                    mixture.answers[expert] = answer + mixture.answers.get(expert, 0)
                    found = found[tokens]
                mixture.saliency[expert] += float((weights[tokens, places] * found.norm(dim=-1)).sum())
                mixture.num_calls[expert] += len(tokens)
        finally:
            inside = False

    return hook


def _dropped(mixture: _Mixture, num_experts: int, num_kept: int) -> PrunedLayer:
    kept = mixture.saliency.topk(num_kept).indices.sort().values
    stays = set(kept.tolist())
    dropped = [number for number in range(num_experts) if number not in stays]
    merged_into = _nearest(mixture.answers, kept, dropped) if mixture.answers is not None else []
    if merged_into:
        _merge(mixture, list(zip(dropped, merged_into, strict=True)))
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
    total = float(mixture.num_calls.sum())
    return PrunedLayer(
        name=mixture.name,
        dropped=tuple(dropped),
        merged_into=tuple(merged_into),
        coverage=float(mixture.num_calls[kept].sum()) / total if total else 1.0,
    )


def _nearest(answers: dict[int, torch.Tensor], kept: torch.Tensor, dropped: list[int]) -> list[int]:
    """For each expert that goes the one that stays whose answers are nearest: all are sums over the same tokens."""
    stay = torch.stack([answers[number] for number in kept.tolist()])
    return [int(kept[(stay - answers[number]).norm(dim=-1).argmin()]) for number in dropped]


def _merge(mixture: _Mixture, pairs: list[tuple[int, int]]) -> None:
    """Make each expert that takes others up the mean of them all, weighted by their calls."""
    for into in {into for _, into in pairs}:
        group = torch.tensor([into, *(number for number, other in pairs if other == into)])
        calls = mixture.num_calls[group]
        # Of those that were never called nothing is known.
        if calls.sum() == 0:
            continue
        for parameter in mixture.experts.parameters(recurse=False):
            if parameter.shape[0] == len(mixture.num_calls):
                share = (calls / calls.sum()).to(parameter)
                parameter[into] = torch.tensordot(share, parameter[group], dims=1)
