"""A compressed weight that can be trained: codes, scales and zero points as a torch parametrization.

What its forward pass returns is, number for number, what the runtime makes of the constants that ``learned`` gives:
the scale is rounded to f16 and the zero point to an integer in every step, and gradients pass through the rounding as
if it were not there (straight-through, arXiv:1308.3432). A weight moves to the code above or below by an offset of at
most half a step (AutoRound, arXiv:2309.05516); of a scale the gradient is that of LSQ (arXiv:1902.08153).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmcompress.graph.integer_weights import IntegerWeight
from llmcompress.spec.training import Learned
from llmcompress.training import group_values
from llmcompress.training.group_values import MAX_OFFSET

SURE = 0.3
"""Steps from the start's code within which a weight is put that has another code than the nearest: by GPTQ, whose
choice the noise of the first steps would otherwise undo."""
MAX_CHANGE = 4.0
"""Of a scale, as a factor."""


class WeightQuantizer(torch.nn.Module):
    """Takes a float weight, returns the values of its codes; for ``torch.nn.utils.parametrize``."""

    def __init__(self, start: IntegerWeight, learned: frozenset[Learned], *, keep_zeros: bool = False) -> None:
        """Begin at the codes, scales and zero points of a compressed graph.

        Args:
            start: What a weight's constants hold.
            learned: Which of scales, zero points and rounding are trained; zero points only where there are some.
            keep_zeros: A weight that is zero keeps the code of its zero point, wherever that goes.
        """
        super().__init__()
        self.keep_zeros = keep_zeros
        self.first_scale: torch.Tensor
        self.low, self.high = float(start.low), float(start.high)
        self.start = start
        scales = torch.from_numpy(start.scales.astype(np.float32))
        self.register_buffer("first_scale", scales, persistent=False)
        self.scale = torch.nn.Parameter(torch.ones_like(scales), requires_grad="scales" in learned)
        """As a factor of the start's."""
        zero_points = np.zeros(1) if start.zero_points is None else start.zero_points
        has_zero_points = "zero_points" in learned and start.has_own_zero_points
        self.zero_point = torch.nn.Parameter(torch.from_numpy(zero_points.astype(np.float32)), has_zero_points)
        self.offset = torch.nn.Parameter(torch.zeros(start.codes.shape), requires_grad="rounding" in learned)
        """In steps between two codes."""

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The float weight, moved towards the start's code where that is not the nearest one."""
        with torch.no_grad():
            codes = torch.from_numpy(self.start.codes.astype(np.float32)).to(weight.device)
            scale, zero_point = self._scale(), self._zero_point()
            position = weight.detach().float().reshape(codes.shape) / scale + zero_point
            differs = position.round().clamp(self.low, self.high) != codes
            near = torch.minimum(torch.maximum(position, codes - SURE), codes + SURE)
            values = torch.where(differs, near, position) - zero_point
        # They are not asked for again.
        self.start = self.start._replace(codes=np.empty(0, np.int16))
        return values.mul_(scale).reshape(weight.shape)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The values of the codes, in the weight's shape."""
        codes_of = weight.reshape(self.offset.shape)
        grid = (self._scale(), self._zero_point(), self.offset)
        values: torch.Tensor = _Values.apply(codes_of, *grid, (self.low, self.high), self.keep_zeros)
        return values.reshape(weight.shape)

    def learned(self, weight: torch.Tensor) -> IntegerWeight:
        """What the constants hold after the training.

        Args:
            weight: The float weight under the parametrization (``parametrizations.weight.original``).
        """
        with torch.no_grad():
            scale, zero_point = self._scale(), self._zero_point()
            codes = _codes(weight.reshape(self.offset.shape), scale, zero_point, self.offset, self.low, self.high)
        start = self.start
        return start._replace(
            codes=codes.cpu().numpy().astype(np.int16),
            scales=scale.cpu().numpy().astype(np.float16),
            zero_points=None if start.zero_points is None else zero_point.cpu().numpy().astype(np.int16),
        )

    def num_trained(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def at_start(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale, zero point and offset as they were first."""
        zero_point = torch.zeros_like(self.zero_point)
        if self.start.zero_points is not None:
            zero_point += torch.from_numpy(self.start.zero_points.astype(np.float32)).to(zero_point.device)
        return torch.ones_like(self.scale), zero_point, torch.zeros_like(self.offset)

    def _scale(self) -> torch.Tensor:
        scale = self.first_scale * self.scale.clamp(1 / MAX_CHANGE, MAX_CHANGE)
        return scale + (scale.half().float() - scale).detach()

    def _zero_point(self) -> torch.Tensor:
        rounded = self.zero_point.round().clamp(self.low, self.high) if self.start.zero_points is not None else 0.0
        return self.zero_point + (rounded - self.zero_point).detach()


def _codes(
    weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, offset: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    return _positions(weight, scale, zero_point, offset).round_().clamp_(low, high)


def _positions(
    weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """In codes, before they are rounded."""
    return torch.addcdiv(offset.clamp(-MAX_OFFSET, MAX_OFFSET).add_(zero_point), weight, scale)


class _Values(torch.autograd.Function):
    """``(codes - zero_point) * scale``; nothing of the weight's size is kept for the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        offset: torch.Tensor,
        limits: tuple[float, float],
        keep_zeros: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale, zero_point, offset)
        ctx.range, ctx.keep_zeros = limits, keep_zeros
        if group_values.fits(weight, scale):
            groups = group_values.groups_of(weight, offset, scale, zero_point, limits, keep_zeros=keep_zeros)
            return group_values.values(groups).reshape(weight.shape)
        return _codes(weight, scale, zero_point, offset, *limits).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale, zero_point, offset = ctx.saved_tensors
        (gradient,), (low, high) = gradients, ctx.range
        if group_values.fits(weight, scale):
            groups = group_values.groups_of(weight, offset, scale, zero_point, ctx.range, keep_zeros=ctx.keep_zeros)
            offsets, scales, zero_points = group_values.gradients(groups, gradient)
            found = scales.reshape(scale.shape), zero_points.reshape(scale.shape), offsets.reshape(offset.shape)
            return None, *found, None, None
        position = _positions(weight, scale, zero_point, offset)
        inside = (position >= low - 0.5) & (position <= high + 0.5)
        by_scale = by_zero_point = by_offset = None
        # In place where that is possible: each of these tensors is as large as the weight.
        if ctx.needs_input_grad[1]:
            steps = position.round_().clamp_(low, high).sub_(zero_point)
            steps.sub_((weight / scale).mul_(inside))
            by_scale = _summed(steps.mul_(gradient), scale)
            del steps
        del position
        scaled = gradient * scale
        if ctx.needs_input_grad[3]:
            by_offset = scaled * (inside & (weight != 0) if ctx.keep_zeros else inside)
            by_offset *= offset.abs() <= MAX_OFFSET
        if ctx.needs_input_grad[2]:
            by_zero_point = _summed(scaled.masked_fill_(inside, 0), scale).neg_()
        return None, by_scale, by_zero_point, by_offset, None, None


def _summed(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Summed over the axes of a group."""
    axes = [axis for axis, size in enumerate(like.shape) if size == 1 != values.shape[axis]]
    return values.sum(axes, keepdim=True) if axes else values
