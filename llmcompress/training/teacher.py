"""What the original says of every position, computed once and kept: its most likely tokens, the others as one.

A KL divergence over these classes is at most that over all tokens (the log sum inequality); with the 256 most likely
tokens of a model of ordinary size little is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.system.files import replace_file
from llmcompress.system.progress import Progress, Reporter

LEAST = 1e-9
"""Probability of all other tokens, at least; its logarithm is taken."""


class Teacher(NamedTuple):
    """Mapped files, a row for each window: what memory holds of them the system can take back at any time."""

    log_probabilities: NDArray[np.float32]
    """``[num_windows, seq_len, num_top_tokens]``."""
    tokens: NDArray[np.int32]
    """Of the same shape."""

    def of(self, windows: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities in f32 and token ids of some windows."""
        values = torch.from_numpy(np.array(self.log_probabilities[windows]))
        return values.to(device), torch.from_numpy(np.asarray(self.tokens[windows], np.int64)).to(device)


@torch.no_grad()
def ask(model: Any, token_ids: NDArray[np.int64], num_top_tokens: int, directory: Path, progress: Reporter) -> Teacher:
    """Run the original over all windows, unless an earlier run has: its answers are used again.

    Args:
        model: In f32.
        token_ids: int64 ``[num_windows, seq_len]``.
        num_top_tokens: Kept of each position; at most the vocabulary's size.
        directory: Existing one, for the files; of this model and these windows alone.
        progress: Told of every window.
    """
    files, whole = (directory / "teacher.npy", directory / "teacher-tokens.npy"), directory / "teacher-is-whole"
    if _is_whole(files, whole):
        return Teacher(*(np.lib.format.open_memmap(file, "r") for file in files))
    num_windows, seq_len = token_ids.shape
    num_kept = min(num_top_tokens, int(model.config.get_text_config().vocab_size))
    shape = (num_windows, seq_len, num_kept)
    values = np.lib.format.open_memmap(files[0], "w+", np.float32, shape)
    tokens = np.lib.format.open_memmap(files[1], "w+", np.int32, shape)
    device = next(model.parameters()).device
    for number, window in enumerate(token_ids):
        progress(Progress("ask the original", number, num_windows, "windows"))
        logits = model(torch.from_numpy(window[None].copy()).to(device), use_cache=False).logits[0].float()
        top = torch.log_softmax(logits, -1).topk(num_kept, -1)
        values[number], tokens[number] = top.values.cpu().numpy(), top.indices.int().cpu().numpy()
    values.flush()
    tokens.flush()
    replace_file(whole, _hashes(files), durable=False)
    progress(Progress("ask the original", num_windows, num_windows, "windows"))
    return Teacher(values, tokens)


def _is_whole(files: Sequence[Path], whole: Path) -> bool:
    """Whether the answers are those that were written, every byte."""
    try:
        return whole.read_bytes() == _hashes(files)
    except OSError:
        return False


def _hashes(files: Sequence[Path]) -> bytes:
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return "\n".join(digests).encode()


def kl_divergence(logits: torch.Tensor, of_teacher: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """KL(original || model) at each position, in nats.

    Args:
        logits: Of the model, ``[num_windows, seq_len, vocabulary]``.
        of_teacher: What ``Teacher.of`` gave for the same windows.
    """
    expected, tokens = of_teacher
    normalizer = logits.logsumexp(-1, keepdim=True)
    found = logits.gather(-1, tokens) - normalizer
    probabilities = expected.exp()
    divergence = (probabilities * (expected - found)).sum(-1)
    if tokens.shape[-1] == logits.shape[-1]:
        return divergence
    others = (1 - probabilities.sum(-1)).clamp_min(LEAST)
    found_others = (1 - found.exp().sum(-1)).clamp_min(LEAST)
    return divergence + others * (others.log() - found_others.log())
