"""Where intermediate results are kept, to be used again by later runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$LLMCOMPRESS_CACHE``, else ``$XDG_CACHE_HOME/llmcompress``, else ``~/.cache/llmcompress``."""
    own = os.environ.get("LLMCOMPRESS_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmcompress"
