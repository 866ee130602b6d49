"""The generation config next to the model, with every token that ends a text: a model without them never stops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcompress.errors import ModelError
from llmcompress.loaders.chat_template import turn_end_id
from llmcompress.system.json_file import write_json

GENERATION_CONFIG = "generation_config.json"


def read_generation_config(source_dir: Path) -> dict[str, Any] | None:
    """The source's ``generation_config.json``, or None when it has none.

    Raises:
        ModelError: the file is not a JSON object.
    """
    path = source_dir / GENERATION_CONFIG
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"not JSON: {error}", where=GENERATION_CONFIG, hint="fetch the file again") from None
    if not isinstance(content, dict):
        raise ModelError("not a JSON object", where=GENERATION_CONFIG, hint="fetch the file again")
    return content


def reconcile_eos(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None, tokenizer: Any | None
) -> list[int]:
    """Every id that ends a text: of both configs, the tokenizer, and its chat template's end of a turn; sorted.

    Raises:
        ModelError: an ``eos_token_id`` is not an id or a list of ids.
        SecurityError: the chat template breaks out of its bounds.
    """
    ids = configured_eos(config, generation_config)
    if tokenizer is not None:
        ids.update(_ids(tokenizer.eos_token_id, "tokenizer_config.json"))
        turn_end = turn_end_id(tokenizer)
        ids.update([] if turn_end is None else [turn_end])
    return sorted(ids)


def configured_eos(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None) -> set[int]:
    """The ids that end a text by both configurations.

    Raises:
        ModelError: an ``eos_token_id`` is not an id or a list of ids.
    """
    return {
        *_ids(config.get("eos_token_id"), "config.json"),
        *_ids((generation_config or {}).get("eos_token_id"), GENERATION_CONFIG),
    }


def save_generation_config(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None, tokenizer: Any | None, output_dir: Path
) -> list[int]:
    """Write ``generation_config.json``: the source's own, or the ids of ``config`` if it has none, with all eos ids.

    Nothing but ``eos_token_id`` is changed, and to that ids are only added. The mark ``_from_model_config`` is left
    out: with it transformers 4 would take the eos of ``config.json`` again. Returns the eos ids.

    Raises: as :func:`reconcile_eos`.
    """
    eos = reconcile_eos(config, generation_config, tokenizer)
    if generation_config is None:
        names = ("bos_token_id", "pad_token_id")
        generation_config = {name: config[name] for name in names if config.get(name) is not None}
    content = {key: value for key, value in generation_config.items() if key != "_from_model_config"}
    if eos:
        content["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    write_json(output_dir / GENERATION_CONFIG, content)
    return eos


def _ids(value: object, where: str) -> list[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    ids = [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
    if len(ids) < len(values):
        raise ModelError(
            f"eos_token_id is {value!r}, a token id or a list of them is needed",
            where=where,
            hint="correct the file in the source directory",
        )
    return ids
