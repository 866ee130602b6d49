"""A JSON object of a model's directory: read with bounds, written the same for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcompress.errors import ModelError

MAX_BYTES = 64_000_000


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Raises:
        ModelError: missing, unreadable, larger than 64 MB, or not one JSON object.
    """
    hint = "download the file again"
    if not path.is_file():
        raise ModelError("the file is missing", where=str(path), hint=hint)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    if len(content) > MAX_BYTES:
        raise ModelError(f"it has more than {MAX_BYTES} bytes", where=str(path), hint=hint)
    if content.startswith(b"version https://git-lfs"):
        raise ModelError("this is a Git LFS pointer, not the file itself", where=str(path), hint="run `git lfs pull`")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ModelError("it is nested too deeply", where=str(path), hint=hint) from error
    except ValueError as error:
        raise ModelError(f"it is not JSON: {error}", where=str(path), hint=hint) from error
    if not isinstance(value, dict):
        raise ModelError(f"it holds a {type(value).__name__}; an object is needed", where=str(path), hint=hint)
    return value


def noted(path: Path) -> dict[str, Any]:
    """Read a JSON object that later runs can do without; empty where the file is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object with sorted keys, UTF-8 and Unix line ends on every system."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
