"""How far a model is from the original, on the text that decides what goes."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmcompress.system.progress import Reporter
from llmcompress.training.teacher import Teacher, ask, kl_divergence

NUM_TOP_TOKENS = 256
"""Of the original's distribution at each position of the text; the others count as one."""


class Text(NamedTuple):
    """Windows, and what the original says of them."""

    token_ids: NDArray[np.int64]
    """``[num_windows, seq_len]``."""
    teacher: Teacher


def text_of(original: Any, token_ids: NDArray[np.int64], place: Path, progress: Reporter) -> Text:
    """Ask a model in f32 about a text; its answers lie in an existing directory."""
    place = place / "text"
    place.mkdir()
    return Text(token_ids, ask(original, token_ids, NUM_TOP_TOKENS, place, progress))


@torch.no_grad()
def window_divergence(model: Any, text: Text, number: int) -> float:
    """KL(original || model) of one window, in nats a token."""
    logits = model(window(model, text.token_ids, number), use_cache=False).logits.float()
    of_window = text.teacher.of(slice(number, number + 1), logits.device)
    return float(kl_divergence(logits, of_window).mean())


def divergence(model: Any, text: Text) -> float:
    """KL(original || model), in nats a token."""
    return fmean(window_divergence(model, text, number) for number in range(len(text.token_ids)))


def window(model: Any, token_ids: NDArray[np.int64], number: int) -> torch.Tensor:
    """Token ids of a window, ``[1, seq_len]``, where the model is."""
    return torch.from_numpy(token_ids[number : number + 1].copy()).to(model.device)
