"""Statistics of activations are NNCF's own, and nothing else is computed for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.compression.nncf import statistics
from llmcompress.compression.nncf.statistics import check_statistics_precision, lean_statistics
from llmcompress.errors import ModelError, RecipeError
from llmcompress.graph.segments import segments
from llmcompress.spec import Recipe
from llmcompress.system.file_memory import FileMemory

RECIPE = {
    "name": "aware",
    "weights": {"mode": "int4_sym", "group_size": 16, "awq": True, "statistics_precision": "bf16"},
    "calibration": {"dataset": "text.txt", "num_samples": 3, "seq_len": 64},
}


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The outputs of every inference of NNCF's."""
    from nncf.openvino.engine import OVCompiledModelEngine

    outputs: list[set[str]] = []
    infer = OVCompiledModelEngine.infer

    def noted(self: Any, inputs: Any) -> Any:
        found = infer(self, inputs)
        outputs.append(set(found))
        return found

    monkeypatch.setattr(OVCompiledModelEngine, "infer", noted)
    return outputs


def collected(model: Any, directory: Path) -> dict[str, np.ndarray]:
    """NNCF's statistics of three windows, by their file and name."""
    import nncf
    from nncf.common.factory import build_graph
    from nncf.quantization.statistics_caching import cache_weight_compression_statistics
    from safetensors.numpy import load_file

    from llmcompress.compression.nncf.runs import model_inputs

    token_ids = np.random.default_rng(0).integers(5, 200, (3, 32))
    dataset = nncf.Dataset(list(model_inputs(model, token_ids)))
    cache_weight_compression_statistics(model, build_graph(model), dataset, len(token_ids), directory)
    files = [path for path in sorted(directory.iterdir()) if path.suffix != ".json"]
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


def skip_without_bf16() -> None:
    import openvino as ov

    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this machine's processor does not compute in bf16")


def test_statistics_equal_nncf_and_take_no_output(ref_model: Path, tmp_path: Path, inferred: list[set[str]]) -> None:
    model = llmcompress.load(ref_model).model
    names = model.outputs[0].get_names()
    stock = collected(model, tmp_path / "stock")
    assert all(names & outputs for outputs in inferred)
    inferred.clear()
    with lean_statistics("f32"):
        lean = collected(model, tmp_path / "lean")
    assert len(inferred) == 3
    assert not any(names & outputs for outputs in inferred)
    assert len(stock) > 50
    assert stock.keys() == lean.keys()
    for name, values in stock.items():
        np.testing.assert_array_equal(lean[name], values, strict=True)


@pytest.mark.parametrize("waits_in_a_file", [False, True])
def test_statistics_of_segments_equal_nncf(
    waits_in_a_file: bool, ref_model: Path, tmp_path: Path, inferred: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llmcompress.load(ref_model).model
    stock = collected(model, tmp_path / "stock")
    inferred.clear()
    parts: list[Any] = []

    def small_segments(graph: Any) -> Any:
        parts.extend(segments(graph, min_bytes=1_000_000))
        return parts

    monkeypatch.setattr(statistics, "segments", small_segments)
    with lean_statistics("f32", FileMemory(tmp_path) if waits_in_a_file else None):
        lean = collected(model, tmp_path / "lean")
    assert len(parts) > 5
    assert not inferred
    assert stock.keys() == lean.keys()
    for name, values in stock.items():
        np.testing.assert_array_equal(lean[name], values, strict=True)


def test_a_runtime_that_takes_no_part_by_itself(
    ref_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llmcompress.load(ref_model).model

    def refusing(*arguments: Any) -> None:
        raise RuntimeError("Exception from src/core.cpp:1:\nInvalid graph status")

    monkeypatch.setattr(statistics, "segments", lambda graph: segments(graph, min_bytes=1_000_000))
    monkeypatch.setattr(statistics, "infer_by_segments", refusing)
    with (
        pytest.raises(ModelError, match="does not take a part of the model by itself: Invalid graph status") as caught,
        lean_statistics("f32"),
    ):
        collected(model, tmp_path / "lean")
    assert caught.value.hint.startswith("give `engine` nncf")


def test_statistics_in_bf16_lie_near_those_in_f32(ref_model: Path, tmp_path: Path) -> None:
    skip_without_bf16()
    model = llmcompress.load(ref_model).model
    stock = collected(model, tmp_path / "stock")
    with lean_statistics("bf16"):
        short = collected(model, tmp_path / "short")
    means = [name for name in stock if "mean_values" in name]
    assert any(not np.array_equal(short[name], stock[name]) for name in means)
    for name in means:
        assert np.abs(short[name] - stock[name]).max() < 0.05 * np.abs(stock[name]).max()


@pytest.mark.parametrize("moved", ["collect_statistics", "_register_statistics", "create"])
def test_an_nncf_that_collects_otherwise(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nncf.common import factory
    from nncf.openvino.statistics.aggregator import OVStatisticsAggregator

    owner: Any = factory.EngineFactory if moved == "create" else OVStatisticsAggregator
    monkeypatch.delattr(owner, moved)
    with lean_statistics("f32"):
        assert moved not in vars(owner)
    with (
        pytest.raises(RecipeError, match="the installed NNCF cannot be made to collect statistics in bf16"),
        lean_statistics("bf16"),
    ):
        pass


def test_a_processor_without_bf16(ref_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    stock = ov.Core.get_property

    def without(self: Any, *args: Any) -> Any:
        found = stock(self, *args)
        return [name for name in found if name != "BF16"] if args[-1] == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(ov.Core, "get_property", without)
    recipe = Recipe.model_validate(RECIPE)
    with pytest.raises(RecipeError, match="this machine's processor does not compute in bf16"):
        llmcompress.compress(ref_model, recipe, tmp_path / "out")
    weights = {**RECIPE["weights"], "statistics_precision": "f32"}  # type: ignore[dict-item]
    check_statistics_precision(Recipe.model_validate({**RECIPE, "weights": weights}))


def test_a_run_in_bf16_says_so(
    tmp_path: Path, inferred: list[set[str]], calibration_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_bf16()
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    loaded = llmcompress.load(build_checkpoint(tmp_path / "tiny"))
    (tmp_path / "text.txt").write_text(calibration_text.read_text()[:50_000])
    text = {**RECIPE["calibration"], "dataset": str(tmp_path / "text.txt")}  # type: ignore[dict-item]
    recipe = Recipe.model_validate({**RECIPE, "calibration": text})
    for name in ("first", "second"):
        manifest = llmcompress.compress(loaded, recipe, tmp_path / name, tokenizer=False, engine="nncf")
        assert manifest.recipe.weights is not None
        assert manifest.recipe.weights.statistics_precision == "bf16"
    # The second run reads them, and f32 is another key.
    assert len(inferred) == 3
    exact = recipe.model_copy(update={"weights": recipe.weights.model_copy(update={"statistics_precision": "f32"})})
    llmcompress.compress(loaded, exact, tmp_path / "exact", tokenizer=False)
    assert len(inferred) == 6
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 2
