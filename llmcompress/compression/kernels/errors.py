"""How far the values that codes stand for are from the weights, without making the codes."""

# Types come from the first call; Numba reads no annotations of its own.
from __future__ import annotations

from typing import Any

import numpy as np

from llmcompress.compression.kernels.integers import BLOCK_VALUES, round_values, widen
from llmcompress.system.compiling import compiled


@compiled
def _weigh(values: Any, codes: Any, factors: Any, rounded_scale: Any, zero_point: Any) -> None:
    """Replace the codes of a group by the squares of their errors, each times its factor.

    A function of its own, as rounding is: only such a loop becomes vectors.
    """
    for i in range(len(values)):
        error = (codes[i] - zero_point) * rounded_scale - values[i]
        codes[i] = error * error * factors[i]


@compiled
def weighted_squares(weights: Any, integers: Any, made: Any, weighing: Any, groups: Any) -> float:
    """The sum of the squared errors of some groups, each times a factor.

    Args:
        weights: ``StoredWeights`` of one column.
        integers: ``Integers``.
        made: ``Codes`` with the scales and zero points that the codes are rounded by; only these are read.
        weighing: ``Weighing``: the scales as they are stored, and a factor for each value.
        groups: The first one and the one before which to stop.
    """
    group_size, factors = weights.group_size, weighing.factors
    span = max(1, BLOCK_VALUES // group_size)
    values = np.empty(span * group_size, np.float32)
    bits = values.view(np.int32)
    codes = np.empty(span * group_size, np.float32)
    total = 0.0
    for start in range(groups[0], groups[1], span):
        stop = min(start + span, groups[1])
        begin, end = start * group_size, stop * group_size
        widen(weights.values[begin:end], weights.shift, weights.is_half, values, bits)
        codes[:] = values
        for group in range(start, stop):
            own = slice((group - start) * group_size, (group - start + 1) * group_size)
            zero_point, of_group = made.zero_points[group], factors[group * group_size : (group + 1) * group_size]
            round_values(codes[own], made.scales[group], zero_point, integers)
            _weigh(values[own], codes[own], of_group, weighing.scales[group], zero_point)
        for i in range(end - begin):
            total += codes[i]
    return total
