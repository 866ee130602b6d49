"""What llama.cpp's K-quants of a checkpoint lose, on given windows: as llama.cpp computes, and their weights alone.

Quantizer and logits are those of the prebuilt library in the npm package @node-llama-cpp/linux-x64, which is fetched
into a folder in the benchmark's own cache; the files come from an f16 GGUF of the same weights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmcompress.data.protocols import EvaluationWindows
from llmcompress.evaluation.measurement import ModelOnDevice, score_at_once
from llmcompress.evaluation.scoring import Feed
from llmcompress.evaluation.statistics import divergence
from llmcompress.graph.device import properties_of
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.estimate import Estimate
from llmcompress.system.cache import cache_dir
from llmcompress.system.progress import silent

TESTS = Path(__file__).resolve().parent.parent / "tests"
PACKAGE = "@node-llama-cpp/linux-x64@3.21.1"
KINDS = {"F16": 1, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
"""llama.cpp's numbers of its mixtures."""


class KQuant(NamedTuple):
    """A mixture of llama.cpp."""

    name: str
    size_bytes: int
    """Of its tensors, without metadata and tokenizer."""
    as_run: float
    """KL divergence in nats per token, with activations of 8 bits as llama.cpp multiplies them."""
    weights_alone: Estimate
    """The same of its weights in f32 by our graph, as everything else is measured."""


def library() -> Path:
    """The folder of llama.cpp's libraries; fetched where it is not there."""
    folder = cache_dir() / "benchmarks" / "llama-cpp"
    libraries = folder / "package" / "bins" / "linux-x64"
    if not libraries.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return libraries


def k_quants(original: LoadedModel, windows: EvaluationWindows, folder: Path) -> Iterator[KQuant]:
    """Make and measure each mixture.

    Args:
        original: A checkpoint of an architecture that ``tests/gguf_fixture.py`` writes.
        windows: What is scored.
        folder: For the files.
    """
    os.environ["LLAMA_CPP"] = str(library())
    # A benchmark next to this one has the name of the package gguf.
    others = [each for each in sys.path if Path(each).resolve() != Path(__file__).resolve().parent]
    sys.path[:] = [str(TESTS), str(TESTS / "gguf_models"), *others]
    import gguf
    from gguf_fixture import write_gguf
    from llama_cpp import file_quantized, logits_of_windows

    def in_f16(name: str, values: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        return values.astype(np.float16), gguf.GGMLQuantizationType.F16

    # numpy reads no bf16.
    checkpoint = folder / "f32"
    load_torch_model(original.source).float().save_pretrained(checkpoint)
    shutil.copy(original.source.path / "tokenizer.json", checkpoint)
    source = write_gguf(checkpoint, folder / "source.gguf", in_f16)
    device = ModelOnDevice(original, "CPU", properties_of("CPU", "pinned"))
    feed = Feed(windows, windows.windows[0].token_ids.size)
    ids = [[int(token) for token in window.token_ids] for window in windows.windows]
    right = [_log_probabilities(each) for each in _ours(device, ids)]
    candidates, as_run, sizes = [], [], []
    for name, kind in KINDS.items():
        path = folder / f"{name}.gguf"
        file_quantized(source, path, kind)
        found = logits_of_windows(path, ids, right[0].shape[-1])
        lost = [
            _divergence(true, _log_probabilities(each), window.first_scored)
            for true, each, window in zip(right, found, windows.windows, strict=True)
        ]
        as_run.append(float(np.concatenate(lost).mean()))
        sizes.append(sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors))
        candidates.append(device._replace(loaded=load(path, tokenizer=False).dequantized()))
    for name, size, lost_as_run, scored in zip(
        KINDS, sizes, as_run, score_at_once(candidates, device, feed, silent), strict=True
    ):
        scored.cache.forget()
        yield KQuant(name, size, lost_as_run, divergence(scored.scores, 0.95).kl_divergence)


def _ours(device: ModelOnDevice, windows: list[list[int]]) -> Iterator[np.ndarray]:
    from llmcompress.graph.decoding import Decoder

    decoder = Decoder(device.compiled())
    for ids in windows:
        decoder.begin(1, len(ids))
        decoder.run(decoder.tensors(np.array([ids]), 0))
        yield decoder.request.get_tensor("logits").data[0].copy()


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _divergence(right: np.ndarray, found: np.ndarray, first_scored: int) -> np.ndarray:
    """Of each scored token, which the position before it predicts."""
    right, found = right[first_scored - 1 : -1], found[first_scored - 1 : -1]
    return (np.exp(right) * (right - found)).sum(-1)
