"""Checkpoints that are quantized already: their codes come through exactly, compressed, and by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_fixture import LAYOUTS, Array, quantized, torch_logits
from tiny_models import VOCAB_SIZE, build_checkpoint

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import run as run_command
from llmcompress.cli.dry_run import forecast_source
from llmcompress.errors import ModelError, RecipeError, UsageError
from llmcompress.graph.device import compile_model, executed_precisions, properties_of
from llmcompress.spec import Access, EvalSpec, load_recipe
from llmcompress.system.progress import silent

# Rounding of sums in f32, in another order: the largest seen is 1.6e-6 of the largest logit.
EXACT = 1e-5
IDS = np.random.default_rng(0).integers(1, VOCAB_SIZE - 1, (2, 24))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 160 columns are no whole number of blocks of 128, nor 96 of groups of 64.
    return build_checkpoint(
        tmp_path_factory.mktemp("plain") / "model",
        "llama",
        dtype="float16",
        num_hidden_layers=1,
        hidden_size=128,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def run(model: Any) -> tuple[Array, set[str]]:
    """Logits in f32, and the precisions of weights that the CPU multiplies with."""
    compiled = compile_model(model, "CPU", properties_of("CPU", "pinned"))
    rows, columns = IDS.shape
    inputs = {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        "position_ids": np.tile(np.arange(columns), (rows, 1)),
        "beam_idx": np.arange(rows, dtype=np.int32),
    }
    logits = compiled.create_infer_request().infer(inputs)["logits"].copy()
    executed = executed_precisions(compiled)
    return logits, {precision for kind, precision in executed if kind == "FullyConnected"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_logits_are_those_of_the_floats_that_the_codes_stand_for(name: str, plain: Path, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    floats = quantized(plain, tmp_path / "model", layout)
    expected = torch_logits(tmp_path / "model", floats, IDS)
    loaded = llmcompress.load(tmp_path / "model")
    logits, executed = run(loaded.model)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    # The head is not quantized.
    assert executed - {"f16", "f32"} == layout.executed
    dequantized, executed = run(loaded.dequantized().model)
    assert np.abs(dequantized - expected).max() <= EXACT * np.abs(expected).max()
    assert executed <= {"f16", "f32"}


def written(plain: Path, directory: Path, name: str) -> Path:
    quantized(plain, directory, LAYOUTS[name])
    return directory


def test_one_command_without_a_recipe_keeps_the_codes(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(plain, tmp_path / "model", "gptq-4-act-order")
    assert run_command(["compress", str(source), "-o", str(tmp_path / "dry"), "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "7 weights are GPTQ 4 bits, act-order; taken exactly" in dry
    assert run_command(["compress", str(source), "-o", str(tmp_path / "out")]) == 0
    assert "7 of GPTQ 4 bits, act-order; every weight exactly" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest.recipe == llmcompress.load_recipe("keep")
    assert manifest.kept is not None
    assert (manifest.kept.num_layers, manifest.kept.executed) == (7, {"int4_asym": "u4"})
    assert manifest.provenance.quantization is not None
    assert manifest.provenance.quantization.settings == LAYOUTS["gptq-4-act-order"].settings
    kept = [layer for layer in manifest.layers if layer.stored_as]
    assert {(layer.mode, layer.group_size, layer.engine) for layer in kept} == {("int4_asym", 32, None)}
    assert manifest.num_parameters == sum(layer.num_parameters for layer in manifest.layers) + 3 * 128
    # The config of the output says nothing of a quantization that transformers would look for.
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    predicted = forecast_source(
        str(source), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent, tokenizer=False
    )
    actual = next(file.size_bytes for file in manifest.files if file.path == "openvino_model.bin")
    assert predicted.size_bytes == pytest.approx(actual, rel=0.02)
    sizes = (sorted(layer.size_bytes for layer in layers) for layers in (kept, predicted.layers))
    assert next(sizes) == pytest.approx(next(sizes)[: len(kept)], rel=0.01)


def test_what_was_kept_differs_from_its_source_by_nothing(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "awq-gemm")
    llmcompress.compress(source, "keep", tmp_path / "out")
    spec = {"dataset": str(wikitext(tmp_path)), "num_windows": 2, "seq_len": 64, "precision": "pinned"}
    report = llmcompress.evaluate(tmp_path / "out", EvalSpec(**spec), reference=source)
    assert report.divergence is not None
    # f32 sums in another order.
    assert report.divergence.kl_divergence.value < 1e-8


def wikitext(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("Four bits are enough for a weight that was rounded well. " * 40)
    return path


def test_quantized_again_only_when_asked(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "fp8-block")
    with pytest.raises(ModelError, match="recipe int8 would quantize it again") as caught:
        llmcompress.compress(source, "int8", tmp_path / "out")
    assert "`requantize`" in caught.value.hint
    with pytest.raises(ModelError, match="recipe int8 would quantize it again"):
        llmcompress.compress(llmcompress.load(source), "int8", tmp_path / "out")
    report = llmcompress.compress(source, "int8", tmp_path / "out", requantize=True)
    assert report.kept is None
    assert report.provenance.dtype == "fp8"
    assert {layer.mode for layer in report.layers} == {"int8_asym"}
    floats = quantized(plain, tmp_path / "again", LAYOUTS["fp8-block"])
    expected = torch_logits(source, floats, IDS)
    logits, _ = run(llmcompress.load(tmp_path / "out").model)
    # 8 bits a channel: the largest seen is 0.02 of the largest logit.
    assert np.abs(logits - expected).max() < 0.06 * np.abs(expected).max()


def test_what_has_no_effect_is_refused(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "gptq-4")
    for given, recipe, message in (
        (plain, "int8", "`requantize` has no effect: the source is not quantized already"),
        (source, "keep", "`requantize` has no effect: recipe keep quantizes nothing"),
    ):
        with pytest.raises(UsageError, match=message):
            llmcompress.compress(given, recipe, tmp_path / "out", requantize=True)
    with pytest.raises(RecipeError, match="method keep is for a checkpoint that is quantized already; model is none"):
        llmcompress.compress(plain, "keep", tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitnet"}}))
    with pytest.raises(UsageError, match="`requantize` has no effect: the codes of this source cannot be undone"):
        llmcompress.compress(source, "int8", tmp_path / "out", requantize=True)


def test_no_recipe_is_chosen_for_a_model_in_floats(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compress", str(plain)]) == 2
    assert "missing option '--recipe' / '-r', and the model is not quantized already" in capsys.readouterr().err


def test_an_artifact_that_kept_its_codes_is_not_compressed_again(plain: Path, tmp_path: Path) -> None:
    llmcompress.compress(written(plain, tmp_path / "model", "ct-4"), "keep", tmp_path / "out", tokenizer=False)
    with pytest.raises(ModelError, match="the model is already compressed"):
        llmcompress.compress(tmp_path / "out", "int8", tmp_path / "again", tokenizer=False)


def test_none_gives_the_floats(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "ct-4-act-order")
    report = llmcompress.compress(llmcompress.load(source), "none", tmp_path / "out")
    assert {layer.mode for layer in report.layers} == {"f16", "f32"}
    assert report.kept is None


def test_optimums_class_keeps_the_codes(plain: Path, tmp_path: Path) -> None:
    from llmcompress import OVModelForCausalLM

    source = written(plain, tmp_path / "model", "gptq-4-sym")
    model = OVModelForCausalLM.from_pretrained(source, quantization_config="keep")
    model.save_pretrained(tmp_path / "saved")
    kept = read_manifest(tmp_path / "saved").kept
    assert kept is not None
    assert kept.executed == {"int4_sym": "i4"}


def test_zero_biases_that_a_class_has_not_are_left_out(plain: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = written(plain, tmp_path / "model", "gptq-4")
    tensors = load_file(source / "model.safetensors")
    bias = "model.layers.0.mlp.down_proj.bias"
    save_file(
        tensors | {bias: (tensors["model.norm.weight"] * 0).clone()}, source / "model.safetensors", {"format": "pt"}
    )
    llmcompress.load(source, tokenizer=False)
    save_file(tensors | {bias: tensors["model.norm.weight"].clone()}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"1 unexpected, which it would drop \\({bias}"):
        llmcompress.load(source, tokenizer=False)
