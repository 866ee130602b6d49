"""Checkpoint -> transformers model in its own precision, to be trained in torch."""

from __future__ import annotations

from typing import Any

from llmcompress.errors import ModelError, last_line
from llmcompress.loaders.adapter import adapters_left_out, merge
from llmcompress.loaders.exporter import auto_class
from llmcompress.loaders.language_model import language_model, load_whole
from llmcompress.loaders.source import Source


def load_torch_model(source: Source) -> Any:
    """Load a checkpoint whose files have been checked, with its adapter merged, for evaluation mode.

    Raises:
        ModelError: transformers cannot load it.
    """
    try:
        with adapters_left_out():
            how = {"local_files_only": True, "use_safetensors": True, "torch_dtype": "auto"}
            if source.text_only:
                return language_model(load_whole(source.path, **how)[0], source.name)
            model = auto_class(source.config).from_pretrained(
                source.path, trust_remote_code=source.trust_remote_code, **how
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"transformers could not load the weights: {last_line(error)}",
            where=source.name,
            hint="the tensors' names and shapes must be those that config.json describes",
        ) from error
    if source.adapter is not None:
        model = merge(model, source.adapter)
    return model.eval()
