"""The language model of a vision-language checkpoint, as a causal language model of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError, UsageError
from llmcompress.loaders.exporter import VISION_TASK, auto_class, declared_windows, task_of
from llmcompress.system.json_file import read_json, write_json

if TYPE_CHECKING:
    from llmcompress.loaders.source import Source

_OF_THE_WHOLE = ("dtype", "torch_dtype", "tie_word_embeddings", "transformers_version", "_name_or_path")
"""What a configuration says of all its parts."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WITHOUT = "leave `text_only` out: the model is compressed with all its parts"


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
            hint=_WITHOUT,
        )
    stated = {name: config[name] for name in _TOKENS if config.get(name) is not None} | dict(text)
    stated |= {name: config[name] for name in _OF_THE_WHOLE if config.get(name) is not None}
    return stated | {"architectures": [class_name]}


def configuration(source: Source) -> Any:
    """What transformers makes of a source's configuration, of a language model that is taken out too."""
    from transformers import AutoConfig

    if source.text_only:
        values = dict(source.config)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code, local_files_only=True)


def whole_config(source: Source) -> dict[str, Any]:
    """The configuration that lies next to a source's weights."""
    return read_json(source.path / "config.json") if source.text_only else source.config


@contextlib.contextmanager
def exported_directory(source: Source) -> Iterator[Path]:
    """The directory that the exporter is given: the source's, or one with the language model's configuration alone."""
    if not source.text_only:
        yield source.path
        return
    with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder:
        write_json(Path(folder) / "config.json", source.config)
        yield Path(folder)


def load_whole(directory: Path, **kwargs: Any) -> tuple[Any, Any]:
    """The vision-language model in a directory, by transformers, and what was told of its loading."""
    kind = auto_class(read_json(directory / "config.json"))
    # What the language model's configuration says is in that of the whole.
    kwargs.pop("config", None)
    model, info = kind.from_pretrained(directory, output_loading_info=True, **kwargs)
    return model, info


def language_model(whole: Any, where: str) -> Any:
    """Put a vision-language model's decoder and head into the causal class of its type; no tensor is copied.

    Args:
        whole: A model of transformers.
        where: For people.

    Raises:
        ModelError: The decoder of that class is another one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = whole.config.get_text_config()
    head, decoder = whole.get_output_embeddings(), whole.get_decoder()
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    config.architectures = [kind.__name__]
    config.tie_word_embeddings = head.weight is whole.get_input_embeddings().weight
    with torch.device("meta"):
        model = kind(config)
    name = next((name for name, child in model.named_children() if type(child) is type(decoder)), None)
    if name is None:
        raise ModelError(
            f"its decoder is a {type(decoder).__name__}, that of {kind.__name__} another one",
            where=where,
            hint=_WITHOUT,
        )
    setattr(model, name, decoder)
    model.set_output_embeddings(head)
    model.generation_config = whole.generation_config
    return model.eval()
