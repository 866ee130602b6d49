"""Calibration texts as Optimum takes them: lists of strings, which it tokenizes with a tokenizer that it is named.

Each string spells the token ids of one window, and the tokenizer is one that reads them back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from llmcompress.data import calibration_windows
from llmcompress.loaders.source import fetch_side_files, longest_context, resolve
from llmcompress.loaders.token_ids import num_embeddings
from llmcompress.loaders.tokenizer import source_tokenizer
from llmcompress.spec import Recipe
from llmcompress.spec.access import Access


class BoundTexts:
    """A recipe for one model: its calibration windows as texts, and the tokenizer that reads these."""

    def __init__(self, source: str, recipe: Recipe, access: Access) -> None:
        """Take a Hub id or a checkpoint directory; raises what finding its tokenizer and the text raises."""
        self.tokenizer = source
        self.texts: list[str] | None = None
        if recipe.calibration is None:
            return
        # A directory has no revisions; the model may be one although the configuration is for the Hub's, too.
        found = resolve(source, access.at(None) if Path(source).is_dir() else access)
        found = fetch_side_files(found)
        own = source_tokenizer(found)
        token_ids = calibration_windows(
            recipe.calibration,
            own,
            offline=access.offline,
            max_seq_len=longest_context(found),
            num_embeddings=num_embeddings(found.config),
        ).token_ids
        self.texts = [" ".join(map(str, window)) for window in token_ids.tolist()]
        # Removed with the last copy of this.
        self._directory = tempfile.TemporaryDirectory(prefix="llmcompress-token-ids-")
        self.tokenizer = self._directory.name
        _write_ids_tokenizer(int(token_ids.max()) + 1, self.tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundTexts:
        # Optimum copies configurations; the directory lives as long as any copy.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The windows belong to one process; another use makes them again, equal.
        return type(None), ()


def _write_ids_tokenizer(vocab_size: int, directory: str) -> None:
    """Write a tokenizer for which the text "7 40" is the ids 7 and 40."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {str(token): token for token in range(vocab_size)}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(directory)
