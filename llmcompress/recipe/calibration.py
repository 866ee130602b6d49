"""The text that data-aware methods look at."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmcompress.recipe.dataset import Dataset
from llmcompress.recipe.part import MAX_COUNT, Count


class Calibration(Dataset):
    """``num_samples`` windows of ``seq_len`` tokens of a dataset, drawn with ``seed``."""

    num_samples: Count = 128
    seq_len: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 256
    """Tokens per window."""
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    chat_template: bool = False
    """Render each text as a user's message with the model's chat template."""
