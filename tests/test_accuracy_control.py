"""Accuracy control: ends inside the drop by a computation of its own, gives back what it says, says what it did."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import build_checkpoint

import llmcompress
from llmcompress import Recipe
from llmcompress.data import CalibrationWindows, calibration_windows
from llmcompress.errors import DataError, GateError, RecipeError
from llmcompress.evaluation.accuracy import accuracy_metric
from llmcompress.loaders import LoadedModel
from llmcompress.report.compression import AccuracyRecord

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
NUM_WINDOWS, SEQ_LEN = 4, 48

Made = tuple[Path, llmcompress.CompressionReport]


def _recipe(text: Path, control: dict[str, Any] | None, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "ptq",
            "method": "activations",
            "activations": {"accuracy_control": control and {"num_samples": 3, **control}},
            "calibration": {"dataset": str(text), "num_samples": NUM_WINDOWS, "seq_len": SEQ_LEN},
            **more,
        }
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> LoadedModel:
    return llmcompress.load(tiny)


@pytest.fixture(scope="module")
def uncontrolled(loaded: LoadedModel, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = tmp_path_factory.mktemp("uncontrolled") / "out"
    return output, llmcompress.compress(loaded, _recipe(calibration_text, None), output)


@pytest.fixture(scope="module")
def controlled(loaded: LoadedModel, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Held to a tenth of what quantizing everything costs."""
    output = tmp_path_factory.mktemp("controlled") / "out"
    recipe = _recipe(calibration_text, {"metric": "kl_divergence", "max_drop": 1e-4})
    return output, llmcompress.compress(loaded, recipe, output)


def _windows(checkpoint: Path, recipe: Recipe) -> CalibrationWindows:
    from transformers import AutoTokenizer

    assert recipe.calibration is not None
    assert recipe.activations is not None
    assert recipe.activations.accuracy_control is not None
    held_out = recipe.activations.accuracy_control.num_samples
    return calibration_windows(recipe.calibration, AutoTokenizer.from_pretrained(checkpoint), num_held_out=held_out)


def _log_probabilities(model: Any, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[num_windows, seq_len - 1, vocabulary]``, by OpenVINO and plain numpy."""
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    found = []
    for window in windows[:, :-1]:
        inputs = {
            "input_ids": window[None],
            "attention_mask": np.ones((1, len(window)), dtype=np.int64),
            "position_ids": np.arange(len(window))[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        logits = compiled.create_infer_request().infer(inputs)["logits"][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        found.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return np.stack(found)


def _kl_divergence(reference: NDArray[np.float64], model: NDArray[np.float64]) -> float:
    return float((np.exp(reference) * (reference - model)).sum(-1).mean())


def _accuracy(report: llmcompress.CompressionReport) -> AccuracyRecord:
    assert report.activations is not None
    assert report.activations.accuracy is not None
    return report.activations.accuracy


def _check_inside(
    made: Made, uncontrolled: Made, loaded: LoadedModel, windows: CalibrationWindows, checkpoint: Path
) -> None:
    import openvino as ov
    from safetensors import safe_open

    output, report = made
    accuracy = _accuracy(report)
    assert accuracy.met
    assert accuracy.reverted
    # Inside the drop, by a computation of its own on the saved model.
    held_out = windows.held_out
    assert held_out is not None
    assert accuracy.validation == held_out.record
    assert accuracy.validation.token_ids_sha256 != report.calibration.token_ids_sha256  # type: ignore[union-attr]
    saved = ov.Core().read_model(output / "openvino_model.xml")
    reference = _log_probabilities(loaded.model, held_out.token_ids)
    lost = _kl_divergence(reference, _log_probabilities(saved, held_out.token_ids))
    assert lost < accuracy.max_drop
    assert lost == pytest.approx(accuracy.drop, abs=1e-6)
    in_full = _log_probabilities(uncontrolled[0] / "openvino_model.xml", held_out.token_ids)
    assert _kl_divergence(reference, in_full) == pytest.approx(accuracy.drop_quantized, rel=0.01)
    # Each step begins where the one before ended.
    drops = [accuracy.drop_quantized, *(group.drop_after for group in accuracy.reverted)]
    assert [group.drop_before for group in accuracy.reverted] == drops[:-1]
    assert accuracy.reference == 0
    # What went back is the checkpoint's own weight, not one that SmoothQuant rescaled, and nothing rescales its input.
    operations = {op.get_friendly_name(): op for op in saved.get_ops()}
    reverted = [name for group in accuracy.reverted for name in group.operations]
    linear = [name for name in reverted if operations[name].get_type_name() == "MatMul"]
    assert linear
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        for name in linear:
            weight = operations[name].input_value(1).get_node()
            while weight.get_type_name() != "Constant":
                weight = weight.input_value(0).get_node()
            key = name.removeprefix("__module.").split("/")[0] + ".weight"
            np.testing.assert_array_equal(
                weight.get_data(dtype=np.float32), tensors.get_tensor(key).float().numpy(), err_msg=name
            )
            assert "smooth_quant" not in operations[name].input_value(0).get_node().get_friendly_name()
    # The device executes that much less in 8 bits, and the reasons say why.
    assert report.activations is not None
    full = uncontrolled[1].activations
    assert full is not None
    assert report.activations.num_executed_low <= full.num_executed_low - len(linear)
    assert report.activations.num_executed_low > 0
    reasons = {operation.name: operation.reason for operation in report.activations.in_float}
    assert {reasons[name] for name in reverted if name in reasons} == {"accuracy_control"}
    # And it costs what the table says.
    added = sum(group.added_bytes for group in accuracy.reverted)
    sizes = [sum(layer.size_bytes for layer in one.layers) for one in (report, uncontrolled[1])]
    assert added == sizes[0] - sizes[1]


@pytest.mark.slow
def test_what_costs_most_goes_back_until_the_drop_is_small(
    controlled: Made, uncontrolled: Made, loaded: LoadedModel, tiny: Path, calibration_text: Path
) -> None:
    recipe = _recipe(calibration_text, {"metric": "kl_divergence", "max_drop": 1e-4})
    _check_inside(controlled, uncontrolled, loaded, _windows(tiny, recipe), tiny)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.95, -1.0], ids=["smoothed", "plain"])
def test_on_a_trained_model(alpha: float, ref_model: Path, calibration_text: Path, tmp_path: Path) -> None:
    loaded = llmcompress.load(ref_model)

    def made(control: dict[str, Any] | None) -> Made:
        recipe = _recipe(calibration_text, control)
        activations = {**recipe.model_dump()["activations"], "smooth_quant_alpha": alpha}
        recipe = Recipe.model_validate({**recipe.model_dump(exclude_unset=True), "activations": activations})
        output = tmp_path / ("controlled" if control else "all")
        return output, llmcompress.compress(loaded, recipe, output)

    control = {"metric": "kl_divergence", "max_drop": 0.004 if alpha > 0 else 0.001}
    windows = _windows(ref_model, _recipe(calibration_text, control))
    _check_inside(made(control), made(None), loaded, windows, ref_model)


@pytest.mark.slow
def test_nothing_goes_back_where_nothing_must(
    loaded: LoadedModel, uncontrolled: Made, calibration_text: Path, tmp_path: Path
) -> None:
    recipe = _recipe(calibration_text, {"metric": "perplexity", "max_drop": 50.0})
    accuracy = _accuracy(llmcompress.compress(loaded, recipe, tmp_path / "out"))
    assert accuracy.met
    assert not accuracy.reverted
    assert filecmp.cmp(tmp_path / "out" / "openvino_model.bin", uncontrolled[0] / "openvino_model.bin", shallow=False)


IMPOSSIBLE = {"metric": "kl_divergence", "max_drop": 1e-9, "max_num_iterations": 1, "ranking_num_samples": 1}


@pytest.mark.slow
def test_a_drop_that_cannot_be_met_leaves_nothing(loaded: LoadedModel, calibration_text: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"loses \S+ in kl_divergence, where 1e-09 is allowed") as caught:
        llmcompress.compress(loaded, _recipe(calibration_text, IMPOSSIBLE), tmp_path / "out")
    assert caught.value.exit_code == 7
    assert caught.value.where == "activations.accuracy_control"
    assert "keep_best: true" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_best_is_kept_on_request(loaded: LoadedModel, calibration_text: Path, tmp_path: Path) -> None:
    best = _recipe(calibration_text, {**IMPOSSIBLE, "keep_best": True})
    accuracy = _accuracy(llmcompress.compress(loaded, best, tmp_path / "out"))
    assert not accuracy.met
    assert len(accuracy.reverted) == 1
    assert accuracy.drop < accuracy.drop_quantized


@pytest.mark.parametrize("name", ["perplexity", "kl_divergence", "top1_agreement"])
def test_the_metric_is_what_numpy_computes(name: str, loaded: LoadedModel, uncontrolled: Made) -> None:
    import openvino as ov

    windows = np.random.default_rng(0).integers(3, 500, (3, 20))
    model = uncontrolled[0] / "openvino_model.xml"
    metric = accuracy_metric(name, loaded.model, list(windows))
    value, each = metric(ov.Core().compile_model(model, "CPU", EXACT), list(windows))
    reference, candidate = _log_probabilities(loaded.model, windows), _log_probabilities(model, windows)
    targets = windows[:, 1:, None]
    if name == "perplexity":
        nll = -np.take_along_axis(candidate, targets, 2)[..., 0]
        expected, of_each = -np.exp(nll.mean()), -np.exp(nll.mean(1))
    elif name == "kl_divergence":
        kl = (np.exp(reference) * (reference - candidate)).sum(-1)
        expected, of_each = 1 - kl.mean(), 1 - kl.mean(1)
    else:
        agrees = reference.argmax(-1) == candidate.argmax(-1)
        expected, of_each = agrees.mean(), agrees.mean(1)
    assert value == pytest.approx(expected, rel=1e-5)
    assert each == pytest.approx(of_each.tolist(), rel=1e-5)


def test_held_out_windows_are_no_calibration_windows(tiny: Path, tmp_path: Path) -> None:
    """Also where the text says the same again and again."""
    text = tmp_path / "text.txt"
    lines = [f"line number {number} of a text that is long enough" for number in range(40)]
    text.write_text("\n".join(lines * 4), encoding="utf-8")
    recipe = _recipe(text, {"metric": "perplexity", "max_drop": 1.0, "num_samples": 5})
    windows = _windows(tiny, recipe)
    assert windows.held_out is not None
    chosen = {window.tobytes() for window in windows.token_ids}
    assert chosen.isdisjoint(window.tobytes() for window in windows.held_out.token_ids)
    assert windows.held_out.token_ids.shape == (5, SEQ_LEN)


def test_too_little_text_to_hold_some_out(loaded: LoadedModel, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text of a few words, and a few more. " * 8, encoding="utf-8")
    recipe = _recipe(text, {"metric": "perplexity", "max_drop": 1.0, "num_samples": 500})
    with pytest.raises(DataError, match="besides the 4 for calibration, 500 are to be held out") as caught:
        llmcompress.compress(loaded, recipe, tmp_path / "out")
    assert "accuracy_control.num_samples" in caught.value.hint


def test_a_metric_that_cannot_be_computed(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    checkpoint = build_checkpoint(tmp_path / "broken")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    model = llmcompress.load(checkpoint, allow_nonfinite=True).model
    windows = list(np.random.default_rng(0).integers(3, 500, (2, 8)))
    with pytest.raises(DataError, match="top1_agreement cannot be computed") as caught:
        accuracy_metric("top1_agreement", model, windows)
    assert "held-out window 1 of 2" in str(caught.value)


def test_a_device_that_gains_nothing_by_a_mode_is_named_before_the_work(
    loaded: LoadedModel, calibration_text: Path, tmp_path: Path
) -> None:
    recipe = _recipe(calibration_text, None, target="cpu", activations={"mode": "fp8_e4m3"})
    stages: Callable[[Any], None] = lambda progress: pytest.fail(f"{progress.stage} began")  # noqa: E731
    with pytest.raises(RecipeError, match="mode fp8_e4m3 is not what target cpu runs") as caught:
        llmcompress.compress(loaded, recipe, tmp_path / "out", progress=stages)
    assert "target: any" in caught.value.hint
    elsewhere = _recipe(calibration_text, None, target="gpu", activations={"mode": "fp8_e4m3"})
    llmcompress.compress(loaded, elsewhere, tmp_path / "out")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"metric": "perplexity", "max_drop": 1.0, "ranking_num_samples": 9}, "is more than num_samples 3"),
        ({"metric": "top1_agreement", "max_drop": 1.0}, "is a share of tokens and has no effect from 1 on"),
        ({"metric": "accuracy", "max_drop": 1.0}, "metric"),
    ],
)
def test_contradictions(control: dict[str, Any], message: str, tmp_path: Path) -> None:
    from llmcompress.spec import load_recipe

    values = [f"activations.accuracy_control.{name}={value}" for name, value in {"num_samples": 3, **control}.items()]
    with pytest.raises(RecipeError, match=message):
        load_recipe("int8-ptq", values)


@pytest.mark.slow
def test_through_our_class(controlled: Made, tiny: Path, calibration_text: Path, tmp_path: Path) -> None:
    recipe = _recipe(calibration_text, {"metric": "kl_divergence", "max_drop": 1e-4})
    model = llmcompress.OVModelForCausalLM.from_pretrained(tiny, quantization_config=recipe, compile=False)
    model.save_pretrained(tmp_path / "saved")
    assert filecmp.cmp(tmp_path / "saved" / "openvino_model.bin", controlled[0] / "openvino_model.bin", shallow=False)
