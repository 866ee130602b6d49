"""The contract between accuracy control, which needs a metric, and the evaluation, which makes one.

The rooms do not know each other: whoever calls both hands the one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

    Window = NDArray[np.int64]
    """``[seq_len]``"""
    AccuracyMetric = Callable[[ov.CompiledModel, Iterable[Window]], tuple[float, list[float]]]
    """A compiled decoder and windows -> the metric over all and of each alone, as ``scale`` has it."""
    MakeMetric = Callable[[str, ov.Model, Sequence[Window]], AccuracyMetric]
    """Name of the metric, reference, all windows that it will be asked for -> the metric."""


class Scale(NamedTuple):
    """A figure in its unit as NNCF takes it, higher is better, and back."""

    metric: Callable[[float], float]
    figure: Callable[[float], float]


# Of the perplexity the figure that goes in is the mean negative log-likelihood. NNCF divides by the reference's metric:
# a divergence of 0 would not do.
SCALES = {
    "kl_divergence": Scale(lambda kl: 1 - kl, lambda metric: 1 - metric),
    "perplexity": Scale(lambda nll: -math.exp(nll) if nll < 700 else -math.inf, lambda metric: -metric),
    "top1_agreement": Scale(lambda share: share, lambda metric: metric),
}
