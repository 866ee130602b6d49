"""The language model of a vision-language checkpoint, as a causal language model of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.loaders.exporter import auto_class
from llmcompress.loaders.text_config import WITHOUT_TEXT_ONLY
from llmcompress.system.json_file import read_json, write_json

if TYPE_CHECKING:
    from llmcompress.loaders.source import Source


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
            hint=WITHOUT_TEXT_ONLY,
        )
    setattr(model, name, decoder)
    model.set_output_embeddings(head)
    model.generation_config = whole.generation_config
    return model.eval()
