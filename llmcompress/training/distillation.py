"""All layers together, by the KL divergence of the model to the original (LLM-QAT, arXiv:2305.17888)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize

from llmcompress.spec.training import MAX_LOGITS, Training
from llmcompress.system.progress import Reporter
from llmcompress.training.course import Course
from llmcompress.training.devices import autocast
from llmcompress.training.student import Learnable
from llmcompress.training.teacher import Teacher, kl_divergence


class Windows:
    """Token ids of training and of validation, one after the other, as the teacher has them."""

    def __init__(self, training: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
        self.token_ids = np.concatenate([training, held_out])
        self.num_training = len(training)


def distillation(
    model: Any,
    learnables: Sequence[Learnable],
    training: Training,
    windows: Windows,
    teacher: Teacher,
    state_file: Path,
    progress: Reporter,
) -> Course:
    """The course of a student that has been prepared.

    Args:
        model: The student.
        learnables: What is trained of it.
        training: How.
        windows: What the teacher was asked.
        teacher: What it said.
        state_file: Where the state of an interrupted training is, or will be kept.
        progress: Told of every step.
    """
    device = next(model.parameters()).device
    vocabulary = int(model.config.get_text_config().vocab_size)
    at_once = max(1, MAX_LOGITS // (windows.token_ids.shape[1] * vocabulary))
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()

    def divergence(part: slice) -> torch.Tensor:
        ids = torch.from_numpy(windows.token_ids[part].copy()).to(device)
        with autocast(device):
            logits = model(ids, use_cache=False).logits
        return kl_divergence(logits.float(), teacher.of(part, device))

    def backward(batch: slice) -> float:
        total, count = 0.0, batch.stop - batch.start
        for part in _parts(batch, at_once):
            loss = divergence(part).mean() * ((part.stop - part.start) / count)
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def validate() -> torch.Tensor:
        held_out = slice(windows.num_training, len(windows.token_ids))
        # The values of codes are made once for all parts, in the memory that a step's activations took.
        with parametrize.cached():
            return torch.cat([divergence(part).mean(-1).cpu() for part in _parts(held_out, at_once)])

    return Course("model", learnables, training, windows.num_training, backward, validate, state_file, progress)


def _parts(whole: slice, size: int) -> list[slice]:
    return [slice(first, min(first + size, whole.stop)) for first in range(whole.start, whole.stop, size)]
