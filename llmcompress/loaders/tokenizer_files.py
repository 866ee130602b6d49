"""The tokenizer's own files: what is needed to read them, and how they come into the output as they were published."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcompress.errors import ModelError, ResourceError
from llmcompress.loaders.source import Source, text_files
from llmcompress.system.environment import installed_versions
from llmcompress.system.json_file import read_json, write_json

TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"

# Without any of these transformers makes up an empty tokenizer for the model type instead of failing.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_READ_BY_A_LIBRARY = ("*.model", "*.tiktoken")
_PUBLISHED = (
    *VOCABULARIES,
    "tokenizer*.json",
    _SPECIAL_TOKENS,
    "added_tokens.json",
    "*vocab*.json",
    "*vocab*.txt",
    "merges.txt",
    "*.bpe",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
_TIKTOKEN_CACHE = "TIKTOKEN_CACHE_DIR"
_READ_BY_GENAI = ("bos_token", "eos_token", "pad_token")
_TOKEN_KEYS = ("content", "lstrip", "normalized", "rstrip", "single_word")
# Where the tokenizer was loaded from; the same tokenizer must give the same bytes from any folder or cache.
_ORIGIN_KEYS = ("is_local", "local_files_only", "name_or_path", "_commit_hash", "cache_dir")


def require_readers(directory: Path, *, has_code: bool) -> None:
    """Refuse a vocabulary that a library reads which is not installed, or that none reads.

    transformers takes what sentencepiece cannot read, or is not there to read, for a tiktoken file, and fails on that.

    Args:
        directory: The tokenizer's.
        has_code: The tokenizer may be read by code of its own, which knows other formats.

    Raises:
        ResourceError: sentencepiece, protobuf or tiktoken is needed and not installed.
        ModelError: The file is neither a SentencePiece model nor a tiktoken vocabulary.
    """
    others = (name for name in VOCABULARIES if name not in _READ_BY_A_LIBRARY)
    if any((directory / name).is_file() for name in others):
        return
    for path in sorted(path for pattern in _READ_BY_A_LIBRARY for path in directory.glob(pattern)):
        kind, packages = _format(path)
        if kind is None and not has_code:
            raise ModelError(
                "it is neither a SentencePiece model nor a tiktoken vocabulary",
                where=f"{directory.name}: {path.name}",
                hint="download the file again",
            )
        missing = [package for package in packages if package not in installed_versions(packages)]
        if missing:
            raise ResourceError(
                f"it is a {kind}; to read it, {' and '.join(missing)} must be installed",
                where=f"{directory.name}: {path.name}",
                hint=f"pip install {' '.join(missing)}",
            )


@contextlib.contextmanager
def without_tiktoken_cache() -> Iterator[None]:
    """Keep tiktoken from its cache, which goes by paths: a file that changed would be read as it was before."""
    before = os.environ.get(_TIKTOKEN_CACHE)
    os.environ[_TIKTOKEN_CACHE] = ""
    try:
        yield
    finally:
        os.environ.pop(_TIKTOKEN_CACHE, None)
        if before is not None:
            os.environ[_TIKTOKEN_CACHE] = before


def write_own_files(tokenizer: Any, output_dir: Path, source: Source | None) -> None:
    """Write the files that transformers opens: the published ones byte for byte, and what is missing of them.

    transformers 5 writes classes and keys that transformers 4 does not know, so nothing published is written again. A
    tokenizer with code of its own is saved by transformers first, as only that code knows its files.
    """
    published = published_files(source, tokenizer) if source is not None else ()
    if not published or tokenizer._auto_class is not None:
        _save(tokenizer, output_dir)
    elif TOKENIZER_CONFIG not in published:
        with tempfile.TemporaryDirectory(dir=output_dir) as folder:
            _save(tokenizer, Path(folder))
            shutil.copyfile(Path(folder) / TOKENIZER_CONFIG, output_dir / TOKENIZER_CONFIG)
    if source is not None:
        for name in published:
            (output_dir / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.text_path / name, output_dir / name)
    _tell_genai_special_tokens(output_dir)


def published_files(source: Source, tokenizer: Any) -> tuple[str, ...]:
    """Names of the files of a source that its tokenizer is read from."""
    patterns = (*_PUBLISHED, *tokenizer.vocab_files_names.values())
    return tuple(name for name in text_files(source) if any(fnmatch.fnmatchcase(name, each) for each in patterns))


def _format(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """What a vocabulary is, None: unknown; and the packages that read it."""
    with path.open("rb") as file:
        start = file.read(512)
    # A protobuf message whose first field holds the pieces.
    if start.startswith(b"\x0a"):
        return "SentencePiece model", ("sentencepiece", "protobuf")
    token, _, rank = start.partition(b"\n")[0].partition(b" ")
    try:
        if base64.b64decode(token, validate=True) and rank.strip().isdigit():
            return "tiktoken vocabulary", ("tiktoken",)
    except binascii.Error:
        pass
    return None, ()


def _tell_genai_special_tokens(directory: Path) -> None:
    """Put special tokens that the configuration holds as objects where OpenVINO GenAI expects objects.

    It fails on one in ``tokenizer_config.json``, unless ``special_tokens_map.json`` has told it that token before.
    """
    config, path = read_json(directory / TOKENIZER_CONFIG), directory / _SPECIAL_TOKENS
    known = read_json(path) if path.is_file() else {}
    objects = {name: config[name] for name in _READ_BY_GENAI if isinstance(config.get(name), dict)}
    untold = {name: token for name, token in objects.items() if not isinstance(known.get(name), dict)}
    if untold:
        told = {name: {key: token[key] for key in _TOKEN_KEYS if key in token} for name, token in untold.items()}
        write_json(path, {**known, **told})


def _save(tokenizer: Any, directory: Path) -> None:
    """Save it by transformers 5, in words that transformers 4 knows too, and without where it was loaded from."""
    tokenizer.save_pretrained(directory)
    config = json.loads((directory / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in (*_ORIGIN_KEYS, "backend")}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    write_json(directory / TOKENIZER_CONFIG, kept)
