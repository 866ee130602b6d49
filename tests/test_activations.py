"""Quantized activations: the same bytes as stock NNCF's, what is counted and executed, and a cache that stays right."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import build_checkpoint

import llmcompress
from llmcompress import OVModelForCausalLM, Recipe
from llmcompress.errors import DataError, ModelError
from llmcompress.loaders import LoadedModel

NUM_WINDOWS, SEQ_LEN = 8, 64
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

Saved = Callable[..., tuple[Path, llmcompress.CompressionReport]]


def _recipe(text: Path, *, weights: dict[str, Any] | None = None, **activations: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "ptq",
            "method": "weights_and_activations" if weights else "activations",
            "activations": activations,
            "calibration": {"dataset": str(text), "num_samples": NUM_WINDOWS, "seq_len": SEQ_LEN},
            **({"weights": weights} if weights else {}),
        }
    )


@pytest.fixture(scope="module")
def loaded(ref_model: Path) -> LoadedModel:
    return llmcompress.load(ref_model)


@pytest.fixture(scope="module")
def stock_ir(ref_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock Optimum's uncompressed export."""
    from optimum.intel import OVModelForCausalLM as Stock

    directory = tmp_path_factory.mktemp("stock") / "ir"
    Stock.from_pretrained(ref_model, export=True, compile=False, load_in_8bit=False).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved(loaded: LoadedModel, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Compresses the reference model by some activations, each once."""
    root = tmp_path_factory.mktemp("saved")
    done: dict[str, tuple[Path, llmcompress.CompressionReport]] = {}

    def make(weights: dict[str, Any] | None = None, **activations: Any) -> tuple[Path, llmcompress.CompressionReport]:
        key = json.dumps([weights, activations])
        if key not in done:
            recipe = _recipe(calibration_text, weights=weights, **activations)
            output = root / str(len(done))
            done[key] = output, llmcompress.compress(loaded, recipe, output)
        return done[key]

    return make


def _windows(ref_model: Path, recipe: Recipe) -> NDArray[np.int64]:
    from transformers import AutoTokenizer

    from llmcompress.data import calibration_windows

    assert recipe.calibration is not None
    return calibration_windows(recipe.calibration, AutoTokenizer.from_pretrained(ref_model)).token_ids


def _inputs(token_ids: NDArray[np.int64], past: int = 0) -> dict[str, Any]:
    length = token_ids.shape[1]
    return {
        "input_ids": token_ids,
        "attention_mask": np.ones((1, past + length), dtype=np.int64),
        "position_ids": np.arange(past, past + length)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }


STOCK: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"preset": "mixed"}),
    ({"smooth_quant_alpha": -1.0, "preset": "performance"}, {"preset": "performance", "smooth_quant": -1}),
    ({"mode": "fp8_e5m2", "fast_bias_correction": False}, {"mode": "FP8_E5M2", "preset": "performance", "fast": False}),
]


@pytest.mark.parametrize(
    ("activations", "words"),
    [
        pytest.param(*STOCK[0], id="int8"),
        pytest.param(*STOCK[1], id="int8-without-smooth-quant", marks=pytest.mark.slow),
        pytest.param(*STOCK[2], id="fp8_e5m2", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_of_stock_nncf(
    activations: dict[str, Any],
    words: dict[str, Any],
    saved: Saved,
    stock_ir: Path,
    ref_model: Path,
    calibration_text: Path,
    tmp_path: Path,
) -> None:
    import nncf
    import openvino as ov

    output, _ = saved(**activations)
    windows = _windows(ref_model, _recipe(calibration_text, **activations))
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE)
    if "smooth_quant" in words:
        advanced.smooth_quant_alphas.matmul = words["smooth_quant"]
    stock = nncf.quantize(
        ov.Core().read_model(stock_ir / "openvino_model.xml"),
        nncf.Dataset([_inputs(window[None]) for window in windows]),
        mode=nncf.QuantizationMode[words["mode"]] if "mode" in words else None,
        preset=nncf.QuantizationPreset(words["preset"]),
        subset_size=NUM_WINDOWS,
        fast_bias_correction=words.get("fast", True),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=advanced,
    )
    ov.save_model(stock, tmp_path / "stock.xml", compress_to_fp16=False)
    assert filecmp.cmp(output / "openvino_model.bin", tmp_path / "stock.bin", shallow=False)


@pytest.mark.slow
def test_low_bit_weights_under_quantized_activations(
    saved: Saved, ref_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    from optimum.intel import OVModelForCausalLM as Stock

    weights = {"mode": "int4_sym", "group_size": 64}
    output, report = saved(weights)
    modes = {layer.mode for layer in report.layers}
    assert modes == {"int4_sym", "int8_asym"}
    assert report.activations is not None
    assert report.activations.num_quantizers > 0
    config = _recipe(calibration_text, weights=weights).to_quantization_config()
    Stock.from_pretrained(ref_model, export=True, compile=False, quantization_config=config).save_pretrained(
        tmp_path / "stock"
    )
    assert filecmp.cmp(output / "openvino_model.bin", tmp_path / "stock" / "openvino_model.bin", shallow=False)


def test_what_was_quantized_is_counted_and_what_is_executed(saved: Saved) -> None:
    """Against the quantizers in the saved graph and OpenVINO's own account of what it runs."""
    import openvino as ov

    output, report = saved()
    record = report.activations
    assert record is not None
    model = ov.Core().read_model(output / "openvino_model.xml")
    of_activations = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert record.num_quantizers == len(of_activations)
    matmul = record.operations[0]
    num_matmuls = sum(op.get_type_name() == "MatMul" for op in model.get_ops())
    assert (matmul.type, matmul.num_quantized + matmul.num_in_float) == ("MatMul", num_matmuls)
    # Seven linear layers in each of eight blocks, and the head; the rotary embedding stays in f32.
    assert matmul.num_quantized == 8 * 7 + 1
    assert {operation.reason for operation in record.in_float if operation.type == "MatMul"} == {
        "NNCF places no quantizer there"
    }
    runtime = ov.Core().compile_model(model, "CPU").get_runtime_model()
    infos = [op.get_rt_info() for op in runtime.get_ops()]
    linear = [info for info in infos if str(info["layerType"].value) == "FullyConnected"]
    assert len(linear) == 8 * 7 + 1
    assert all("i8" in str(info["primitiveType"].value).lower() for info in linear)
    assert record.num_executed_low >= len(linear)
    assert {layer.mode for layer in report.layers} == {"int8_sym"}


@pytest.mark.slow
def test_what_is_ignored_stays_in_float_and_is_executed_so(saved: Saved) -> None:
    _, everything = saved()
    _, spared = saved(ignored_scope={"patterns": [".*down_proj.*"]})
    assert everything.activations is not None
    assert spared.activations is not None
    assert spared.activations.operations[0].num_quantized == everything.activations.operations[0].num_quantized - 8
    assert spared.activations.num_executed_low == everything.activations.num_executed_low - 8
    reasons = [operation.reason for operation in spared.activations.in_float if "down_proj" in operation.name]
    assert reasons == ["ignored_scope"] * 8
    assert sum(layer.mode == "bf16" for layer in spared.layers) == 8


@pytest.mark.slow
def test_a_quantizer_that_the_device_does_not_execute_is_seen(saved: Saved) -> None:
    _, report = saved(mode="fp8_e5m2", fast_bias_correction=False)
    assert report.activations is not None
    assert report.activations.operations[0].num_quantized == 57
    assert report.activations.num_executed_low == 0


# Low-bit weights are summed in f32, in another order for every length: now and then a rounding of activations flips.
@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [
        pytest.param(None, 1e-3, id="int8"),
        pytest.param({"mode": "int4_sym", "group_size": 64}, 0.3, id="int4-weights", marks=pytest.mark.slow),
    ],
)
def test_several_turns_equal_a_single_shot(weights: dict[str, Any] | None, tolerance: float, saved: Saved) -> None:
    """The state holds what was said before: fed in three parts or at once, the same tokens give the same logits."""
    import openvino as ov

    output, _ = saved(weights)
    compiled = ov.Core().compile_model(output / "openvino_model.xml", "CPU", EXACT)
    token_ids = np.random.default_rng(0).integers(3, 1000, (1, 60))
    whole = compiled.create_infer_request().infer(_inputs(token_ids))["logits"]
    request, past, parts = compiled.create_infer_request(), 0, []
    for length in (25, 1, 34):
        parts.append(request.infer(_inputs(token_ids[:, past : past + length], past))["logits"].copy())
        past += length
    together = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(together, whole, atol=tolerance)
    assert (together.argmax(-1) == whole.argmax(-1)).mean() > 0.95
    # A state that were lost would be seen.
    forgetful = compiled.create_infer_request().infer(_inputs(token_ids[:, 25:]))["logits"]
    assert np.abs(forgetful - whole[:, 25:]).max() > 3


@pytest.mark.slow
def test_little_is_lost(saved: Saved, ref_model: Path, wikitext: Path) -> None:
    """Perplexity of held-out text in plain numpy, quantized against uncompressed."""
    import openvino as ov
    from transformers import AutoTokenizer

    text = wikitext.read_text(encoding="utf-8")[:6000]
    token_ids = np.array(AutoTokenizer.from_pretrained(ref_model)(text)["input_ids"][:768]).reshape(6, 128)

    def perplexity(model: Path) -> float:
        compiled = ov.Core().compile_model(model / "openvino_model.xml", "CPU", EXACT)
        losses = []
        for window in token_ids:
            logits = compiled.create_infer_request().infer(_inputs(window[None]))["logits"][0].astype(np.float64)
            scores = logits[:-1] - np.log(np.exp(logits[:-1]).sum(-1, keepdims=True))
            losses.append(-scores[np.arange(127), window[1:]])
        return float(np.exp(np.mean(losses)))

    plain, _ = saved(mode="fp8_e5m2", fast_bias_correction=False)
    int8, _ = saved()
    assert perplexity(int8) < 1.05 * perplexity(plain)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    checkpoint = build_checkpoint(tmp_path / "broken")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(300)))
    with pytest.raises(DataError, match="NaN or infinite logits on calibration window 1 of 8") as caught:
        llmcompress.compress(checkpoint, _recipe(text), tmp_path / "out", allow_nonfinite=True)
    assert caught.value.where == "calibration"
    assert not (tmp_path / "out").exists()


def test_what_nncf_refuses_is_explained(loaded: LoadedModel, calibration_text: Path, tmp_path: Path) -> None:
    recipe = _recipe(calibration_text, ignored_scope={"names": ["no such node"]})
    with pytest.raises(ModelError, match="NNCF refuses these settings for this model") as caught:
        llmcompress.compress(loaded, recipe, tmp_path / "out")
    assert "activations.ignored_scope" in caught.value.hint


@pytest.mark.slow
def test_through_our_class(saved: Saved, ref_model: Path, calibration_text: Path, tmp_path: Path) -> None:
    output, report = saved()
    model = OVModelForCausalLM.from_pretrained(ref_model, quantization_config=_recipe(calibration_text), compile=False)
    model.save_pretrained(tmp_path / "saved")
    manifest = json.loads((tmp_path / "saved" / "llmcompress.json").read_text())
    assert manifest["files"] == [json.loads(file.model_dump_json()) for file in report.files]
    assert manifest["activations"] == json.loads(report.model_dump_json())["activations"]
    assert Recipe.from_artifact(output) == _recipe(calibration_text).portable()
    (tmp_path / "saved" / "llmcompress.json").unlink()
    by_nncf = Recipe.from_artifact(tmp_path / "saved", name="ptq", calibration=_recipe(calibration_text).calibration)
    assert by_nncf == _recipe(calibration_text)
