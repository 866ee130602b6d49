"""How many tokens a model's positions reach, and whether what they mean depends on how many there are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llmcompress.errors import UsageError
from llmcompress.loaders.source import Source

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_ORIGINAL = "original_max_position_embeddings"
# Their configurations state the context with the scaling in it, as those of all models of type gemma3 do.
_SCALED_ALREADY = ("longrope", "llama3")

_log = logging.getLogger(__name__)


class ChangingRope(NamedTuple):
    """Rotary positions whose frequencies depend on how many tokens a call has seen."""

    kind: str
    """``longrope``, or ``dynamic`` for dynamic NTK."""
    length: int
    """Up to so many tokens the frequencies are the same ones."""


def longest_context(source: Source, asked: int = 0) -> int | None:
    """Tokens that the model's positions reach, their scaling included; None where the configuration states none.

    As vLLM reads it (``_get_and_verify_max_len``): the stated context times the scaling's factor, by YaRN the original
    context times the factor. ``max_context`` of ``Access`` goes first, with a warning where ``asked`` tokens need it.
    """
    configured = _configured(_of_text(source.config))
    if source.max_context is not None and configured is not None and configured < asked <= source.max_context:
        _log.warning(
            "%s: %s tokens are more than its context of %s by config.json; `max_context` allows them",
            source.name,
            f"{asked:,}",
            f"{configured:,}",
        )
    return source.max_context or configured


def require_context(source: Source, num_tokens: int, asked: str, *, field: str = "", hint: str = "take fewer") -> None:
    """Refuse more tokens at once than the model's positions reach.

    Args:
        asked: The message up to the comma, such as ``f"{num_tokens} tokens were asked for"``.
        field: What asks for them, where the model's name alone does not say it.
        hint: What to do; ``{longest}`` in it becomes the model's context.

    Raises:
        UsageError: ``num_tokens`` is more.
    """
    longest = longest_context(source, num_tokens)
    if longest is not None and num_tokens > longest:
        raise UsageError(
            f"{asked}, the model's context is {longest}",
            where=f"{source.name}: {field}" if field else source.name,
            hint=f"{hint.format(longest=longest)}; if config.json states it wrong, give `max_context`",
        )


def changing_rope(config: Mapping[str, Any]) -> ChangingRope | None:
    """Read whether frequencies depend on the length; by LongRoPE beyond the original context, else the stated one."""
    config = _of_text(config)
    for rope in _ropes(config):
        kind = _kind(rope)
        if kind == "longrope":
            length = _original(rope, config)
        elif kind == "dynamic":
            length = _stated(config)
        else:
            continue
        if length is not None:
            return ChangingRope(kind, length)
    return None


def warn_of_frozen_positions(source: Source) -> None:
    """Warn of a checkpoint whose graph cannot change its positions' frequencies, as PyTorch does beyond a length."""
    rope = changing_rope(source.config)
    if rope is not None and rope.kind == "dynamic":
        _log.warning(
            "%s: its positions are scaled by dynamic NTK; the converted graph keeps the frequencies of up to %s "
            "tokens, and is another model than in PyTorch beyond them",
            source.name,
            f"{rope.length:,}",
        )


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a vision-language model the configuration of its language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) and _stated(config) is None else config


def _configured(config: Mapping[str, Any]) -> int | None:
    longest = _stated(config)
    if longest is None or "gemma3" in str(config.get("model_type")):
        return longest
    factor = 1.0
    for rope in _ropes(config):
        kind = _kind(rope)
        if kind in _SCALED_ALREADY:
            continue
        factor = _number(rope.get("factor")) or factor
        if kind == "yarn":
            longest = _original(rope, config) or longest
    return int(longest * factor)


def _stated(config: Mapping[str, Any]) -> int | None:
    found = (config.get(name) for name in _CONTEXT_KEYS)
    return next((value for value in found if isinstance(value, int)), None)


def _original(rope: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """The context before scaling, which transformers takes from the configuration where the scaling states none."""
    found = map(_number, (rope.get(_ORIGINAL), config.get(_ORIGINAL), _stated(config)))
    return next((int(value) for value in found if value), None)


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every scaling: ``rope_scaling``, or transformers 5's ``rope_parameters``, perhaps one for each type of layer."""
    stated = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(stated, Mapping):
        return
    by_layer_type = [part for part in stated.values() if isinstance(part, Mapping)]
    yield from by_layer_type or [stated]


def _kind(rope: Mapping[str, Any]) -> str:
    kind = str(rope.get("rope_type") or rope.get("type"))
    return "longrope" if kind == "su" else kind


def _number(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value < 1 << 53 else None  # type: ignore[arg-type, operator]
