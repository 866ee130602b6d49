"""Tokenizers that were converted and compared once: their files, and how their chat template compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from llmcompress.artifact.manifest import NOT_LISTED
from llmcompress.compression.replay.key import surroundings
from llmcompress.compression.replay.skeleton import put_folder
from llmcompress.loaders.source import Source, side_files, text_files
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML, RECIPE
from llmcompress.report.record import Record
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import installed_versions
from llmcompress.system.json_file import read_json

KIND = "tokenizers"
"""The cache's folder for them."""

_VERDICT = "verdict.json"
_NOT_OF_TEXTS = NOT_LISTED | {MODEL_XML, MODEL_BIN, RECIPE, "config.json"}


class TextsVerdict(Record):
    """What the run found that wrote the files."""

    key: str
    tokenizer: Literal["equal", "none"]
    chat_template: Literal["equal", "none", "not checked"]
    sha256: dict[str, str]
    """Of the files."""


class KeptTexts(NamedTuple):
    """What an artifact's tokenizer is."""

    verdict: TextsVerdict
    files: Mapping[str, bytes]
    """By their names below the artifact."""


def texts_key(source: Source, *, tokenizer: bool) -> str:
    """What a tokenizer's conversion is known by: its files, the configurations, and what reads and compares them."""
    hashes = {name: hashlib.sha256((source.path / name).read_bytes()).hexdigest() for name in side_files(source)}
    config = {name: value for name, value in read_json(source.path / "config.json").items() if name != "_name_or_path"}
    hashes["config.json"] = content_key(config)
    readers = installed_versions(("openvino-genai", "jinja2", "sentencepiece", "protobuf", "tiktoken"))
    return content_key({"files": hashes, "tokenizer": tokenizer, "readers": readers, **surroundings()})


def read_texts_of(source: Source, *, tokenizer: bool) -> KeptTexts | None:
    """Find what was kept of a source's tokenizer; None: nothing, or it is damaged or another's."""
    if source.text_path != source.path or text_files(source) != side_files(source):
        return None
    key = texts_key(source, tokenizer=tokenizer)
    folder = cache_dir() / KIND / key
    if not folder.is_dir():
        return None
    hold(folder)
    try:
        verdict = TextsVerdict.model_validate_json((folder / _VERDICT).read_bytes())
        files = {name: (folder / "files" / name).read_bytes() for name in verdict.sha256}
    except (OSError, ValidationError):
        return None
    if verdict.key != key or _hashes(files) != verdict.sha256:
        return None
    return KeptTexts(verdict, files)


def texts_in(directory: Path, verdict: TextsVerdict) -> KeptTexts:
    """Read what a run wrote of a tokenizer.

    Args:
        directory: An artifact, or what will be a part of one.
        verdict: Of that run; the hashes are added.
    """
    names = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
    files = {name: (directory / name).read_bytes() for name in names if name not in _NOT_OF_TEXTS}
    return KeptTexts(verdict.model_copy(update={"sha256": _hashes(files)}), files)


def keep_texts(texts: KeptTexts) -> None:
    """Keep the tokenizer of a run.

    Raises:
        OSError: The cache cannot be written.
    """
    named = {f"files/{name}": content for name, content in texts.files.items()}
    whole = {**named, _VERDICT: texts.verdict.model_dump_json().encode()}
    put_folder(cache_dir() / KIND / texts.verdict.key, whole)


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
