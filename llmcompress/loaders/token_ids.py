"""Token ids that a model has no embedding for: looked up, they read memory outside the table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llmcompress.errors import ModelError
from llmcompress.loaders.chat_template import written_texts
from llmcompress.loaders.generation import configured_eos, read_generation_config
from llmcompress.loaders.source import Source

MAX_NAMES = 8
_SIZE_KEYS = ("vocab_size", "padded_vocab_size")
_HINT = "give the tokenizer that the model was trained with, or resize the model's embeddings to it"

_log = logging.getLogger(__name__)


def num_embeddings(config: Mapping[str, Any]) -> int | None:
    """Rows of the model's table of embeddings, by its ``config.json``; None where it states none."""
    parts = [config, config.get("text_config")]
    found = [part.get(name) for part in parts if isinstance(part, Mapping) for name in _SIZE_KEYS]
    return max((size for size in found if isinstance(size, int)), default=None)


def require_embeddings(ids: Iterable[int], size: int | None, *, what: str, where: str) -> None:
    """Refuse token ids that the model has no embedding for.

    Args:
        size: What ``num_embeddings`` found.
        what: What gives the ids, as the message's subject.

    Raises:
        ModelError: An id is ``size`` or more.
    """
    beyond = set() if size is None else {token for token in ids if token >= size}
    if beyond:
        raise ModelError(
            f"{what} gives token ids that the model does not have: {_listed(map(str, sorted(beyond)))}; "
            f"it has {size:,} embeddings",
            where=where,
            hint=_HINT,
        )


def check_token_ids(source: Source, tokenizer: Any | None) -> None:
    """Refuse a tokenizer, or end-of-text ids, that ask for embeddings the model does not have.

    What stands around every text or turn, or ends it, is refused. Tokens that are there and not used so are warned of.

    Args:
        tokenizer: A transformers tokenizer; None: only the configurations are looked at.

    Raises:
        ModelError: A token that is used has no embedding.
        SecurityError: The chat template breaks out of its bounds.
    """
    size = num_embeddings(source.config)
    if size is None:
        return
    eos = configured_eos(source.config, read_generation_config(source.path))
    if tokenizer is not None:
        _check_tokenizer(tokenizer, size, source.name)
        eos |= set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if eos and min(eos) >= size:
        require_embeddings(eos, size, what="eos_token_id", where=source.name)
    _warn({str(token) for token in eos if token >= size}, "eos_token_id names", size, source.name)


def _check_tokenizer(tokenizer: Any, size: int, where: str) -> None:
    beyond = {int(number): str(token) for token, number in tokenizer.get_vocab().items() if number >= size}
    if not beyond:
        return
    uses: list[tuple[str, Collection[int]]] = [
        ("its end-of-text token", [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]),
        ("what it puts around every text", tokenizer("a")["input_ids"]),
        (
            "its chat template",
            [
                token
                for text in written_texts(tokenizer)
                for token in tokenizer(text, add_special_tokens=False).input_ids
            ],
        ),
    ]
    for what, ids in uses:
        used = sorted(beyond.keys() & set(ids))
        if used:
            raise ModelError(
                f"the tokenizer does not fit the model, which has {size:,} embeddings: {what} needs "
                f"{_listed(f'{beyond[token]!r} (id {token})' for token in used)}",
                where=where,
                hint=_HINT,
            )
    names = {f"{beyond[token]!r} (id {token})" for token in beyond}
    _warn(names, "the tokenizer has tokens without one, and texts with them are refused:", size, where)


def _warn(names: Collection[str], what: str, size: int, where: str) -> None:
    if names:
        _log.warning("%s: the model has %s embeddings; %s %s", where, f"{size:,}", what, _listed(sorted(names)))


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:MAX_NAMES]) + (", ..." if len(shown) > MAX_NAMES else "")
