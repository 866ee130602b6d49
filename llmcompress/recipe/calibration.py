"""The text that data-aware methods look at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from llmcompress.recipe.part import MAX_COUNT, Count, Part, Refusal, Text, contradiction

FILE_TYPES = (".txt", ".jsonl", ".parquet")
OF_THE_DATASET = ("subset", "split", "text_field")
"""Fields that describe ``dataset`` and mean nothing for another one."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}@[0-9a-f]{40}", re.ASCII)
_ACCEPTED = "a local .txt, .jsonl or .parquet file, or a Hub dataset as namespace/name@COMMIT, is accepted"
_COMMIT = "copy the 40-digit commit from https://huggingface.co/datasets/NAMESPACE/NAME/commits/main"


class Calibration(Part):
    """``num_samples`` windows of ``seq_len`` tokens, drawn with ``seed``.

    ``dataset`` is a local file or ``namespace/name@commit``. A relative path written in a recipe file starts at that
    file's folder, one given on the command line at the working directory; ``load_recipe`` makes both absolute. A
    path in a record made in Python is taken from the working directory.
    """

    dataset: Text
    subset: Text | None = None
    """Configuration of a Hub dataset; None: its only one."""
    split: Text | None = None
    """Split of a Hub dataset."""
    text_field: Text = "text"
    """Column or key that holds the text; not used for .txt."""
    num_samples: Count = 128
    seq_len: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 256
    """Tokens per window."""
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    chat_template: bool = False
    """Render each text as a user's message with the model's chat template."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for refusal in _refusals(self):
            raise contradiction(refusal)
        return self

    def dataset_path(self) -> Path | None:
        """Return the local file, or None for a Hub dataset."""
        return Path(self.dataset) if is_file_name(self.dataset) else None


def is_file_name(dataset: str) -> bool:
    """Whether ``dataset`` names a local file and not a Hub dataset, judged by its ending alone."""
    return dataset.lower().endswith(FILE_TYPES)


def _refusals(calibration: Calibration) -> list[Refusal]:
    dataset = calibration.dataset
    if "://" in dataset:
        # Not echoed: a URL may hold a password.
        return [Refusal("dataset", f"a URL is not read; {_ACCEPTED}", "download the file first")]
    if is_file_name(dataset):
        return _file_refusals(calibration)
    if not _HUB.fullmatch(dataset):
        return [_dataset_refusal(dataset)]
    if calibration.split is None:
        return [Refusal("split", "a Hub dataset needs it", "for example split: train")]
    return []


def _file_refusals(calibration: Calibration) -> list[Refusal]:
    refusals = [
        Refusal(name, "has no effect with a local file", "remove it")
        for name in ("subset", "split")
        if getattr(calibration, name) is not None
    ]
    if calibration.dataset.lower().endswith(".txt") and calibration.text_field != "text":
        refusals.append(Refusal("text_field", "has no effect with a .txt file", "remove it"))
    return refusals


def _dataset_refusal(dataset: str) -> Refusal:
    name, at, _ = dataset.partition("@")
    if at and name.count("/") == 1:
        problem = "the revision is not a commit: a branch or tag can move, and the same recipe would see other text"
        return Refusal("dataset", problem, _COMMIT)
    if name.count("/") == 1 and not at and "." not in name:
        return Refusal("dataset", f"without a revision; {_ACCEPTED}", f"write {name}@COMMIT; {_COMMIT}")
    if "/" not in name and "." not in name:
        problem = f"without a namespace it is not certain whose dataset it is; {_ACCEPTED}"
        return Refusal("dataset", problem, f"write NAMESPACE/{name}@COMMIT; {_COMMIT}")
    return Refusal("dataset", _ACCEPTED, "check the file's ending")
