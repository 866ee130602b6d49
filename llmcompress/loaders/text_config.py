"""The configuration of a vision-language model's language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompress.errors import ModelError, UsageError
from llmcompress.loaders.exporter import VISION_TASK, declared_windows, task_of

_OF_THE_WHOLE = ("dtype", "torch_dtype", "tie_word_embeddings", "transformers_version", "_name_or_path")
"""What a configuration says of all its parts."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
WITHOUT_TEXT_ONLY = "leave `text_only` out: the model is compressed with all its parts"


def text_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The ``config.json`` of the language model, made of that of a vision-language model.

    Args:
        config: Of the checkpoint.
        where: The model, for people.

    Raises:
        UsageError: It is a text model.
        ModelError: Its language model is of no type that is exported alone, or it is quantized already.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if task_of(config) != VISION_TASK:
        raise UsageError(
            "`text_only` takes the language model of a vision-language checkpoint, and this is none",
            where=where,
            hint="leave it out",
        )
    if config.get("quantization_config"):
        raise ModelError(
            "codes are not taken over from a vision-language model",
            where=where,
            hint="give the original checkpoint, in floating point",
        )
    text = config.get("text_config")
    model_type = str(text.get("model_type")) if isinstance(text, Mapping) else "none that its configuration names"
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if not isinstance(text, Mapping) or class_name is None or model_type not in declared_windows():
        raise ModelError(
            f"the language model of {config.get('model_type')} is of a type that is not exported alone ({model_type})",
            where=where,
            hint=WITHOUT_TEXT_ONLY,
        )
    stated = {name: config[name] for name in _TOKENS if config.get(name) is not None} | dict(text)
    stated |= {name: config[name] for name in _OF_THE_WHOLE if config.get(name) is not None}
    return stated | {"architectures": [class_name]}
