"""What codes stand for and how a loss changes with them, group by group, by compiled loops: one pass over a weight.

The numbers are those of torch's operations in ``quantizer``, bit for bit, but for the order in which a group's
gradients are summed. Of torch each operation is a pass over memory; there are seven one way and twenty the other.
"""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from llmcompress.system.compiling import compiled

CHUNK_VALUES = 1 << 18
"""What one thread takes at a time."""
MAX_OFFSET = 0.5
"""Steps between two codes that a weight may be moved by."""
_MOST = np.float32(MAX_OFFSET)
_HALF = np.float32(0.5)
_ZERO = np.float32(0)


class WeightGroups(NamedTuple):
    """A weight that is trained, one group after another in memory; all in f32."""

    weight: Any
    """``[num_groups, group_size]``."""
    offset: Any
    """Of that shape."""
    scale: Any
    """``[num_groups]``."""
    zero_point: Any
    low: Any
    """Least code."""
    high: Any
    keep_zeros: bool
    """A weight that is zero gives its offset no gradient."""


# Numba reads arrays of a tuple again in every group, so that the loops are given arrays.


@compiled
def _values(
    weight: Any, offset: Any, scales: Any, zero_points: Any, low: Any, high: Any, values: Any, first: int, last: int
) -> None:
    for group in range(first, last):
        scale, zero_point = scales[group], zero_points[group]
        for i in range(weight.shape[1]):
            moved = min(max(offset[group, i], -_MOST), _MOST) + zero_point
            code = min(max(np.rint(moved + weight[group, i] / scale), low), high)
            values[group, i] = (code - zero_point) * scale


@compiled
def _gradients(
    weight: Any, offset: Any, scales: Any, zero_points: Any, low: Any, high: Any, keep_zeros: bool,
    given: Any, by_offset: Any, by_scale: Any, by_zero_point: Any, first: int, last: int,
) -> None:  # fmt: skip
    to_sum = np.empty((2, weight.shape[1]), np.float32)
    of_scale, of_zero_point = to_sum[0], to_sum[1]
    for group in range(first, last):
        _gradients_of_group(
            weight[group], offset[group], scales[group], zero_points[group], low, high, keep_zeros,
            given[group], by_offset[group], of_scale, of_zero_point,
        )  # fmt: skip
        by_scale[group] = _sum(of_scale)
        by_zero_point[group] = -_sum(of_zero_point)


@compiled
def _gradients_of_group(
    weight: Any, offset: Any, scale: Any, zero_point: Any, low: Any, high: Any, keep_zeros: bool,
    given: Any, by_offset: Any, of_scale: Any, of_zero_point: Any,
) -> None:  # fmt: skip
    """By each offset, and what each weight adds to the gradients by scale and zero point."""
    for i in range(len(weight)):
        steps = weight[i] / scale
        position = min(max(offset[i], -_MOST), _MOST) + zero_point + steps
        inside = (position >= low - _HALF) & (position <= high + _HALF)
        code = min(max(np.rint(position), low), high)
        scaled = given[i] * scale
        of_scale[i] = (code - zero_point - (steps if inside else _ZERO)) * given[i]
        of_zero_point[i] = _ZERO if inside else scaled
        is_free = (abs(offset[i]) <= _MOST) & ((weight[i] != _ZERO) | (not keep_zeros))
        by_offset[i] = scaled if inside & is_free else _ZERO


@compiled
def _sum(numbers: Any) -> Any:
    first, second, third, fourth = _ZERO, _ZERO, _ZERO, _ZERO
    whole = len(numbers) // 4 * 4
    # None waits for another.
    for i in range(0, whole, 4):
        first += numbers[i]
        second += numbers[i + 1]
        third += numbers[i + 2]
        fourth += numbers[i + 3]
    for i in range(whole, len(numbers)):
        first += numbers[i]
    return (first + second) + (third + fourth)


def fits(weight: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether groups lie along the last axis of a weight that the processor has."""
    on_processor = weight.device.type == "cpu" and weight.dtype == scale.dtype == torch.float32
    return on_processor and weight.ndim > 1 and scale.shape == (*weight.shape[:-1], 1)


def values(groups: WeightGroups) -> torch.Tensor:
    """``(codes - zero_point) * scale``, ``[num_groups, group_size]``."""
    found = np.empty_like(groups.weight)
    _in_pieces(functools.partial(_values, *groups[:-1], found), groups)
    return torch.from_numpy(found)


def gradients(groups: WeightGroups, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a loss, by offset, scale and zero point.

    Args:
        groups: The weight.
        given: The gradient by what ``values`` gave.
    """
    of_given = given.detach().contiguous().numpy().reshape(groups.weight.shape)
    by_offset, by_scale, by_zero_point = (np.empty_like(each) for each in (of_given, groups.scale, groups.scale))
    _in_pieces(functools.partial(_gradients, *groups, of_given, by_offset, by_scale, by_zero_point), groups)
    return torch.from_numpy(by_offset), torch.from_numpy(by_scale), torch.from_numpy(by_zero_point)


def groups_of(
    weight: torch.Tensor,
    offset: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    limits: tuple[float, float],
    *,
    keep_zeros: bool,
) -> WeightGroups:
    """Views of a weight and of what is trained of it, where they ``fits``."""
    size = weight.shape[-1]
    whole, moved = (each.detach().contiguous().numpy().reshape(-1, size) for each in (weight, offset))
    scales, zeros = (each.detach().expand_as(scale).contiguous().numpy().reshape(-1) for each in (scale, zero_point))
    return WeightGroups(whole, moved, scales, zeros, np.float32(limits[0]), np.float32(limits[1]), keep_zeros)


def _in_pieces(do: Callable[[int, int], None], groups: WeightGroups) -> None:
    """As many threads as torch has, each with some groups."""
    num_groups, size = groups.weight.shape
    step, num_threads = max(1, CHUNK_VALUES // size), torch.get_num_threads()
    if num_threads == 1 or step >= num_groups:
        do(0, num_groups)
        return
    firsts = range(0, num_groups, step)
    list(_pool(num_threads).map(do, firsts, (min(first + step, num_groups) for first in firsts)))


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "values")
