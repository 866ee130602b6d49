"""Our kernels against NNCF's own functions, on one matrix: the same bytes, in how much time.

Both sides in turn (A B A B ...) in one process, after one call of each that is not counted: NNCF's ``compress_weight``
as its backend calls it, with the constants made of the result; the same arithmetic in torch operations; the scales that
NNCF's scale estimation and its AWQ find; GPTQ of one layer on 32 windows of 256 activations, whose sums are not added
in NNCF's order; and the values of codes that are learned with the gradients of these, next to torch operations (of
scales and zero points they differ in the last bits). Medians, rates in GB of stored weights a second, the ratio pair by
pair.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --rows 1024 --columns 1024 --runs 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch
from nncf.common.tensor_statistics.statistics import WCTensorStatistic
from nncf.common.utils.caching import disable_results_caching
from nncf.openvino.graph.node_utils import create_ov_const_from_tensor
from nncf.openvino.optimized_functions.models import OV_MODEL_CACHE
from nncf.quantization.algorithms.weight_compression.awq import AWQ
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.gptq import GPTQ
from nncf.quantization.algorithms.weight_compression.scale_estimation import ScaleEstimation as StockScaleEstimation
from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight
from nncf.tensor import Tensor
from nncf.tensor.functions.openvino_numeric import DTYPE_MAP
from rich.console import Console
from rich.table import Table

from llmcompress.compression.nncf.awq import awq_search
from llmcompress.compression.nncf.gptq import Gptq
from llmcompress.compression.nncf.scale_estimation import ScaleEstimation
from llmcompress.compression.nncf.weight_codes import Lowering
from llmcompress.graph.integer_weights import IntegerWeight
from llmcompress.system.patching import replaced
from llmcompress.training import group_values
from llmcompress.training.quantizer import WeightQuantizer

CASES = (
    ("int8_asym", -1),
    ("int8_sym", -1),
    ("int4_asym", 128),
    ("int4_sym", 128),
    ("int4_sym", 32),
    ("int4_sym", -1),
    ("int3_sym", 64),
    ("int2_sym", 64),
    ("nf4", 128),
    ("fp4", 32),
    ("fp8_e4m3", -1),
)
DTYPES = {"bf16": (ov.Type.bf16, 2), "f16": (ov.Type.f16, 2), "f32": (ov.Type.f32, 4)}
NUM_SAMPLES = 32
TORCH_BLOCK_VALUES = 1 << 17


def weight_of(rows: int, columns: int, dtype: str) -> Tensor:
    """A matrix of normal values as NNCF takes it from a graph."""
    values = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
    stored = {"bf16": (values.view(np.uint32) >> 16).astype(np.uint16).view(np.float16), "f32": values}
    return Tensor(ov.Tensor(stored.get(dtype, values.astype(np.float16)), ov.Shape(values.shape), DTYPES[dtype][0]))


def constants(compressed: Any, config: WeightCompressionConfig) -> list[Any]:
    """As NNCF's backend makes them."""
    if not config.is_integer:
        return [compressed.tensor.data, compressed.scale]
    codes, element = compressed.tensor, DTYPE_MAP[config.compression_dtype]
    if config.is_symmetric_represented_by_unsigned:
        codes = codes + 2 ** (config.num_bits - 1)
    found = [create_ov_const_from_tensor(codes, element), create_ov_const_from_tensor(compressed.scale, ov.Type.f16)]
    if compressed.zero_point is not None:
        found.append(create_ov_const_from_tensor(compressed.zero_point, element))
    return found


def in_bytes(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays as their bytes."""
    return [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]


def in_turn(
    name: str, num_bytes: int, runs: int, ours: Callable[[], list[np.ndarray]], stock: Callable[[], list[np.ndarray]]
) -> dict[str, Any]:
    """Times of both sides; the first call of each, not counted, compares the bytes."""
    equal = np.concatenate([mine == other for mine, other in zip(in_bytes(ours()), in_bytes(stock()), strict=True)])
    times: dict[str, list[float]] = {"ours": [], "nncf": []}
    for _ in range(runs):
        for side, function in (("ours", ours), ("nncf", stock)):
            started = time.perf_counter()
            function()
            times[side].append(time.perf_counter() - started)
    return {
        "case": name,
        "equal_bytes": float(equal.mean()),
        "gb_per_s": {side: num_bytes / 1e9 / statistics.median(values) for side, values in times.items()},
        "speedup": statistics.median(b / a for a, b in zip(times["ours"], times["nncf"], strict=True)),
        "times_s": times,
    }


def compare_lowering(weight: Tensor, num_bytes: int, runs: int, lowering: Lowering) -> list[dict[str, Any]]:
    """``compress_weight`` in every mode."""
    results = []
    for mode, group_size in CASES:
        config = WeightCompressionConfig(nncf.CompressWeightsMode(mode), group_size)

        def ours(config: WeightCompressionConfig = config) -> list[np.ndarray]:
            return [c.data for c in constants(lowering.compress_weight(weight, (1,), config), config)]

        def stock(config: WeightCompressionConfig = config) -> list[np.ndarray]:
            with disable_results_caching(OV_MODEL_CACHE):
                compressed = compress_weight(weight, (1,), config)
            return [constant.data for constant in constants(compressed, config)]

        results.append(
            in_turn(
                f"{mode}, " + ("per channel" if group_size == -1 else f"groups of {group_size}"),
                num_bytes,
                runs,
                ours,
                stock,
            )
        )
    return results


def compare_torch(weight: Tensor, num_bytes: int, runs: int, lowering: Lowering) -> dict[str, Any]:
    """The same arithmetic in plain torch operations on blocks of rows, which stay in the cache."""
    config = WeightCompressionConfig(nncf.CompressWeightsMode.INT4_ASYM, 128)
    matrix = torch.from_numpy(weight.data.data.view(np.int16)).view(torch.bfloat16)
    rows = max(1, TORCH_BLOCK_VALUES // matrix.shape[1])
    least_scale = torch.tensor(torch.finfo(torch.float32).eps)

    def in_torch() -> list[np.ndarray]:
        parts = []
        for block in matrix.split(rows):
            groups = block.float().unflatten(1, (-1, 128))
            low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
            scale = (high - low) / 15
            scale = torch.where(scale.abs() < least_scale, least_scale, scale)
            zero_point = (-torch.round(low / scale)).clamp(0, 15)
            codes = (groups / scale).add_(zero_point).round_().clamp_(0, 15).to(torch.uint8)
            parts.append((codes[..., ::2] | (codes[..., 1::2] << 4), scale.half(), zero_point.to(torch.uint8)))
        codes, scales, zero_points = (torch.cat(part).flatten() for part in zip(*parts, strict=True))
        return [codes.numpy(), scales.numpy(), (zero_points[::2] | (zero_points[1::2] << 4)).numpy()]

    def ours() -> list[np.ndarray]:
        return [c.data for c in constants(lowering.compress_weight(weight, (1,), config), config)]

    return in_turn("int4_asym, groups of 128, against torch in blocks", num_bytes, runs, ours, in_torch)


def compare_searches(weight: Tensor, num_bytes: int, runs: int, num_threads: int) -> list[dict[str, Any]]:
    """Scale estimation and AWQ as they come with NNCF's settings."""
    columns = weight.shape[1]
    generator = np.random.default_rng(1)
    magnitudes = np.exp(generator.standard_normal(columns))
    means = (generator.standard_normal((NUM_SAMPLES, columns)) * magnitudes).astype(np.float32)
    statistic = WCTensorStatistic([Tensor(mean) for mean in means], [(1, 256, columns)] * NUM_SAMPLES)
    values = Tensor(weight.as_numpy_tensor().astype(nncf.tensor.TensorDataType.float32).data)
    results = []
    for mode in ("int4_asym", "int4_sym"):
        config = WeightCompressionConfig(nncf.CompressWeightsMode(mode), 128)

        def stock(config: WeightCompressionConfig = config) -> list[np.ndarray]:
            found = StockScaleEstimation.calculate_quantization_params(statistic, values, (1,), config)
            return [part.data for part in found if part is not None]

        def ours(stock: Callable[[], list[np.ndarray]] = stock) -> list[np.ndarray]:
            with ScaleEstimation(num_threads).installed():
                return stock()

        results.append(in_turn(f"scale estimation, {mode}, groups of 128", num_bytes, runs, ours, stock))
        wp = SimpleNamespace(compression_config=config, reduction_axes=(1,))

        def stock_search(wp: SimpleNamespace = wp) -> list[np.ndarray]:
            return [AWQ()._data_aware_step(wp, values, statistic, -1).data]

        def our_search(stock: Callable[[], list[np.ndarray]] = stock_search) -> list[np.ndarray]:
            with awq_search(num_threads):
                return stock()

        results.append(in_turn(f"AWQ, {mode}, groups of 128", num_bytes, runs, our_search, stock_search))
    return results


def compare_gptq(weight: Tensor, num_bytes: int, runs: int, num_threads: int) -> dict[str, Any]:
    """Hessian, factor and columns of one layer; alone, so that nothing is shared with another one."""
    columns = weight.shape[1]
    generator = np.random.default_rng(1)
    windows = generator.standard_normal((NUM_SAMPLES, 1, 256, columns), dtype=np.float32)
    windows *= np.exp(generator.standard_normal(columns)).astype(np.float32)
    values = weight.as_numpy_tensor().astype(nncf.tensor.TensorDataType.float32)
    config = WeightCompressionConfig(nncf.CompressWeightsMode.INT4_ASYM, 128)
    algorithm = GPTQ()
    algorithm._backend_entity = SimpleNamespace(matmul_metatypes=["matmul"], convolution_metatypes=[])
    attributes = SimpleNamespace(constant_attributes={1: {"transpose": True}}, input_attributes={"transpose": False})
    node = SimpleNamespace(metatype="matmul", layer_attributes=attributes)
    params = SimpleNamespace(
        node_with_weight=node, weight_port_id=1, weight_name="", compression_config=config, reduction_axes=(1,)
    )

    def stock() -> list[np.ndarray]:
        inputs = [Tensor(window) for window in windows]
        hessian = algorithm._calculate_hessian(node, inputs)[0]
        found, scales, zero_points = algorithm._quantize_weights(params, hessian, values.clone(), inputs)
        codes = np.rint(found.data.reshape(*scales.shape[:2], -1) / scales.data) + zero_points.data
        return [codes.astype(np.uint8)]

    def ours() -> list[np.ndarray]:
        with Gptq(num_threads).installed():
            return stock()

    return in_turn("GPTQ, int4_asym, groups of 128", num_bytes, runs, ours, stock)


def compare_learned(weight: Tensor, num_bytes: int, runs: int, num_threads: int) -> dict[str, Any]:
    """Forward and backward pass of a weight whose codes, scales and zero points are trained."""
    torch.set_num_threads(num_threads)
    original = torch.from_numpy(weight.as_numpy_tensor().astype(nncf.tensor.TensorDataType.float32).data)
    groups = original.numpy().reshape(len(original), -1, 128)
    scales = ((groups.max(2, keepdims=True) - groups.min(2, keepdims=True)) / 15).astype(np.float16)
    start = IntegerWeight(np.zeros(groups.shape, np.int16), scales, np.full(scales.shape, 8, np.int16), "u4")
    quantizer = WeightQuantizer(start, frozenset({"scales", "zero_points", "rounding"}))
    gradient = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))

    def ours() -> list[np.ndarray]:
        quantizer.zero_grad()
        values = quantizer(original)
        values.backward(gradient)
        return [each.detach().numpy() for each in (values, quantizer.offset.grad, quantizer.scale.grad)]

    def in_torch() -> list[np.ndarray]:
        with replaced(group_values, "fits", lambda *_: False):
            return ours()

    return in_turn("learned int4_asym, groups of 128, against torch", num_bytes, runs, ours, in_torch)


def main() -> None:
    """Run the comparison and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    weight = weight_of(args.rows, args.columns, args.dtype)
    num_bytes = args.rows * args.columns * DTYPES[args.dtype][1]
    results = compare_lowering(weight, num_bytes, args.runs, Lowering(args.threads))
    if args.dtype == "bf16":
        results.append(compare_torch(weight, num_bytes, args.runs, Lowering(args.threads)))
    results += compare_searches(weight, num_bytes, args.runs, args.threads)
    results.append(compare_gptq(weight, num_bytes, args.runs, args.threads))
    results.append(compare_learned(weight, num_bytes, args.runs, args.threads))
    table = Table("case", "ours", "the other", "times as fast", "equal bytes")
    for result in results:
        rates = result["gb_per_s"]
        speedup = f"{result['speedup']:.1f}"
        table.add_row(
            result["case"],
            f"{rates['ours']:.3f} GB/s",
            f"{rates['nncf']:.3f} GB/s",
            speedup,
            "True" if result["equal_bytes"] == 1 else f"{result['equal_bytes']:.2%}",
        )
    Console().print(table)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    print(json.dumps({**machine, **vars(args), "results": results}))


if __name__ == "__main__":
    main()
