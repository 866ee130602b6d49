"""Plans over tiny checkpoints, run in this process instead of workers, with a record of every call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcompress.system.progress import Reporter, silent

Calls = list[tuple[str, dict[str, Any]]]


def in_process(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Call what would run in a worker right here; returns the list that every call is added to."""
    calls: Calls = []

    def run(
        function: Callable[..., object],
        kwargs: Mapping[str, Any],
        *,
        progress: Reporter = silent,
        logs: Callable[[str], None] | None = None,
        waiting: str = "none",
    ) -> object:
        calls.append((function.__name__, dict(kwargs)))
        return function(**kwargs, progress=progress)

    for module in ("run", "compressing", "measuring", "tuning"):
        monkeypatch.setattr(f"llmcompress.runner.{module}.run_supervised", run)
    return calls


def write_plan(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def artifact_bytes(output: Path) -> dict[str, object]:
    """Every model file of every artifact by its hash, and its manifest without what was measured."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        if not path.is_file() or path.name in ("eval.json", "bench.json") or path.name.startswith("."):
            continue
        name = path.relative_to(output).as_posix()
        if path.name == "llmcompress.json":
            manifest = json.loads(path.read_bytes())
            del manifest["measured"]
            found[name] = manifest
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def identities(output: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: equal for a file that nobody wrote again."""
    return {
        path.relative_to(output).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in output.rglob("*")
        if path.is_file()
    }
