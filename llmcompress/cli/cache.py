"""`llmcompress cache`: what is kept, how large it is and how long unused, and its removal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from filelock import Timeout

from llmcompress.cli.console import plain, print_blocks, print_json, print_text, table, write_line
from llmcompress.cli.options import Json
from llmcompress.compression.replay.skeleton import Keeping, read_keeping
from llmcompress.errors import UsageError
from llmcompress.report.record import Record
from llmcompress.report.text import duration_text, size_text
from llmcompress.system.background import working_on
from llmcompress.system.cache import cache_dir, lock_of

cache = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich")

KINDS = {
    "reference-ir": "uncompressed models that are measured",
    "statistics": "activation statistics of NNCF",
    "candidates": "weights that searches made by GPTQ",
    "speeds": "how long single products take on this machine",
    "reference-scores": "likeliest tokens of originals",
    "reference-logits": "logits of originals in interrupted evaluations",
    "evaluations": "scores of interrupted evaluations",
    "durations": "how long steps took",
    "graphs": "graphs of architectures, for other checkpoints",
    "tokenizers": "converted tokenizers",
    "kernels": "machine code of our kernels",
    "layers": "versions of transformers that some architectures need",
    "gguf": "configurations and tokenizers of GGUF files",
    "matplotlib": "fonts of the page's charts",
}
RECENT_S = 60.0
"""An entry used this recently counts as in use: between two workers of one run nobody holds it."""

_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@cache.command("list")
def list_cache(as_json: Json = False) -> None:
    """Show what is kept, by kind; with --json every entry by itself.

    [bold]Examples[/bold]
    llmcompress cache list
    llmcompress cache list --json
    """
    entries = cache_entries()
    if as_json:
        print_json([plain(entry) for entry in entries])
        return
    numbers = ["entries", "size", "last used"]
    found = table(["kind", "what"], numbers, one_line=["kind", *numbers])
    for kind, what in KINDS.items():
        of_kind = [entry for entry in entries if entry.kind == kind]
        size = size_text(sum(entry.size_bytes for entry in of_kind))
        last = duration_text(min(entry.unused_s for entry in of_kind)) + " ago" if of_kind else ""
        found.add_row(kind, what, str(len(of_kind)), size if of_kind else "", last)
    print_blocks(found)
    total = sum(entry.size_bytes for entry in entries)
    print_text(f"{size_text(total)} in {cache_dir()}")
    keepings = [entry.keeping for entry in entries if entry.keeping is not None]
    if keepings:
        apart = statistics.median(keeping.processor_s for keeping in keepings)
        print_text(f"keeping a graph took {duration_text(apart)} of a processor, apart from its run")
    if (work := working_on()) is not None:
        print_text(f"process {work.pid} {work.what}, for {duration_text(time.time() - work.started)}")


@cache.command("dir")
def show_directory() -> None:
    """Print where it lies; LLMCOMPRESS_CACHE moves it.

    [bold]Examples[/bold]
    du -sh "$(llmcompress cache dir)"
    """
    write_line(str(cache_dir()))


@cache.command("prune")
def prune(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Unused for so long: 12h, 30d, 4w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="Until what is left takes so much: 20GB.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that no run is using.")] = False,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove entries, the longest unused first; never what a run is using.

    [bold]Examples[/bold]
    llmcompress cache prune --older-than 30d
    llmcompress cache prune --max-size 20GB
    llmcompress cache prune --all --kind reference-ir
    """
    from llmcompress.spec.validation import did_you_mean

    limits = [older_than, max_size, everything or None]
    if not any(limit is not None for limit in limits):
        raise UsageError("nothing says what is to go", hint="give --older-than AGE, --max-size SIZE or --all")
    if everything and (older_than is not None or max_size is not None):
        raise UsageError("--all and a limit contradict each other", hint="leave one of them out")
    for kind in kinds or ():
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or "see: llmcompress cache list"
            raise UsageError(f"got {kind!r}; accepted: {', '.join(KINDS)}", where="--kind", hint=hint)
    report = prune_cache(
        older_than_s=None if older_than is None else _number(older_than, _AGES, "--older-than", "12h, 30d"),
        max_bytes=None if max_size is None else round(_number(max_size, _SIZES, "--max-size", "500MB, 20GB")),
        kinds=tuple(kinds or ()),
        dry_run=dry_run,
    )
    if as_json:
        print_json(report)
        return
    in_use = f"; {report.num_in_use} that a run is using or has just used were left" if report.num_in_use else ""
    removed = "would be removed" if dry_run else "removed"
    print_text(
        f"{report.num_removed} {removed}, {size_text(report.removed_bytes)}{in_use}; "
        f"{size_text(report.kept_bytes)} kept in {report.directory}"
    )


def _number(text: str, units: dict[str, int], where: str, examples: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text.strip())
    by_lower_case = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in by_lower_case:
        accepted = ", ".join(unit for unit in units if unit)
        raise UsageError(f"got {text!r}; a number with one of {accepted} is accepted: {examples}", where=where)
    return float(match[1]) * by_lower_case[match[2].lower()]


class CacheEntry(Record):
    """One intermediate result."""

    kind: str
    key: str
    size_bytes: int
    last_used: str
    """UTC time, ISO 8601."""
    unused_s: float
    keeping: Keeping | None = None
    """Of a graph: what it took."""


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
    dry_run: bool = False,
    removing: Callable[[CacheEntry], None] = lambda entry: None,
) -> PruneReport:
    """Remove entries, the longest unused first; never what a run is using.

    Args:
        older_than_s: Those unused for longer than this many seconds. With neither limit: all.
        max_bytes: So many that what is left takes at most this.
        kinds: Only these; none: all kinds.
        dry_run: Remove nothing, and count what would go; what a run holds shows only when it is to be removed.
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
        if entry.unused_s < RECENT_S or not (dry_run or _remove(entry, removing)):
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
        kept_bytes=sum(entry.size_bytes for entry in cache_entries()) - (freed if dry_run else 0),
    )


def _remove(entry: CacheEntry, removing: Callable[[CacheEntry], None]) -> bool:
    """Remove an entry unless somebody holds it."""
    path = cache_dir() / entry.kind / entry.key
    try:
        lock = lock_of(path)
        with lock.write_lock(blocking=False):
            removing(entry)
            if path.is_dir() and not path.is_symlink():
                # Under another name first: a concurrent reader finds all of it or nothing.
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
        keeping=read_keeping(path) if kind == "graphs" else None,
    )
