"""The processor next to a vision-language model, which makes numbers of pictures: copied, and compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.errors import ModelError, one_line
from llmcompress.loaders.source import Source

IMAGE_PROCESSOR = "preprocessor_config.json"
"""Which OpenVINO GenAI opens."""
_FILES = (IMAGE_PROCESSOR, "processor_config.json", "video_preprocessor_config.json", "chat_template.json")
_HINT = "fetch the checkpoint again, with its processor's files"
_SIZE = (64, 96)
"""Height and width of the picture that both are shown; no square, and no multiple of usual sizes."""


class TokenizerAndImages(NamedTuple):
    """In place of the processor of a model that has none, such as InternVL; Optimum's class writes its prompts."""

    tokenizer: Any
    image_processor: Any


def save_processor(source: Source, output_dir: Path) -> None:
    """Copy a source's processor files, and write that of its image processor where the source keeps it in another.

    Raises:
        ModelError: There is no processor, or it cannot be opened.
    """
    for name in _FILES:
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, output_dir / name)
    if not (output_dir / IMAGE_PROCESSOR).is_file():
        open_processor(source.path, source.trust_remote_code).image_processor.save_pretrained(output_dir)


def open_processor(directory: Path, trust_remote_code: bool = False) -> Any:
    """The processor of transformers in a directory.

    Raises:
        ModelError: There is none, or transformers cannot open it.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        how = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        found = AutoProcessor.from_pretrained(directory, **how)
        if not hasattr(found, "image_processor") and (directory / IMAGE_PROCESSOR).is_file():
            found = TokenizerAndImages(found, AutoImageProcessor.from_pretrained(directory, **how))
    except Exception as error:  # the processor's own classes may raise anything
        raise ModelError(
            f"its processor cannot be opened: {one_line(str(error), 200)}", where=directory.name, hint=_HINT
        ) from error
    if getattr(found, "image_processor", None) is None:
        raise ModelError("it has no processor of pictures", where=directory.name, hint=_HINT)
    return found


def check_processor(source: Source, output_dir: Path) -> None:
    """Compare what both processors make of a picture.

    Raises:
        ModelError: They differ, or one cannot be opened.
    """
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 256, (*_SIZE, 3), dtype=np.uint8)
    expected, found = (
        # Some give torch's tensors alone.
        open_processor(path, source.trust_remote_code).image_processor(picture, return_tensors="pt")
        for path in (source.path, output_dir)
    )
    differing = [name for name in expected if name not in found or not np.array_equal(expected[name], found[name])]
    if differing:
        raise ModelError(
            f"the saved processor makes other numbers of a picture than the source's: {', '.join(differing)}",
            where=output_dir.name,
            hint=_HINT,
        )
