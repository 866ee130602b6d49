"""What Optimum recommends, as recipes: matched on what a checkpoint says of itself, and carried out as Optimum does."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.errors import RecipeError
from llmcompress.loaders.recommended import recommended_recipe
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.spec import Recipe, load_recipe

GENERAL = {"mode": "int4_asym", "group_size": 128}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


def _called(checkpoint: Path, target: Path, name: str) -> Path:
    """A copy of the checkpoint that records a name."""
    shutil.copytree(checkpoint, target)
    config = json.loads((checkpoint / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
    return target


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([Path(sys.executable).with_name(program), *arguments], capture_output=True, text=True)


def _source(hub_id: str | None = None, **config: Any) -> Source:
    return Source(kind="hub", layout="checkpoint", path=Path(), config=config, id=hub_id)


def test_every_entry_is_carried_out_or_refused_by_name() -> None:
    """Against Optimum's own reading of its tables."""
    from optimum.intel import OVWeightQuantizationConfig
    from optimum.intel.openvino import configuration

    carried = 0
    for hub_id, entry in configuration._DEFAULT_4BIT_WQ_CONFIGS.items():
        multimodal = "quantization_configs" in entry
        if multimodal or entry.get("dataset", "wikitext2") != "wikitext2":
            with pytest.raises(RecipeError) as caught:
                recommended_recipe(_source(hub_id), "optimum-default")
            expected = "for a multimodal pipeline of the models" if multimodal else "no recipe draws the samples"
            assert expected in caught.value.message
            continue
        recipe = recommended_recipe(_source(hub_id), "optimum-default")
        assert recipe.description == f"Optimum's 4-bit entry for {hub_id}, which is the Hub id"
        passes = [entry] if "bits" in entry else [entry["quantization_config1"], entry["quantization_config2"]]
        assert len(recipe.weight_passes) == len(passes)
        for weights, settings in zip(recipe.weight_passes, passes, strict=True):
            stock = OVWeightQuantizationConfig(
                **{key: value for key, value in settings.items() if key != "weight_only"}
            )
            assert weights.mode == stock.to_nncf_dict()["mode"].value
            assert weights.group_size == stock.group_size
            assert weights.ratio == stock.ratio
            assert weights.awq is bool(stock.to_nncf_dict()["awq"])
            assert weights.scale_estimation is bool(stock.scale_estimation)
            assert weights.all_layers is bool(stock.all_layers)
            assert weights.group_size_fallback == (stock.group_size_fallback or "error")
            assert list(weights.ignored_scope.patterns) == (stock.ignored_scope or {}).get("patterns", [])
            assert recipe.runtime.dynamic_quantization_group_size == stock.dq_group_size
            assert (recipe.calibration is None) is (stock.dataset is None)
        carried += 1
    assert carried > 50
    for hub_id, entry in configuration._DEFAULT_8BIT_WQ_CONFIGS.items():
        recipe = recommended_recipe(_source(hub_id), "optimum-default-8bit")
        assert recipe.weights is not None
        assert recipe.weights.mode == "int8_asym"
        assert recipe.runtime.dynamic_quantization_group_size == entry["dq_group_size"]


def test_matched_by_the_name_that_the_configuration_records() -> None:
    name = "Qwen/Qwen2.5-7B-Instruct"
    recipe = recommended_recipe(_source(_name_or_path=name), "optimum-default")
    assert recipe.description == f"Optimum's 4-bit entry for {name}, which is the name in its config.json"
    assert recipe.weights is not None
    assert recipe.weights.awq
    # A fine-tuned model keeps the name of its base in the configuration; its own id goes first.
    own = recommended_recipe(_source("meta-llama/Llama-2-7b-hf", _name_or_path=name), "optimum-default")
    assert own.weights is not None
    assert own.weights.mode == "int4_sym"


def test_the_folders_name_is_no_evidence(checkpoint: Path, tmp_path: Path) -> None:
    """Optimum itself matches a folder that is called like a model."""
    from optimum.intel.openvino.configuration import get_default_quantization_config

    folder = _called(checkpoint, tmp_path / "Qwen2.5-7B-Instruct", "/home/someone/checkpoints/last")
    assert get_default_quantization_config(str(folder), weight_format="int4") is not None
    recipe = recommended_recipe(resolve(folder), "optimum-default")
    assert recipe.description == (
        "Optimum has no 4-bit entry for this model, whose configuration names no Hub id: its general 4-bit settings"
    )
    assert recipe.weights is not None
    assert recipe.weights.model_dump(exclude_defaults=True) == GENERAL


def test_overrides_change_an_entry(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("text")
    own = [f"calibration.dataset={text}"]
    gsm8k = recommended_recipe(_source("Qwen/Qwen3-30B-A3B"), "optimum-default", own)
    assert gsm8k.calibration is not None
    assert gsm8k.calibration.dataset == str(text)
    wikitext = recommended_recipe(_source("Qwen/Qwen2.5-1.5B-Instruct"), "optimum-default", own)
    assert wikitext.calibration is not None
    assert (wikitext.calibration.subset, wikitext.calibration.seq_len) == (None, 32)
    with pytest.raises(RecipeError, match="unknown key 'groupsize'") as caught:
        recommended_recipe(_source("a/b"), "optimum-default", ["weights.groupsize=64"])
    assert caught.value.where == "`overrides` weights.groupsize"


@pytest.mark.slow
def test_two_passes_equal_those_of_optimum(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Optimum's exporter, which has such entries for its command line only."""
    from optimum.exporters.openvino.__main__ import main_export
    from optimum.intel.openvino.configuration import _DEFAULT_4BIT_WQ_CONFIGS, OVConfig, _GPTOSSQuantizationConfig

    # As the entry of arcee-ai/Trinity-Mini, without its routers.
    entry = {
        "quantization_config1": {
            "bits": 4,
            "sym": False,
            "group_size": 64,
            "ignored_scope": {"patterns": [".*attn.*"]},
        },
        "quantization_config2": {"bits": 8, "sym": False, "weight_only": True},
    }
    monkeypatch.setitem(_DEFAULT_4BIT_WQ_CONFIGS, "acme/two-passes", entry)
    folder = _called(checkpoint, tmp_path / "model", "acme/two-passes")
    report = llmcompress.compress(folder, "optimum-default", tmp_path / "ours")
    modes = {layer.name.split(".")[-2]: layer.mode for layer in report.layers if ".layers.0." in layer.name}
    assert {modes[name] for name in ("q_proj", "o_proj")} == {"int8_asym"}
    assert {modes[name] for name in ("up_proj", "down_proj")} == {"int4_asym"}
    main_export(
        str(folder),
        output=tmp_path / "stock",
        task="text-generation-with-past",
        convert_tokenizer=False,
        ov_config=OVConfig(quantization_config=_GPTOSSQuantizationConfig(**entry)),
    )
    ours, stock = (tmp_path / place / "openvino_model.bin" for place in ("ours", "stock"))
    assert filecmp.cmp(ours, stock, shallow=False)


def test_further_passes_are_predicted(checkpoint: Path, tmp_path: Path) -> None:
    from llmcompress.compression.forecast import forecast

    llmcompress.compress(checkpoint, "none", tmp_path / "ir")
    fields = {"mode": "int4_sym", "group_size": 32, "ignored_scope": {"patterns": [".*self_attn.*"]}}
    recipe = Recipe.model_validate({"name": "two", "weights": fields, "further_weights": [{"mode": "int8_sym"}]})
    predicted = forecast(resolve(tmp_path / "ir"), recipe)
    report = llmcompress.compress(tmp_path / "ir", recipe, tmp_path / "two")
    expected = {layer.name: (layer.mode, layer.group_size) for layer in report.layers}
    assert {layer.name: (layer.mode, layer.group_size) for layer in predicted.layers} == expected
    assert {mode for mode, _ in expected.values()} == {"int4_sym", "int8_sym", "int8_asym"}
    actual = (tmp_path / "two" / "openvino_model.bin").stat().st_size
    assert abs(predicted.size_bytes - actual) < 0.01 * actual
    scoped = recipe.model_copy(update={"further_weights": (recipe.weights,)})
    assert any("looked up for the first pass only" in note for note in forecast(resolve(tmp_path / "ir"), scoped).notes)


@pytest.mark.slow
def test_the_command_line_says_which_entry_it_took(checkpoint: Path, tmp_path: Path) -> None:
    folder = _called(checkpoint, tmp_path / "model", "Qwen/Qwen2.5-7B-Instruct")
    done = _run("llmcompress", "compress", str(folder), "-r", "optimum-default", "--dry-run")
    assert done.returncode == 0, done.stderr
    why = "Optimum's 4-bit entry for Qwen/Qwen2.5-7B-Instruct, which is the name in its config.json"
    assert f"optimum-default: {why}" in done.stderr
    report = llmcompress.compress(folder, "optimum-default", tmp_path / "out")
    assert report.recipe.description == why
    assert report.recipe.weights is not None
    assert report.recipe.weights.awq
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == report.recipe


def test_it_is_listed_and_explained() -> None:
    listed = _run("llmcompress", "recipes").stdout
    assert re.search(r"optimum-default +What Optimum recommends for the model at hand in 4 bits", listed)
    shown = _run("llmcompress", "recipes", "show", "optimum-default")
    assert shown.returncode == 2
    assert "error: optimum-default: depends on the model" in shown.stderr
    assert "hint: take it with a model: llmcompress compress MODEL --recipe optimum-default --dry-run" in shown.stderr


def test_under_optimum_cli() -> None:
    """The same options, output and exit codes as the program of its own."""
    for arguments, code in (
        (["recipes", "show", "int4", "--set", "weights.group_size=64"], 0),
        (["compress", "--help"], 0),
        (["compress", "./absent", "-r", "int4"], 2),
        (["no-such-command"], 2),
    ):
        own = _run("llmcompress", *arguments)
        under = _run("optimum-cli", "llmcompress", *arguments)
        assert (under.returncode, own.returncode) == (code, code)
        assert under.stdout == own.stdout
        assert own.stderr.strip() in under.stderr
