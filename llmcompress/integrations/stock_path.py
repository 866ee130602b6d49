"""What stock Optimum needs to carry out a recipe, and what it cannot carry.

It takes calibration texts as lists of strings, which it tokenizes with a tokenizer that it is named. So each string
spells the token ids of one window, and the tokenizer is one that reads them back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from llmcompress.data import calibration_windows
from llmcompress.errors import RecipeError
from llmcompress.loaders.context import longest_context
from llmcompress.loaders.fetching import fetch_side_files
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.token_ids import num_embeddings
from llmcompress.loaders.tokenizer import source_tokenizer
from llmcompress.spec import Gate, Recipe
from llmcompress.spec.access import Access

_TO_OURS = "give the recipe itself to llmcompress.OVModelForCausalLM.from_pretrained, which carries it out"


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
            max_seq_len=longest_context(found, recipe.calibration.seq_len),
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


def refuse_uncarried(recipe: Recipe) -> None:
    """Refuse what stock ``from_pretrained`` would leave undone.

    Raises:
        RecipeError: Names the field.
    """
    if recipe.method in ("none", "keep"):
        raise RecipeError(
            f"method {recipe.method} is no quantization",
            where=f"recipe {recipe.name}: method",
            hint="leave quantization_config out, and write load_in_8bit=False",
        )
    instead = _TO_OURS if recipe.method == "weights" else "remove it"
    weights, activations = recipe.weights, recipe.activations
    carried = set() if weights is None else {"dynamic_quantization_group_size"}
    hints = recipe.runtime.model_dump(exclude_none=True).keys() - carried
    for field, is_asked, problem, hint in (
        ("further_weights", bool(recipe.further_weights), "compresses weights in one pass", _TO_OURS),
        ("weights.rules", weights is not None and bool(weights.rules), "has one format for all layers", _TO_OURS),
        (
            "weights.statistics",
            weights is not None and weights.statistics != "compressed",
            "has GPTQ go by the activations of the compressed model",
            "write compressed, or " + _TO_OURS,
        ),
        (
            "weights.gptq_order",
            weights is not None and weights.gptq_order != "columns",
            "has GPTQ go by columns",
            "write columns, or " + _TO_OURS,
        ),
        (
            "weights.statistics_precision",
            weights is not None and weights.statistics_precision != "f32",
            "collects statistics in f32",
            "write f32, or " + _TO_OURS,
        ),
        (
            "activations.accuracy_control",
            activations is not None and activations.accuracy_control is not None,
            "has no accuracy control",
            "remove it",
        ),
        ("training", recipe.training is not None, "learns no bits", _TO_OURS),
        ("pruning", recipe.pruning is not None, "takes nothing away", _TO_OURS),
        *((f"runtime.{name}", True, "does not write this hint into the model", instead) for name in hints),
        ("target", recipe.target == "npu", "does not check that the device takes every layer", instead),
        ("gate", recipe.gate != Gate(), "keeps no thresholds with the model", instead),
    ):
        if is_asked:
            problem = f"Optimum's from_pretrained {problem}"
            raise RecipeError(problem, where=f"recipe {recipe.name}: {field}", hint=hint)
