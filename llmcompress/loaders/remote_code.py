"""Code that a model's configuration asks for, refused unless it is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmcompress.errors import SecurityError
from llmcompress.system.environment import allow_sklearn

_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
ALLOW = "read that code first; `trust_remote_code` then allows it to run"


def refuse_hidden_code(config: Mapping[str, Any], trust_remote_code: bool, where: str) -> None:
    """Refuse the fields of a ``config.json`` that bring code along, apart from a top-level ``auto_map``.

    With a model type that transformers has a class for, a top-level ``auto_map`` is not followed unless it is allowed.

    Raises:
        SecurityError: a nested ``auto_map`` or a kernel of the Hub without ``trust_remote_code``; whatever the flag,
            a field that makes the exporter take another type's path, some of which load code unasked.
    """
    if "export_model_type" in config:
        raise SecurityError(
            "export_model_type makes the exporter treat the model as another type, which can run foreign code",
            where=where,
            hint="remove the field; no published model needs it",
        )
    if trust_remote_code:
        allow_sklearn()
        return
    for path, key, value in _fields(config):
        if key == "auto_map" and path and value:
            raise SecurityError(
                f"{path}.auto_map: loading that part runs Python code from a repository",
                where=where,
                hint=ALLOW,
            )
        if key in _KERNEL_KEYS and "/" in str(value):
            raise SecurityError(
                f"{key} is {value!r}: a compute kernel would be fetched from the Hub and run",
                where=where,
                hint="remove the field, or allow it with `trust_remote_code`",
            )


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every key at any depth, with the dotted path of the object it is in."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield path, key, inner
                waiting.append((f"{path}.{key}" if path else str(key), inner))
        elif isinstance(value, list):
            waiting.extend((f"{path}[{index}]", inner) for index, inner in enumerate(value))


def check_tokenizer(
    config: Mapping[str, Any], *, model_type: str, trust_remote_code: bool = False, where: str = "tokenizer_config.json"
) -> None:
    """Refuse a tokenizer or processor whose configuration asks for code from its repository.

    A tokenizer that transformers has a class of its own for is loaded with that class and passes.

    Raises:
        SecurityError: it needs that code and ``trust_remote_code`` is off.
    """
    auto_map = config.get("auto_map")
    if trust_remote_code or not auto_map:
        return
    if where == "tokenizer_config.json":
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

        name = str(config.get("tokenizer_class")).removesuffix("Fast")
        own = tokenizer_class_from_name(name) or tokenizer_class_from_name(name + "Fast")
        if TOKENIZER_MAPPING_NAMES.get(model_type) or own is not None:
            return
    raise SecurityError(
        "auto_map: loading it runs Python code from the model's repository",
        where=where,
        hint=ALLOW,
    )
