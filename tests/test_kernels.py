"""The kernels make the constants that NNCF's own call makes, bit for bit, for any weight."""

from __future__ import annotations

import filecmp
import functools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODES = ("int8_asym", "int8_sym", "int4_asym", "int4_sym", "int3_sym", "int2_sym")
FLOATS = ("nf4", "fp4", "fp8_e4m3")
DTYPES = ("bf16", "f16", "f32")
GROUP_SIZES = (-1, 16, 32, 64, 128, 24, 7)
ROOT = Path(__file__).parent.parent


def tensor_of(values: np.ndarray, dtype: str) -> Any:
    """An ``nncf.Tensor`` over an ``ov.Tensor`` of a type, as NNCF takes it from a graph."""
    import openvino as ov
    from nncf.tensor import Tensor

    if dtype == "f16":
        with np.errstate(over="ignore"):
            stored = np.clip(values, -65504, 65504).astype(np.float16)
    elif dtype == "bf16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.float16)
    else:
        stored = values
    return Tensor(ov.Tensor(np.ascontiguousarray(stored), ov.Shape(stored.shape), getattr(ov.Type, dtype)))


def without_rest(raw: bytes, num_values: int) -> bytes:
    """Values of 4 bits; what NNCF leaves in the half byte behind an odd number of them is what was in memory."""
    return raw[:-1] + bytes([raw[-1] & 15]) if num_values % 2 else raw


def stored_bytes(compressed: Any, config: Any) -> dict[str, bytes]:
    """The constants that NNCF's backend makes of a compressed weight, as it makes them."""
    from nncf.openvino.graph.node_utils import create_ov_const_from_tensor
    from nncf.tensor.functions.openvino_numeric import DTYPE_MAP

    if not config.is_integer:
        codes, scale = compressed.tensor.data, np.asarray(compressed.scale.data)
        raw = codes.data.reshape(-1).view(np.uint8).tobytes()
        raw = without_rest(raw, codes.get_size()) if config.num_bits == 4 else raw
        shapes = str((codes.get_element_type(), tuple(codes.shape), scale.shape)).encode()
        return {"codes": raw, "scales": scale.tobytes(), "shapes": shapes}
    element = DTYPE_MAP[config.compression_dtype]
    codes = compressed.tensor
    if config.is_symmetric_represented_by_unsigned:
        codes = codes + 2 ** (config.num_bits - 1)
    constants = {"codes": create_ov_const_from_tensor(codes, element)}
    scale = np.asarray(compressed.scale.data)
    if compressed.zero_point is not None:
        constants["zero points"] = create_ov_const_from_tensor(compressed.zero_point, element)
    found = {name: constant.data.tobytes() for name, constant in constants.items()}
    if config.num_bits == 4:
        found = {name: without_rest(raw, math.prod(constants[name].get_output_shape(0))) for name, raw in found.items()}
    shapes = {f"shape of {name}": str(constant.get_output_shape(0)).encode() for name, constant in constants.items()}
    return {**found, **shapes, "scales": scale.tobytes(), "shape of scales": str(scale.shape).encode()}


def both(weight: Any, axes: tuple[int, ...], mode: str, group_size: int, precomputed: Any = None) -> Any:
    """Our constants and NNCF's, and whether ours were ours."""
    import nncf
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight

    from llmcompress.compression.nncf.weight_codes import Lowering

    config = WeightCompressionConfig(nncf.CompressWeightsMode(mode), group_size)
    lowering = Lowering(2)
    with np.errstate(all="ignore"):
        ours = lowering.compress_weight(weight, axes, config, precomputed)
        stock = compress_weight(weight, axes, config, precomputed)
    return stored_bytes(ours, config), stored_bytes(stock, config), lowering.is_ours


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """Matrices from the seed of a generator, with rows and values of every awkward kind among them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_columns = draw(st.sampled_from((48, 128, 384, 1344, 1000, 1001, 7 * 24)))
    num_rows = draw(st.integers(max(1, 9000 // num_columns), 30_000 // num_columns))
    size = draw(st.sampled_from((0.02, 1.0, 1e-9, 1e4, 1e30)))
    values = (generator.standard_normal((num_rows, num_columns)) * size).astype(np.float32)
    special = np.array(
        [0.0, -0.0, 1e-40, -1e-40, 1.1754944e-38, 3.3e38, -3.3e38, 65504, 6e-8, 1.1920929e-07, 0.5, -8, 15, 255],
        np.float32,
    )
    for _ in range(draw(st.integers(0, 6))):
        row = int(generator.integers(num_rows))
        kind = draw(
            st.sampled_from(("zero", "constant", "positive", "negative", "halves", "special", "denormal", "few"))
        )
        if kind == "zero":
            values[row] = 0
        elif kind == "constant":
            values[row] = special[generator.integers(special.size)]
        elif kind == "positive":
            values[row] = np.abs(values[row])
        elif kind == "negative":
            values[row] = -np.abs(values[row])
        elif kind == "halves":
            values[row] = generator.integers(-32, 32, num_columns) / 2
        elif kind == "special":
            values[row] = generator.choice(special, num_columns)
        elif kind == "denormal":
            values[row] = generator.integers(-9, 9, num_columns) * np.float32(1e-45)
        else:
            values[row, generator.integers(num_columns)] = special[generator.integers(special.size)]
    return values


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=weights(),
    dtype=st.sampled_from(DTYPES),
    mode=st.sampled_from((*MODES, *FLOATS)),
    group_size=st.sampled_from(GROUP_SIZES),
    upright=st.booleans(),
)
def test_constants_equal_nncf(values: np.ndarray, dtype: str, mode: str, group_size: int, upright: bool) -> None:
    if values.shape[1] % group_size:
        group_size = -1
    if upright:
        values = values[: len(values) // 8 * 8 or len(values)].T
    axis = 0 if upright else 1
    ours, stock, is_ours = both(tensor_of(np.ascontiguousarray(values), dtype), (axis,), mode, group_size)
    assert ours == stock
    by_numpy = values.size < 10_000 and mode not in ("int3_sym", "int2_sym")
    upright_and_odd = upright and (values.shape[1] % 8 != 0 or mode in FLOATS)
    assert is_ours == (not by_numpy and values.size % 8 == 0 and not upright_and_odd)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=weights(), dtype=st.sampled_from(DTYPES), mode=st.sampled_from((*MODES, *FLOATS)), seed=st.integers(0, 99)
)
def test_constants_equal_nncf_where_scales_are_given(values: np.ndarray, dtype: str, mode: str, seed: int) -> None:
    from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
    from nncf.tensor import Tensor

    generator = np.random.default_rng(seed)
    group_size = 16 if values.shape[1] % 16 == 0 else values.shape[1]
    shape = (values.shape[0], values.shape[1] // group_size, 1)
    scales = (generator.standard_normal(shape) * 10.0 ** generator.integers(-8, 3)).astype(np.float32)
    scales[scales == 0] = 1
    zero_points = generator.integers(0, 15, shape).astype(np.int32) if mode.endswith("_asym") else None
    precomputed = CompressedWeight(
        scale=Tensor(scales), zero_point=None if zero_points is None else Tensor(zero_points)
    )
    ours, stock, _ = both(tensor_of(values, dtype), (1,), mode, group_size, precomputed)
    assert ours == stock


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["int8_sym", "nf4", "fp8_e4m3"])
def test_weights_that_are_no_numbers_are_left_to_nncf(mode: str, dtype: str, value: float) -> None:
    values = np.ones((128, 128), np.float32)
    values[3, 5] = value
    weight = tensor_of(values, dtype)
    if dtype == "f16":
        weight.data.data[3, 5] = value
    ours, stock, is_ours = both(weight, (1,), mode, -1)
    assert ours == stock
    assert not is_ours


def test_a_stack_of_matrices_and_a_convolution() -> None:
    values = np.random.default_rng(0).standard_normal((4, 24, 192)).astype(np.float32)
    shapes = (((4, 24, 192), (2,), 32), ((4, 24, 192), (2,), -1), ((96, 12, 4, 4), (1, 2, 3), -1))
    upright = (((4, 24, 192), (1,), 8), ((4, 24, 192), (1,), -1), ((12, 12, 8, 16), (1, 2), -1), ((192, 96), (0,), 64))
    for shape, axes, group_size in (*shapes, *upright):
        ours, stock, is_ours = both(tensor_of(values.reshape(shape), "bf16"), axes, "int4_asym", group_size)
        assert ours == stock
        assert is_ours


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8_e4m3"])
def test_other_formats_are_left_to_nncf(mode: str) -> None:
    values = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    ours, stock, is_ours = both(tensor_of(values, "bf16"), (1,), mode, 32)
    assert ours == stock
    assert not is_ours


def test_an_nncf_that_computes_otherwise_keeps_its_own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    from nncf import CompressWeightsMode
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight

    from llmcompress.compression.nncf import weight_codes as lowering
    from llmcompress.compression.nncf.weight_codes import Lowering

    def of_another_version(*args: Any) -> Any:
        found = compress_weight(*args)
        found.scale.data[0] *= np.float32(1 + 2**-23)
        return found

    monkeypatch.setattr(lowering, "stock_compress_weight", of_another_version)
    lowering.agrees.cache_clear()
    weight = tensor_of(np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32), "bf16")
    config = WeightCompressionConfig(CompressWeightsMode.INT4_SYM, 32)
    taken = Lowering(1)
    assert stored_bytes(taken.compress_weight(weight, (1,), config), config) == stored_bytes(
        of_another_version(weight, (1,), config), config
    )
    assert not taken.is_ours
    lowering.agrees.cache_clear()


def test_the_manifest_says_whose_arithmetic_made_a_layer(ref_model: Path, tmp_path: Path) -> None:
    import llmcompress

    loaded = llmcompress.load(ref_model)
    recipe = llmcompress.load_recipe("int4-sym", ["weights.ratio=0.5"])
    ours = llmcompress.compress(loaded, recipe, tmp_path / "ours", tokenizer=False)
    stock = llmcompress.compress(loaded, recipe, tmp_path / "stock", tokenizer=False, engine="nncf")
    assert {layer.mode for layer in ours.layers} == {"int4_sym", "int8_asym"}
    assert {layer.engine for layer in ours.layers} == {"llmcompress"}
    assert {layer.engine for layer in stock.layers} == {"nncf"}
    for name in ("openvino_model.bin", "openvino_model.xml"):
        assert filecmp.cmp(tmp_path / "ours" / name, tmp_path / "stock" / name, shallow=False)
    same = ours.model_dump(exclude={"measured"})
    assert same.pop("layers") != stock.model_dump()["layers"]
    assert same == stock.model_dump(exclude={"measured", "layers"})
    none = llmcompress.compress(loaded, "none", tmp_path / "none", tokenizer=False)
    assert {layer.engine for layer in none.layers} == {None}


@pytest.mark.slow
def test_codes_may_wait_on_disk(ref_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    import llmcompress
    from llmcompress.compression import preparation
    from llmcompress.system.file_memory import FileMemory

    # Codes that depend on their weight alone are made where they are saved, and wait nowhere.
    recipe = llmcompress.load_recipe("int4", ["weights.awq=true"])
    taken: list[int] = []

    def short_of_memory(*args: Any, **kwargs: Any) -> Any:
        return forecast(*args, **kwargs).model_copy(update={"codes_on_disk": True})

    def noted(self: FileMemory, size_bytes: int) -> Any:
        taken.append(size_bytes)
        return block(self, size_bytes)

    forecast, block = preparation.forecast, FileMemory.block
    llmcompress.compress(ref_model, recipe, tmp_path / "in memory", tokenizer=False)
    monkeypatch.setattr(preparation, "forecast", short_of_memory)
    monkeypatch.setattr(FileMemory, "block", noted)
    report = llmcompress.compress(ref_model, recipe, tmp_path / "on disk", tokenizer=False)
    codes = [layer.num_parameters * (1 if layer.mode == "int8_asym" else 0.5) for layer in report.layers]
    assert sum(taken) == sum(codes)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("in memory", "on disk")]
    gc.collect()
    for name in ("openvino_model.bin", "openvino_model.xml"):
        assert filecmp.cmp(tmp_path / "in memory" / name, tmp_path / "on disk" / name, shallow=False)


def test_the_forecast_knows_what_the_kernels_make() -> None:
    from llmcompress.compression.forecast.peak_memory import BY_KERNELS
    from llmcompress.compression.nncf.group_codes import FLOAT_FORMATS, FORMATS

    assert {mode.value for mode in (*FORMATS, *FLOAT_FORMATS)} == BY_KERNELS


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    import llmcompress

    with pytest.raises(llmcompress.UsageError, match="engine: got 'fast'; accepted: llmcompress, nncf"):
        llmcompress.compress("nowhere", "int4", tmp_path / "out", engine="fast")  # type: ignore[arg-type]


def test_a_folder_that_cannot_hold_machine_code_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = "from llmcompress.compression.kernels.integers import pack; import numpy as np; a = np.ones(8, np.uint8);"
    program += "pack(a, 8, a)"
    environment = {**os.environ, "LLMCOMPRESS_CACHE": str(tmp_path / "file" / "below")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def statistics_of(num_columns: int, seed: int = 0) -> Any:
    """Activations of a layer as NNCF collects them, of very different size from channel to channel."""
    from nncf.common.tensor_statistics.statistics import WCTensorStatistic
    from nncf.tensor import Tensor

    generator = np.random.default_rng(seed)
    means = generator.standard_normal((12, num_columns), dtype=np.float32) * np.exp(generator.normal(size=num_columns))
    means[:, 11:19] = 0
    return WCTensorStatistic([Tensor(mean.astype(np.float32)) for mean in means], [(1, 9, num_columns) for _ in means])


def awkward_matrix(num_rows: int, num_columns: int) -> np.ndarray:
    """Normal values, with rows of nothing, of ones and of many zeros among them."""
    values = np.random.default_rng(num_rows).standard_normal((num_rows, num_columns), dtype=np.float32) * np.float32(
        0.02
    )
    values[3] = 0
    values[5, ::3] = 0
    values[7] = 1
    return values


@pytest.mark.parametrize("mode", ["int4_asym", "int4_sym", "int3_sym", "int2_sym"])
@pytest.mark.parametrize(
    ("num_rows", "num_columns", "group_size", "penalty"),
    [(300, 256, 64, -1.0), (97, 512, 32, -1.0), (200, 384, -1, 0.5), (150, 420, 42, 0.5), (600, 20, 5, -1.0)],
)
def test_estimated_scales_equal_nncf(
    mode: str, num_rows: int, num_columns: int, group_size: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.scale_estimation import ScaleEstimation as Stock
    from nncf.tensor import Tensor
    from threadpoolctl import threadpool_limits

    from llmcompress.compression.kernels import estimation
    from llmcompress.compression.nncf import scale_estimation as scales
    from llmcompress.compression.nncf.scale_estimation import ScaleEstimation

    monkeypatch.setattr(estimation, "BLOCK_VALUES", 1 << 14)
    values, statistics = awkward_matrix(num_rows, num_columns), statistics_of(num_columns)
    config = WeightCompressionConfig(nncf.CompressWeightsMode(mode), group_size)
    arguments = (statistics, Tensor(values), (1,), config, -1, 8, 3, 4, penalty)
    # With more threads NNCF's own sums, and in rare cases its choices, depend on their number.
    with np.errstate(all="ignore"), threadpool_limits(1, "blas"):
        stock = Stock.calculate_quantization_params(*arguments)
        assert scales._estimates_agree(Stock.calculate_quantization_params, config.mode)
        with ScaleEstimation(2).installed(), monkeypatch.context() as patch:
            patch.setattr(scales, "process_stats", counted := Counted(scales.process_stats))
            ours = Stock.calculate_quantization_params(*arguments)
    assert counted.num_calls == 1
    for mine, other in zip(ours, stock, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.data.dtype == other.data.dtype
            np.testing.assert_array_equal(mine.data, other.data, strict=True)
    assert ours[0].data.shape == ((num_rows, 1) if group_size == -1 else (num_rows, num_columns // group_size, 1))


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.num_calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Count, and pass on."""
        self.num_calls += 1
        return self._function(*args, **kwargs)


@pytest.mark.parametrize("mode", ["int4_asym", "int4_sym"])
@pytest.mark.parametrize(("group_size", "is_held_back"), [(128, False), (128, True), (-1, True)])
def test_what_awq_finds_equals_nncf(
    mode: str, group_size: int, is_held_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    import nncf
    from nncf.quantization.algorithms.weight_compression.awq import AWQ
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.tensor import Tensor
    from threadpoolctl import threadpool_limits

    from llmcompress.compression.kernels import estimation
    from llmcompress.compression.nncf import awq
    from llmcompress.compression.nncf.awq import awq_search

    monkeypatch.setattr(estimation, "BLOCK_VALUES", 1 << 14)
    wp = SimpleNamespace(
        compression_config=WeightCompressionConfig(nncf.CompressWeightsMode(mode), group_size), reduction_axes=(1,)
    )
    values, statistics = awkward_matrix(301, 384), statistics_of(384)
    # Large enough that what this layer puts out would leave half precision.
    before = (Tensor(awkward_matrix(384, 64) * np.float32(1e4)), statistics_of(64, 1)) if is_held_back else ()
    algorithm, stock = AWQ(subset_size=8, percent_to_apply=0.01, steps=20), AWQ._data_aware_step
    broken = np.where(values > 0.06, np.float32(np.inf), values)
    with np.errstate(all="ignore"), threadpool_limits(1, "blas"):
        assert awq._searches_agree(stock, wp.compression_config.mode)
        for weight, num_calls in ((values, 1), (values[:30, :], group_size == -1), (broken, 1)):
            other = algorithm._data_aware_step(wp, Tensor(weight), statistics, -1, *before)
            with awq_search(2), monkeypatch.context() as patch:
                patch.setattr(awq, "_scales", counted := Counted(awq._scales))
                mine = algorithm._data_aware_step(wp, Tensor(weight), statistics, -1, *before)
            np.testing.assert_array_equal(mine.data, other.data, strict=True)
            assert counted.num_calls == num_calls
            assert weight is not values or len(np.unique(mine.data)) > 20
    assert AWQ._data_aware_step is stock


def test_an_nncf_that_searches_otherwise_keeps_its_own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import nncf
    from nncf.quantization.algorithms.weight_compression.awq import AWQ
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.scale_estimation import ScaleEstimation as Stock
    from nncf.tensor import Tensor

    from llmcompress.compression.nncf.awq import awq_search
    from llmcompress.compression.nncf.scale_estimation import ScaleEstimation

    config = WeightCompressionConfig(nncf.CompressWeightsMode.INT4_SYM, 128)
    wp = SimpleNamespace(compression_config=config, reduction_axes=(1,))
    values, statistics = awkward_matrix(300, 256), statistics_of(256)
    estimate, step = Stock.calculate_quantization_params, AWQ._data_aware_step

    @functools.wraps(estimate)
    def other_estimate(*args: Any) -> Any:
        scale, zero_point = estimate(*args)
        return scale * 2.0, zero_point

    @functools.wraps(step)
    def other_step(*args: Any) -> Any:
        return step(*args) * 2.0

    with np.errstate(all="ignore"):
        for doubled in (False, True):
            if doubled:
                monkeypatch.setattr(Stock, "calculate_quantization_params", staticmethod(other_estimate))
                monkeypatch.setattr(AWQ, "_data_aware_step", other_step)
            with ScaleEstimation(1).installed(), awq_search(1):
                scale, _ = Stock.calculate_quantization_params(statistics, Tensor(values), (1,), config)
                factors = AWQ(steps=20)._data_aware_step(wp, Tensor(values), statistics, -1)
            expected, _ = estimate(statistics, Tensor(values), (1,), config)
            np.testing.assert_allclose(scale.data, expected.data * (2 if doubled else 1), rtol=1e-6)
            wanted = step(AWQ(steps=20), wp, Tensor(values), statistics, -1)
            np.testing.assert_allclose(factors.data, wanted.data * (2 if doubled else 1), rtol=1e-6)


@pytest.mark.parametrize("name", ["calculate_quantization_params", "_data_aware_step"])
def test_an_nncf_with_other_arguments_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nncf.quantization.algorithms.weight_compression.awq import AWQ
    from nncf.quantization.algorithms.weight_compression.scale_estimation import ScaleEstimation as Stock

    from llmcompress.compression.nncf.awq import awq_search
    from llmcompress.compression.nncf.scale_estimation import ScaleEstimation

    def moved(statistics: Any) -> None:
        """Takes something else."""

    owner: Any = AWQ if name in vars(AWQ) else Stock
    for other in (moved, None):
        if other is None:
            monkeypatch.delattr(owner, name)
        else:
            monkeypatch.setattr(owner, name, staticmethod(other))
        with ScaleEstimation(1).installed(), awq_search(1):
            assert getattr(owner, name, None) is other


def test_bf16_constants_equal_openvino() -> None:
    import openvino as ov
    from nncf.openvino.graph.node_utils import create_ov_const_from_tensor
    from nncf.quantization.algorithms.weight_compression import openvino_backend
    from nncf.tensor import Tensor

    from llmcompress.compression.nncf.weight_codes import own_constants

    random = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    halves = (random & 0xFFFF0000) | 0x8000
    for bits in (random, halves, halves + 1, halves - 1):
        values = bits.view(np.float32).reshape(64, 64)
        for weight in (values, np.where(np.abs(values) < 1e38, values, np.float32(0))):
            with own_constants():
                ours = openvino_backend.create_ov_const_from_tensor(Tensor(weight), ov.Type.bf16, name="weight")
            stock = create_ov_const_from_tensor(Tensor(weight), ov.Type.bf16, name="weight")
            assert ours.data.tobytes() == stock.data.tobytes()
            assert (ours.get_friendly_name(), ours.get_output_shape(0), ours.get_element_type()) == (
                stock.get_friendly_name(),
                stock.get_output_shape(0),
                stock.get_element_type(),
            )


@pytest.mark.parametrize("element", ["bf16", "f16", "f32"])
def test_constants_in_a_file(element: str, tmp_path: Path) -> None:
    import openvino as ov
    from nncf.openvino.graph.node_utils import create_ov_const_from_tensor
    from nncf.quantization.algorithms.weight_compression import openvino_backend
    from nncf.tensor import Tensor

    from llmcompress.compression.nncf.weight_codes import own_constants
    from llmcompress.system.file_memory import FileMemory

    memory = FileMemory(tmp_path)
    values = Tensor(np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32))
    with own_constants(memory):
        ours = openvino_backend.create_ov_const_from_tensor(values, getattr(ov.Type, element), name="weight")
    stock = create_ov_const_from_tensor(values, getattr(ov.Type, element), name="weight")
    after = memory.block(64)
    assert after is not None
    size_bytes = 8 * 48 * (4 if element == "f32" else 2)
    assert after.ctypes.data - ours.data.ctypes.data == size_bytes
    assert ours.data.tobytes() == stock.data.tobytes()
    assert (ours.get_friendly_name(), ours.get_output_shape(0), ours.get_element_type()) == (
        stock.get_friendly_name(),
        stock.get_output_shape(0),
        stock.get_element_type(),
    )


@pytest.mark.parametrize("mode", ["int3_sym", "int2_sym"])
def test_packed_codes_read_as_numbers(mode: str) -> None:
    import nncf
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight

    from llmcompress.compression.nncf.weight_codes import Lowering

    config = WeightCompressionConfig(nncf.CompressWeightsMode(mode), 32)
    weight = tensor_of(np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32), "f32")
    ours, stock = Lowering(1).compress_weight(weight, (1,), config), compress_weight(weight, (1,), config)
    np.testing.assert_array_equal(ours.tensor.as_numpy_tensor().data, stock.tensor.data, strict=True)
