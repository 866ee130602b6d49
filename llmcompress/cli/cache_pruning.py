"""What the cache keeps, how large it is and how long unused, and its removal."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from filelock import Timeout

from llmcompress.report.record import Record
from llmcompress.system.cache import cache_dir, lock_of

KINDS = {
    "reference-ir": "uncompressed models that are measured",
    "statistics": "activation statistics of NNCF",
    "reference-scores": "likeliest tokens of originals",
    "evaluations": "scores of interrupted evaluations",
    "durations": "how long steps took",
}
RECENT_S = 60.0
"""What was used so lately counts as in use: between two workers of one run nobody holds it."""


class CacheEntry(Record):
    """One intermediate result."""

    kind: str
    key: str
    size_bytes: int
    last_used: str
    """UTC time, ISO 8601."""
    unused_s: float


class PruneReport(Record):
    """What was removed."""

    directory: str
    num_removed: int
    removed_bytes: int
    num_in_use: int
    """Entries that were to go, but that a run is using."""
    kept_bytes: int


def cache_entries() -> tuple[CacheEntry, ...]:
    """Return every entry of every kind, the longest unused first."""
    now = time.time()
    entries = []
    for kind in KINDS:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in (cache_dir() / kind).iterdir():
                entries.append(_entry(kind, path, now))
    return tuple(sorted(entries, key=lambda entry: -entry.unused_s))


def prune_cache(
    *,
    older_than_s: float | None = None,
    max_bytes: int | None = None,
    kinds: tuple[str, ...] = (),
    removing: Callable[[CacheEntry], None] = lambda entry: None,
) -> PruneReport:
    """Remove entries, the longest unused first; never what a run is using.

    Args:
        older_than_s: Those unused for longer than this many seconds. With neither limit: all.
        max_bytes: So many that what is left takes at most this.
        kinds: Only these; none: all kinds.
        removing: Told of each entry before it is removed.
    """
    entries = [entry for entry in cache_entries() if not kinds or entry.kind in kinds]
    left = sum(entry.size_bytes for entry in entries)
    removed, in_use, freed = 0, 0, 0
    everything = older_than_s is None and max_bytes is None
    for entry in entries:
        old = older_than_s is not None and entry.unused_s > older_than_s
        too_much = max_bytes is not None and left > max_bytes
        if not (everything or old or too_much):
            continue
        if entry.unused_s < RECENT_S or not _remove(entry, removing):
            in_use += 1
            continue
        removed += 1
        freed += entry.size_bytes
        left -= entry.size_bytes
    return PruneReport(
        directory=str(cache_dir()),
        num_removed=removed,
        removed_bytes=freed,
        num_in_use=in_use,
        kept_bytes=sum(entry.size_bytes for entry in cache_entries()),
    )


def _remove(entry: CacheEntry, removing: Callable[[CacheEntry], None]) -> bool:
    """Remove an entry unless somebody holds it."""
    path = cache_dir() / entry.kind / entry.key
    try:
        lock = lock_of(path)
        with lock.write_lock(blocking=False):
            removing(entry)
            if path.is_dir() and not path.is_symlink():
                # Under another name first: who comes meanwhile finds all of it or nothing.
                going = path.with_name(f".{path.name}.{os.getpid()}.removed")
                path.rename(going)
                shutil.rmtree(going)
            else:
                path.unlink()
    except (Timeout, OSError, sqlite3.Error, RuntimeError):
        # RuntimeError: this process holds it itself.
        return False
    return True


def _entry(kind: str, path: Path, now: float) -> CacheEntry:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    size, used = 0, 0.0
    for file in files:
        # A run may remove its own scores meanwhile.
        with contextlib.suppress(FileNotFoundError):
            status = file.stat(follow_symlinks=False)
            used = max(used, status.st_mtime)
            size += status.st_size if file.is_file() else 0
    return CacheEntry(
        kind=kind,
        key=path.name,
        size_bytes=size,
        last_used=datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds"),
        unused_s=max(0.0, now - used),
    )
