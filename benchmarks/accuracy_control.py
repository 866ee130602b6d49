"""How far does accuracy control get? Stock NNCF and llmcompress from the same windows, metric and limits, in turn.

Both search by ``nncf.quantize_with_accuracy_control`` with SmoothQuant. Stock NNCF gives a reverted layer its first
weight back and leaves SmoothQuant's scale before it; the drop after each revert shows what that does.

    python benchmarks/accuracy_control.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import nncf
import openvino as ov
from generated_llama import TOKENIZER
from transformers import AutoTokenizer

import llmcompress
from llmcompress.compression.nncf.activations import quantize_arguments
from llmcompress.compression.nncf.runs import model_inputs
from llmcompress.data import CalibrationWindows, calibration_windows
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.evaluation.accuracy import accuracy_metric

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def recipe(args: argparse.Namespace) -> llmcompress.Recipe:
    """What both sides do."""
    control = {
        "metric": "kl_divergence",
        "max_drop": args.max_drop,
        "num_samples": args.held_out,
        "max_num_iterations": args.iterations,
        "keep_best": True,
    }
    return llmcompress.Recipe.model_validate(
        {
            "name": "accuracy",
            "method": "activations",
            "activations": {"accuracy_control": control},
            "calibration": {"dataset": str(args.text), "num_samples": args.windows, "seq_len": args.seq_len},
        }
    )


def stock(model: ov.Model, wanted: llmcompress.Recipe, windows: CalibrationWindows) -> tuple[float, int]:
    """Drop of what stock NNCF returns, and how many 8-bit weights it has."""
    assert wanted.activations is not None
    assert wanted.activations.accuracy_control is not None
    assert windows.held_out is not None
    control = wanted.activations.accuracy_control
    held_out = list(windows.held_out.token_ids)
    metric = accuracy_metric(control.metric, model, held_out)
    arguments: dict[str, Any] = quantize_arguments(wanted.activations, num_windows=len(windows.token_ids))
    arguments.pop("mode")
    restorer = nncf.quantization.advanced_parameters.AdvancedAccuracyRestorerParameters(
        max_num_iterations=control.max_num_iterations, ranking_subset_size=control.num_samples, num_ranking_workers=1
    )
    made = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(list(model_inputs(model, windows.token_ids))),
        nncf.Dataset(held_out),
        metric,
        max_drop=control.max_drop,
        advanced_quantization_parameters=arguments.pop("advanced_parameters"),
        advanced_accuracy_restorer_parameters=restorer,
        **arguments,
    )
    value, _ = metric(ov.Core().compile_model(made, "CPU", EXACT), held_out)
    constants = [op for op in made.get_ops() if op.get_type_name() == "Constant"]
    return 1 - value, sum(op.get_element_type() == ov.Type.i8 and len(op.get_output_shape(0)) == 2 for op in constants)


def main() -> None:
    """Run both sides and print the drops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=TOKENIZER)
    parser.add_argument("--text", type=Path, default=BUNDLED_TEXT)
    parser.add_argument("--max-drop", type=float, default=0.001)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=64)
    args = parser.parse_args()
    wanted = recipe(args)
    loaded = llmcompress.load(args.checkpoint)
    assert wanted.calibration is not None
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    windows = calibration_windows(wanted.calibration, tokenizer, num_held_out=args.held_out)
    started = time.perf_counter()
    drop, num_weights = stock(loaded.clone().model, wanted, windows)
    rows = [("stock NNCF", drop, num_weights, time.perf_counter() - started)]
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        report = llmcompress.compress(loaded, wanted, Path(work) / "out")
        duration_s = time.perf_counter() - started
    assert report.activations is not None
    assert report.activations.accuracy is not None
    accuracy = report.activations.accuracy
    rows.append(("llmcompress", accuracy.drop, sum(layer.mode == "int8_sym" for layer in report.layers), duration_s))
    print(f"everything quantized: KL divergence {accuracy.drop_quantized:.5f} nats; allowed {args.max_drop}")
    print("| | KL divergence | weights in 8 bits | time |\n|---|---|---|---|")
    for name, lost, weights, seconds in rows:
        print(f"| {name} | {lost:.5f} | {weights} | {seconds:.0f} s |")


if __name__ == "__main__":
    main()
