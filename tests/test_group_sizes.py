"""A group size that does not divide a layer's channels: what is said before the work is what stock NNCF writes."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import nncf
import openvino as ov
import pytest

import llmcompress
from llmcompress.cli import run
from llmcompress.compression.forecast import forecast
from llmcompress.compression.layers import layer_table
from llmcompress.errors import RecipeError
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.resolving import resolve
from llmcompress.spec import IgnoredScope, Recipe, WeightCompression
from tests.test_forecast import config_only, recipe_of, stock_ir
from tests.tiny_models import build_checkpoint

UNDIVIDED = "group size 64 does not divide the input channels of 1 layer: model.layers.0.mlp.down_proj.weight"
INT4 = {"mode": "int4_sym", "group_size": 64}


def odd_source(tmp_path: Path, channels: int, **fields: Any) -> Any:
    """One block whose last layer has so many input channels; all other layers' are divided by 64."""
    return config_only(tmp_path, num_hidden_layers=1, intermediate_size=channels, **fields)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Path]]:
    """A checkpoint and its stock IR for 352 channels, which 32 divides, and for 200, which no more than 8 does."""
    found = {}
    for channels in (352, 200):
        directory = tmp_path_factory.mktemp(str(channels))
        checkpoint = build_checkpoint(directory / "odd", num_hidden_layers=1, intermediate_size=channels)
        found[channels] = (checkpoint, stock_ir(checkpoint, directory / "ir"))
    return found


def stock(ir: Path, fallback: str, **arguments: Any) -> ov.Model:
    arguments["mode"] = nncf.CompressWeightsMode(arguments["mode"])
    if "backup_mode" in arguments:
        arguments["backup_mode"] = nncf.BackupMode(arguments["backup_mode"])
    advanced = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode(fallback))
    return nncf.compress_weights(
        ov.Core().read_model(ir / "openvino_model.xml"), advanced_parameters=advanced, **arguments
    )


@pytest.mark.parametrize("channels", [352, 200])
@pytest.mark.parametrize("fallback", ["adjust", "ignore"])
@pytest.mark.parametrize(
    "arguments", [INT4, {**INT4, "all_layers": True, "backup_mode": "none"}], ids=["int4", "all-layers"]
)
def test_each_fallback_is_forecast_as_stock_nncf_carries_it_out(
    models: dict[int, tuple[Path, Path]], channels: int, fallback: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint, ir = models[channels]
    predicted = forecast(resolve(checkpoint), recipe_of(**arguments, group_size_fallback=fallback))
    written = stock(ir, fallback, **arguments)
    assert Counter((layer.shape, layer.mode, layer.group_size) for layer in predicted.layers) == (
        Counter((layer.shape, layer.mode, layer.group_size) for layer in layer_table(written))
    )
    ov.save_model(written, tmp_path / "stock.xml", compress_to_fp16=False)
    assert predicted.size_bytes == pytest.approx((tmp_path / "stock.bin").stat().st_size, rel=0.002)


def test_without_a_fallback_both_refuse(models: dict[int, tuple[Path, Path]]) -> None:
    checkpoint, ir = models[352]
    with pytest.raises(nncf.InvalidGroupSizeError):
        stock(ir, "error", **INT4)
    with pytest.raises(RecipeError) as caught:
        forecast(resolve(checkpoint), recipe_of(**INT4))
    assert (caught.value.where, caught.value.message) == ("weights.group_size", f"{UNDIVIDED} (352)")


def test_a_backup_precision_with_groups_of_its_own_is_refused_where_stock_nncf_fails(
    models: dict[int, tuple[Path, Path]],
) -> None:
    checkpoint, ir = models[200]
    with pytest.raises(nncf.InvalidGroupSizeError):
        stock(ir, "adjust", mode="fp4", group_size=64)
    with pytest.raises(RecipeError) as caught:
        forecast(resolve(checkpoint), recipe_of(mode="fp4", group_size=64, group_size_fallback="adjust"))
    assert (caught.value.where, caught.value.message) == ("weights.backup_mode", f"{UNDIVIDED} (200)")
    assert caught.value.hint == "set weights.backup_mode to int8_asym, which has no groups"


@pytest.mark.parametrize(
    ("channels", "options", "outcome"),
    [
        (352, {"group_size_fallback": "adjust"}, "adjust gives these groups of 32"),
        (352, {"group_size_fallback": "adjust", "ratio": 0.5}, "gives these groups of 32, where they take int4_sym"),
        (352, {"group_size_fallback": "ignore"}, "ignore leaves these as they are"),
        (
            200,
            {"group_size_fallback": "adjust"},
            "gives these int8_asym, the backup precision, as no power of two from 32 on divides them",
        ),
        (
            200,
            {"group_size_fallback": "adjust", "backup_mode": "none"},
            "adjust leaves these as they are, as no power of two from 32 on divides them",
        ),
        (
            200,
            {"group_size_fallback": "adjust", "advanced": {"min_adjusted_group_size": 8}},
            "adjust gives these groups of 8",
        ),
    ],
)
def test_what_falls_back_and_to_what_is_said(
    channels: int, options: dict[str, Any], outcome: str, tmp_path: Path
) -> None:
    predicted = forecast(odd_source(tmp_path, channels), recipe_of(**INT4, **options))
    (warning,) = predicted.warnings
    assert warning.startswith(f"{UNDIVIDED} ({channels}): weights.group_size_fallback ")
    assert warning.endswith(outcome)
    assert warning in predicted.notes


def test_nothing_is_said_where_every_layer_gets_its_groups(tmp_path: Path) -> None:
    assert forecast(odd_source(tmp_path, 384), recipe_of(**INT4, group_size_fallback="adjust")).warnings == ()


def test_a_backup_precision_that_mixed_precision_may_give_is_warned_of(tmp_path: Path) -> None:
    given = {"group_size_fallback": "adjust", "ratio": 0.5, "backup_mode": "fp8_e4m3"}
    warnings = forecast(odd_source(tmp_path, 352), recipe_of(**INT4, **given)).warnings
    assert warnings[-1] == (
        f"{UNDIVIDED} (352): the run fails if mixed precision gives one of these fp8_e4m3, the backup precision; "
        "set weights.backup_mode to int8_asym"
    )


def test_a_later_pass_is_called_by_its_place(tmp_path: Path) -> None:
    scope = IgnoredScope(patterns=(".*",))
    recipe = Recipe(
        name="two",
        weights=WeightCompression(mode="int4_sym", group_size=256, group_size_fallback="ignore", ignored_scope=scope),
        further_weights=(WeightCompression(**INT4),),
    )
    with pytest.raises(RecipeError) as caught:
        forecast(odd_source(tmp_path, 352), recipe)
    assert caught.value.where == "further_weights.0.group_size"
    assert "set further_weights.0.group_size_fallback to adjust" in caught.value.hint


def test_a_run_warns_before_the_work_and_the_manifest_holds_what_was_said(
    models: dict[int, tuple[Path, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(**INT4, group_size_fallback="adjust")
    predicted = forecast(resolve(models[352][0]), recipe)
    stages: list[str] = []
    with caplog.at_level(logging.WARNING, logger="llmcompress"):
        report = llmcompress.compress(
            str(models[352][0]),
            recipe,
            tmp_path / "out",
            tokenizer=False,
            progress=lambda progress: stages.append(progress.stage) if caplog.records else None,
        )
    assert [record.getMessage() for record in caplog.records] == [f"odd by recipe test: {predicted.warnings[0]}"]
    assert stages[0] == "forecast"
    assert Counter((layer.shape, layer.mode, layer.group_size) for layer in report.layers) == (
        Counter((layer.shape, layer.mode, layer.group_size) for layer in predicted.layers)
    )


def test_a_dry_run_prints_the_warning(
    models: dict[int, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compress", str(models[352][0]), "-r", "int4", "--set", "weights.group_size=64"]
    assert run([*arguments, "--dry-run", "-o", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"warning: {UNDIVIDED} (352): weights.group_size_fallback adjust gives these groups of 32" in shown


@pytest.mark.parametrize("engine", ["llmcompress", "nncf"])
def test_awq_leaves_out_what_it_would_fold_into_undivided_layers(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a layer that its groups do not divide NNCF collects no statistics, for which its AWQ then looks."""
    checkpoint = build_checkpoint(tmp_path / "odd", hidden_size=160, intermediate_size=256, num_hidden_layers=2)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog, and the dog looks on. " * 200)
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "weights": {**INT4, "group_size_fallback": "ignore", "awq": True},
            "calibration": {"dataset": str(tmp_path / "text.txt"), "num_samples": 2, "seq_len": 32},
        }
    )
    with caplog.at_level(logging.WARNING, "llmcompress"):
        report = llmcompress.compress(checkpoint, recipe, tmp_path / "out", engine=engine)
    (warning,) = [each.message for each in caplog.records if "AWQ" in each.message]
    assert warning == (
        "AWQ leaves out 2 weights, such as model.layers.0.mlp.down_proj.weight: their scales would go into weights "
        "that the groups do not divide"
    )
    in_four_bits = {parameter_name(layer.name) for layer in report.layers if layer.mode == "int4_sym"}
    assert "model.layers.0.mlp.down_proj.weight" in in_four_bits
    assert "model.layers.0.mlp.up_proj.weight" not in in_four_bits
    without = recipe.model_copy(update={"weights": WeightCompression(**INT4, group_size_fallback="ignore")})
    plain = llmcompress.compress(checkpoint, without.model_copy(update={"calibration": None}), tmp_path / "plain")
    assert report.bits_per_weight == plain.bits_per_weight
