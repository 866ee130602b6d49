"""A model that was found: where it is, what it is, and the files that it has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.loaders.adapter import Adapter
from llmcompress.loaders.exporter import VISION_TASK, task_of
from llmcompress.loaders.layout import TEMPLATES, TOKENIZERS, VISION_XML, Layout, is_side_file, names_in
from llmcompress.loaders.quantized.gguf.source import is_gguf
from llmcompress.loaders.tensors import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing


class Source(NamedTuple):
    """A model that was found and whose ``config.json`` was read."""

    kind: Literal["hub", "checkpoint", "ir"]
    layout: Layout
    """What the directory holds; for a Hub source either is possible."""
    path: Path
    """The directory with ``config.json``; a Hub source's weights are in it only after ``fetch_weights``."""
    config: dict[str, Any]
    id: str | None = None
    """Hub id."""
    revision: str | None = None
    """The commit that a Hub source was resolved to."""
    trust_remote_code: bool = False
    files: HubListing | None = None
    """What the Hub lists at that commit."""
    expected_sha256: Mapping[str, str] = {}
    """Hashes that the Hub states, by file name; known after ``fetch_weights``."""
    max_context: int | None = None
    """As in ``Access``."""
    adapter: Adapter | None = None
    """What is merged into the model when it is loaded."""
    container: Checkpoint | None = None
    """The headers of GGUF or ONNX files that hold the model; of GGUF ``path`` is a directory made of their metadata."""
    folder: str = ""
    """Of a Hub source: the folder of its repository that ``path`` is; empty: all of it."""
    text_only: bool = False
    """It is the language model of the vision-language checkpoint there; ``config`` is its own."""

    @property
    def name(self) -> str:
        """For people: the Hub id, or the directory's name."""
        return self.id or self.path.name

    @property
    def sees(self) -> bool:
        """Whether it is a vision-language model."""
        if self.layout == "checkpoint":
            return task_of(self.config) == VISION_TASK
        return VISION_XML in file_names(self)

    @property
    def runs_code(self) -> bool:
        """Whether the model's class is code of its repository, which may run."""
        return self.trust_remote_code and bool(self.config.get("auto_map"))

    @property
    def is_gguf(self) -> bool:
        """Whether GGUF files hold the model."""
        return self.container is not None and is_gguf(self.container.files[0])

    @property
    def text_path(self) -> Path:
        """The directory with the tokenizer and its chat template: the adapter's where it brings them."""
        own = self.adapter.path if self.adapter else self.path
        return own if any((own / name).is_file() for name in TOKENIZERS) else self.path


def file_names(source: Source) -> list[str]:
    """Names of a directory's files, or of those that the Hub lists."""
    if source.files is None:
        return names_in(source.path)
    return [name for file in source.files.files if (name := _below(file.path, source.folder)) is not None]


def _below(name: str, folder: str) -> str | None:
    """A file's name within a folder; None: it is not in it."""
    if not folder:
        return name
    return name.removeprefix(f"{folder}/") if name.startswith(f"{folder}/") else None


def identity(source: Source) -> list[object]:
    """What tells a source from others without reading its weights: a Hub source's commit, a directory's files.

    Of the files of a directory: names, sizes and times of change.
    """
    adapter = source.adapter
    if source.container is not None:
        held = source.container
        stats = [(held.path / name).stat() for name in held.files if source.id is None]
        files = [*held.files, *([stat.st_size, stat.st_mtime_ns] for stat in stats)]
        others = [] if source.is_gguf else _identity(source.id, source.revision, source.path)
        return [source.id, source.revision, str(held.path) if source.id is None else None, files, *others]
    merged = [] if adapter is None else _identity(adapter.id, adapter.revision, adapter.path)
    alone = ["text_only"] if source.text_only else []
    return [*_identity(source.id, source.revision, source.path), *merged, *alone]


def _identity(hub_id: str | None, revision: str | None, directory: Path) -> list[object]:
    if hub_id is not None:
        return [hub_id, revision]
    stats = sorted((path.name, path.stat()) for path in directory.iterdir() if path.is_file())
    known = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return [hub_id, revision, str(directory), known]


def text_files(source: Source) -> tuple[str, ...]:
    """As ``side_files``, of the directory with the tokenizer."""
    return side_files(source._replace(path=source.text_path))


def side_files(source: Source) -> tuple[str, ...]:
    """Paths of the configuration and tokenizer files next to the weights, sorted."""
    templates = [path.relative_to(source.path).as_posix() for path in source.path.glob(TEMPLATES) if path.is_file()]
    names = (*names_in(source.path), *templates)
    return tuple(sorted(name for name in names if is_side_file(name, with_code=source.trust_remote_code)))


def save_code(source: Source, output_dir: Path) -> None:
    """Copy the Python files of a source whose code may run, with which Optimum's class opens the output."""
    for name in side_files(source):
        if name.endswith(".py") and "/" not in name:
            shutil.copyfile(source.path / name, output_dir / name)


def source_checkpoint(source: Source) -> Checkpoint:
    """The headers of a source's weights, which are here: as ``read_checkpoint``, or those of its GGUF or ONNX files."""
    return read_checkpoint(source.path) if source.container is None else source.container
