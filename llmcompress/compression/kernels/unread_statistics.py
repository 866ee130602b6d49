"""NNCF's pass for activation statistics, left out where GPTQ alone asks for it: GPTQ runs the layers itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nncf.quantization.algorithms.weight_compression import algorithm

from llmcompress.patching import replaced

_NAME = "collect_statistics_and_statistic_points"
_READERS = ("_awq", "_codebook_estimation", "_data_aware_mixed_precision")


@contextlib.contextmanager
def without_unread_statistics() -> Iterator[None]:
    """Have NNCF collect nothing that it would throw away; where it has moved the name, nothing is changed."""
    stock = vars(algorithm.WeightCompression).get(_NAME)
    if stock is None:
        yield
        return

    def collected(compression: Any, model: Any, graph: Any, statistic_points: Any, *args: Any) -> Any:
        is_read = any(getattr(compression, name, True) for name in _READERS)
        if is_read or not getattr(compression, "_gptq", False):
            return stock(compression, model, graph, statistic_points, *args)
        return None, statistic_points

    with replaced(algorithm.WeightCompression, _NAME, collected):
        yield
