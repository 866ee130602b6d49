"""Seconds that whole models take of a token, run in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.timing import tpot_s, ttft_s
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.search import Phase

DEVICE = "CPU"
DECODE = Shape(batch_size=1, depth=0, prompt_tokens=32, new_tokens=65)
PREFILL = Shape(batch_size=1, depth=0, prompt_tokens=512, new_tokens=1)
REPETITIONS = 9


def model_times(directories: Sequence[Path], phase: Phase, quantile: float = 0.5) -> list[float]:
    """Seconds a token of whole models, each in a process of its own, run in turn.

    Args:
        directories: Of the models.
        phase: Of new tokens, each timed by itself, or of a prompt's.
        quantile: That is taken of the times; a low one on a machine that has other work.

    Raises:
        UsageError: The device refuses one.
    """
    import numpy as np

    shape = DECODE if phase == "decode" else PREFILL
    found: list[list[float]] = [[] for _ in directories]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(each, "openvino", name=each.name)) for each in directories]
        for client in clients:
            client.open(DEVICE, {})
        for repetition in range(1 + REPETITIONS):
            for client, seconds in zip(clients, found, strict=True):
                run = client.run(shape, repetition)
                if repetition:
                    seconds += tpot_s(run) if phase == "decode" else [ttft_s(run) / shape.prompt_tokens]
    return [float(np.quantile(seconds, quantile)) for seconds in found]
