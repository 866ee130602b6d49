"""A pruned model as an ordinary checkpoint, compared with what it was in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llmcompress.errors import ModelError, last_line
from llmcompress.loaders.source import Source, side_files

CHECK_TOKENS = 32
"""At which the saved checkpoint is compared."""


def save_checkpoint(model: Any, dtype: Any, source: Source, place: Path) -> Path:
    """Save a model as transformers does, with the side files of the checkpoint that it was, and open it again.

    Args:
        model: Pruned, in f32, with weights that ``dtype`` holds exactly.
        dtype: torch's, that they are saved in.
        source: What it was.
        place: Existing directory.

    Returns:
        The checkpoint's directory, below ``place``.

    Raises:
        ModelError: The configuration cannot say what is left, so that the saved model computes something else.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = place / f"{source.name.rpartition('/')[2]}-pruned"
    ids = torch.arange(CHECK_TOKENS).remainder(model.config.get_text_config().vocab_size)[None]
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        # Buffers, such as the frequencies of positions, are not for that precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(path)
    for name in side_files(source):
        target = path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / name, target)
    try:
        opened = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=dtype).eval()
        with torch.no_grad():
            found = opened.float()(ids, use_cache=False).logits
    except (OSError, RuntimeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise _differs(source, last_line(error)) from error
    if not torch.equal(found, wanted):
        raise _differs(source, f"logits differ by up to {float((found - wanted).abs().max()):.3g}")
    return path


def _differs(source: Source, problem: str) -> ModelError:
    return ModelError(
        f"what is left after the pruning does not open as a {source.config.get('model_type')} checkpoint: {problem}",
        where=source.name,
        hint="its configuration decides by a layer's number what it computes; take another pruning.method",
    )
