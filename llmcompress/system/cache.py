"""Where intermediate results are kept, to be used again by later runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import ReadWriteLock, Timeout
from platformdirs import user_cache_path


def cache_dir() -> Path:
    """``$LLMCOMPRESS_CACHE``, else ``$XDG_CACHE_HOME/llmcompress``, else where this system keeps a user's caches.

    ``~/.cache/llmcompress`` on Linux, ``~/Library/Caches/llmcompress`` on macOS, ``%LOCALAPPDATA%\\llmcompress\\Cache``
    on Windows. Without a known home directory it is a path that can be neither read nor written.
    """
    own, shared = os.environ.get("LLMCOMPRESS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        if shared:
            return Path(shared, "llmcompress").expanduser()
        return user_cache_path("llmcompress", appauthor=False).expanduser()
    except RuntimeError:  # The user has neither $HOME nor an entry among the system's users.
        return Path(os.devnull, "no home directory", "llmcompress")


def content_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, the same for the same values whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


LOCKS = "locks"
_WAIT_S = 60.0
"""For a pruning that is removing the entry just now."""

_held: list[ReadWriteLock] = []
"""A lock that nothing refers to is released."""


def hold(entry: Path) -> None:
    """Keep an entry from being pruned while this process lives, and note that it is used; it need not exist yet.

    Readers share the lock. Where the cache takes no locks (read-only, some network file systems) nothing is held, and
    only its recent use keeps an entry from being pruned.
    """
    with contextlib.suppress(OSError, sqlite3.Error, Timeout):
        lock = lock_of(entry)
        lock.acquire_read(timeout=_WAIT_S)
        _held.append(lock)
    with contextlib.suppress(OSError):
        os.utime(entry)


def hold_if_kept(path: Path) -> None:
    """Hold the entry that a path lies in, if it lies in the cache."""
    with contextlib.suppress(ValueError, OSError):
        parts = path.resolve().relative_to(cache_dir().resolve()).parts
        if len(parts) >= 2:
            hold(cache_dir() / parts[0] / parts[1])


def lock_of(entry: Path) -> ReadWriteLock:
    """The lock of an entry, ``CACHE/KIND/KEY``: shared by those who use it, exclusive for who removes it.

    Entries whose keys begin alike have one lock, so that there are never many such files, which cannot be removed.
    """
    directory = entry.parent.parent / LOCKS
    directory.mkdir(parents=True, exist_ok=True)
    return ReadWriteLock(directory / f"{entry.parent.name}-{entry.name[:2]}.lock")
