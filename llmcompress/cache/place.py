"""Where intermediate results are kept, to be used again by later runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """``$LLMCOMPRESS_CACHE``, else ``$XDG_CACHE_HOME/llmcompress``, else ``~/.cache/llmcompress``."""
    own = os.environ.get("LLMCOMPRESS_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmcompress"


def content_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, the same for the same values whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
