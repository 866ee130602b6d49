"""The text that a calibration or an evaluation reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from llmcompress.spec.validation import MAX_COUNT, Count, DescribedModel, Refusal, Text

FILE_TYPES = (".txt", ".jsonl", ".parquet")
AUTO, BUNDLED, WIKITEXT = "auto", "bundled", "wikitext2"
OF_THE_DATASET = ("subset", "split", "text_field")
"""Fields that describe ``dataset`` and mean nothing for another one."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}@[0-9a-f]{40}", re.ASCII)
_ACCEPTED = "a local .txt, .jsonl or .parquet file, or a Hub dataset as namespace/name@COMMIT, is accepted"
_COMMIT = "copy the 40-digit commit from https://huggingface.co/datasets/NAMESPACE/NAME/commits/main"


class Dataset(DescribedModel):
    """``dataset`` is a local file or ``namespace/name@commit``.

    A relative path written in a recipe file starts at that file's folder, one given on the command line at the working
    directory; ``load_recipe`` makes both absolute. A path in a record made in Python is taken from the working
    directory.
    """

    KNOWN: ClassVar[tuple[str, ...]] = ()
    """Short names that stand for a pinned Hub dataset with its subset and split."""

    dataset: Text
    subset: Text | None = None
    """Configuration of a Hub dataset. Default: its only one."""
    split: Text | None = None
    """Split of a Hub dataset."""
    text_field: Text = "text"
    """Column or key that holds the text; not used for .txt."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from _dataset_refusals(self)

    def dataset_path(self) -> Path | None:
        """Return the local file, or None for a Hub dataset."""
        return Path(self.dataset) if is_file_name(self.dataset) else None

    def portable(self) -> Self:
        """Return the same with a local file, and those of texts inside it, reduced to the file's name."""
        path = self.dataset_path()
        changes: dict[str, Any] = {} if path is None else {"dataset": path.name}
        for name in type(self).model_fields:
            if isinstance(inside := getattr(self, name), Dataset):
                changes[name] = inside.portable()
        return self.model_copy(update=changes)


def hub_split(dataset: str) -> tuple[str, str] | None:
    """Name and split of ``namespace/name@commit:split``; None of anything else."""
    name, colon, split = dataset.partition(":")
    return (name, split) if colon and split and _HUB.fullmatch(name) else None


def is_file_name(dataset: str) -> bool:
    """Whether ``dataset`` names a local file and not a Hub dataset, judged by its ending alone."""
    return dataset.lower().endswith(FILE_TYPES)


def _dataset_refusals(source: Dataset) -> list[Refusal]:
    dataset = source.dataset
    if dataset in source.KNOWN:
        given = [name for name in OF_THE_DATASET if getattr(source, name) != type(source).model_fields[name].default]
        return [Refusal(name, f"has no effect with the known name {dataset}", "remove it") for name in given]
    if "://" in dataset:
        # Not echoed: a URL may hold a password.
        return [Refusal("dataset", f"a URL is not read; {_ACCEPTED}", "download the file first")]
    if is_file_name(dataset):
        return _file_refusals(source)
    if not _HUB.fullmatch(dataset):
        return [_dataset_refusal(dataset)]
    if source.split is None:
        return [Refusal("split", "a Hub dataset needs it", "for example split: train")]
    return []


def _file_refusals(source: Dataset) -> list[Refusal]:
    refusals = [
        Refusal(name, "has no effect with a local file", "remove it")
        for name in ("subset", "split")
        if getattr(source, name) is not None
    ]
    if source.dataset.lower().endswith(".txt") and source.text_field != "text":
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


class ScoredText(Dataset):
    """The text that a model is scored on."""

    KNOWN: ClassVar[tuple[str, ...]] = (AUTO, WIKITEXT, "c4", BUNDLED)

    dataset: Text = AUTO
    """auto (wikitext2, or the bundled text where it cannot be had), wikitext2, c4, bundled, a .txt, .jsonl or .parquet
    file, or namespace/name@COMMIT of the Hub."""
    chat_template: bool = False
    """Rows are conversations, written out by the model's chat template."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        if self.chat_template and (self.dataset in self.KNOWN or self.dataset.lower().endswith(".txt")):
            problem = f"{Path(self.dataset).name} holds running text, conversations are needed"
            hint = "leave it out, or take a .jsonl file with a messages list per line"
            yield Refusal("chat_template", problem, hint)


class Calibration(Dataset):
    """``num_samples`` windows of ``seq_len`` tokens of a dataset, drawn with ``seed``.

    With ``image_field`` as many rows of it, each a prompt of a picture and a text.
    """

    num_samples: Count = 128
    seq_len: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 256
    """Tokens per window; of prompts with a picture the most, and longer ones are left out."""
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    chat_template: bool = False
    """Rows are conversations, written out by the model's chat template."""
    image_field: Text | None = None
    """Column or key that holds the picture, or its path from the file's folder, which a vision-language model is shown
    before the text. Default: text alone"""

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        if self.image_field is None:
            return
        if self.dataset.lower().endswith(".txt"):
            yield Refusal("image_field", "a .txt file has no pictures", "give a .jsonl file")
        if self.chat_template:
            yield Refusal("chat_template", "has no effect with pictures, which go through it anyway", "remove it")
        if self.image_field == self.text_field:
            yield Refusal("image_field", "is the field of the text too", "name another one")


def text_only_refusals(text: Calibration) -> Iterator[Refusal]:
    """Yield a field for pictures where no picture is shown."""
    if text.image_field is not None:
        yield Refusal("image_field", "has no effect: this reads text alone", "remove it")
