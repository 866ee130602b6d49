"""A weight in a small floating-point format that can be trained: a torch parametrization, as ``quantizer`` of integers.

A code is the number of one of the format's values, which lie at uneven distances. Where a weight lies is said in these
numbers, between two of them by its share of the way; so an offset of half a step means the same everywhere, and codes
are rounded and gradients passed through as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmcompress.graph.integer_weights import IntegerWeight
from llmcompress.spec.training import Learned
from llmcompress.training.group_values import MAX_OFFSET
from llmcompress.training.quantizer import MAX_CHANGE, SURE, _summed


class LevelQuantizer(torch.nn.Module):
    """Takes a float weight, returns the values of its codes; for ``torch.nn.utils.parametrize``."""

    def __init__(self, start: IntegerWeight, learned: frozenset[Learned]) -> None:
        """Begin at the codes and scales of a compressed graph.

        Args:
            start: What a weight's constants hold; an element type with levels.
            learned: Which of scales and rounding are trained; there are no zero points.
        """
        super().__init__()
        assert start.levels is not None
        self.first_scale: torch.Tensor
        self.levels: torch.Tensor
        self.start = start
        scales = torch.from_numpy(start.scales.astype(np.float32))
        self.register_buffer("first_scale", scales, persistent=False)
        # Zero may have two codes, by its sign.
        self.register_buffer("levels", torch.from_numpy(np.unique(start.levels)), persistent=False)
        self.has_two_zeros = len(self.levels) < len(start.levels)
        self.zero = int(np.searchsorted(start.levels, 0.0))
        self.scale = torch.nn.Parameter(torch.ones_like(scales), requires_grad="scales" in learned)
        """As a factor of the start's."""
        self.zero_point = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.offset = torch.nn.Parameter(torch.zeros(start.codes.shape), requires_grad="rounding" in learned)
        """In steps between two codes."""

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The float weight, moved towards the start's code where that is not the nearest one."""
        with torch.no_grad():
            codes = torch.from_numpy(self.start.codes.astype(np.float32)).to(weight.device)
            if self.has_two_zeros:
                codes -= (codes > self.zero).float()
            scale = self._scale()
            position, _ = _position(weight.detach().float().reshape(codes.shape) / scale, self.levels)
            differs = position.round().clamp(0, len(self.levels) - 1) != codes
            near = torch.minimum(torch.maximum(position, codes - SURE), codes + SURE)
            moved = _between(torch.where(differs, near, position), self.levels) * scale
        # They are not asked for again.
        self.start = self.start._replace(codes=np.empty(0, np.int16))
        return torch.where(differs, moved, weight.detach().float().reshape(codes.shape)).reshape(weight.shape)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The values of the codes, in the weight's shape."""
        offset = self.offset.clamp(-MAX_OFFSET, MAX_OFFSET)
        values: torch.Tensor = _Values.apply(weight.reshape(offset.shape), self._scale(), offset, self.levels)
        return values.reshape(weight.shape)

    def learned(self, weight: torch.Tensor) -> IntegerWeight:
        """What the constants hold after the training.

        Args:
            weight: The float weight under the parametrization (``parametrizations.weight.original``).
        """
        with torch.no_grad():
            scale, offset = self._scale(), self.offset.clamp(-MAX_OFFSET, MAX_OFFSET)
            weight = weight.reshape(offset.shape)
            position, _ = _position(weight / scale, self.levels)
            codes = (position + offset).round_().clamp_(0, len(self.levels) - 1)
            if self.has_two_zeros:
                is_above = (codes > self.zero) | ((codes == self.zero) & ~torch.signbit(weight))
                codes += is_above.float()
        return self.start._replace(
            codes=codes.cpu().numpy().astype(np.int16), scales=scale.cpu().numpy().astype(np.float16)
        )

    def at_start(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale, zero point and offset as they were first."""
        return torch.ones_like(self.scale), torch.zeros_like(self.zero_point), torch.zeros_like(self.offset)

    def _scale(self) -> torch.Tensor:
        scale = self.first_scale * self.scale.clamp(1 / MAX_CHANGE, MAX_CHANGE)
        return scale + (scale.half().float() - scale).detach()


def _position(values: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where values lie, in numbers of levels, and how far the two levels around each are apart."""
    above = torch.searchsorted(levels, values.contiguous()).clamp_(1, len(levels) - 1)
    below, gap = levels[above - 1], (levels[1:] - levels[:-1])[above - 1]
    return (above - 1) + (values - below) / gap, gap


def _between(position: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The reverse of ``_position``."""
    below = position.floor().clamp(0, len(levels) - 2)
    number = below.long()
    return levels[number] + (position - below) * (levels[number + 1] - levels[number])


class _Values(torch.autograd.Function):
    """``levels[code] * scale``; nothing of the weight's size is kept for the way back."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale, offset, levels)
        position, _ = _position(weight / scale, levels)
        return levels[(position + offset).round_().clamp_(0, len(levels) - 1).long()] * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale, offset, levels = ctx.saved_tensors
        (gradient,), last = gradients, len(levels) - 1
        position, gap = _position(weight / scale, levels)
        position += offset
        inside = (position >= -0.5) & (position <= last + 0.5)
        by_scale = by_offset = None
        if ctx.needs_input_grad[2]:
            by_offset = gradient * scale * gap * inside
        if ctx.needs_input_grad[1]:
            values = levels[position.round().clamp_(0, last).long()] - inside * (weight / scale)
            by_scale = _summed(values.mul_(gradient), scale)
        return None, by_scale, by_offset, None
