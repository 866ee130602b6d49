"""What zeros among the weights are good for: faster on this device or not, and smaller in an archive."""

from __future__ import annotations

import statistics
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.report.record import SparseSpeed

if TYPE_CHECKING:
    import openvino as ov

_CHUNK_BYTES = 1 << 24
_RUNS = 60
_DEVICE = "CPU"
_OPTION = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
"""Where the plugin has kernels for zeros, it takes them for layers with at least that share; it asks for AMX."""


def archive_share(file: Path) -> float:
    """Size of a file compressed by zlib at its fastest level, as a share of its size."""
    compressor, size = zlib.compressobj(1), 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            size += len(compressor.compress(chunk))
    return (size + len(compressor.flush())) / max(file.stat().st_size, 1)


def sparse_speed(shape: tuple[int, int], density: float) -> SparseSpeed:
    """Measure one int8 layer of that shape on one token, dense against sparse, runs in turn.

    Args:
        shape: ``(out, in)``.
        density: Share of the weights that are not zero.
    """
    import numpy as np
    import openvino as ov

    core = ov.Core()
    generator = np.random.default_rng(0)
    dense = generator.integers(1, 100, shape, np.int8)
    sparse = np.where(generator.random(shape) < density, dense, np.int8(0))
    options = {_OPTION: 1 - density} if _takes(core, 1 - density) else {}
    runs = [
        core.compile_model(_layer(dense), _DEVICE).create_infer_request(),
        core.compile_model(_layer(sparse), _DEVICE, options).create_infer_request(),
    ]
    token = np.ones((1, shape[1]), np.float32)
    times: list[list[float]] = [[], []]
    for _ in range(_RUNS):
        for request, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            request.infer([token])
            taken.append(time.perf_counter() - started)
    ratio = statistics.median(times[0]) / statistics.median(times[1])
    return SparseSpeed(device=_DEVICE, shape=shape, ratio=ratio, option=_OPTION if options else None)


def _takes(core: ov.Core, rate: float) -> bool:
    try:
        core.set_property(_DEVICE, {_OPTION: rate})
    except RuntimeError:
        return False
    core.set_property(_DEVICE, {_OPTION: 1.0})
    return True


def _layer(weights: Any) -> ov.Model:
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    activations = ops.parameter(ov.PartialShape([-1, weights.shape[1]]), ov.Type.f32)
    values = ops.convert(ops.constant(weights), ov.Type.f32)
    scaled = ops.multiply(values, ops.constant(np.full((weights.shape[0], 1), 0.01, np.float32)))
    return ov.Model([ops.result(ops.matmul(activations, scaled, False, True))], [activations], "layer")
