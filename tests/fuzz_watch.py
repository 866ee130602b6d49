"""What a call did outside its output: seen by the interpreter's audit events, and by the files that are there after."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHANGES = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "shutil.rmtree", "shutil.copyfile", "shutil.move",
}  # fmt: skip
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Watch:
    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.seen: list[str] = []
        self.is_installed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in _STARTS:
            self.seen.append(f"{event} {arguments[:2]}")
        elif event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            # A descriptor has no path: the file behind it was opened before, or is a pipe.
            named = [os.fsdecode(path) for path in arguments[:1] if isinstance(path, str | bytes)]
            outside = [path for path in named if not os.path.abspath(path).startswith(self.allowed)]  # noqa: PTH100
            self.seen += [f"{event} {path}" for path in outside]


_watch = _Watch()


@contextlib.contextmanager
def watched(*allowed: Path) -> Iterator[list[str]]:
    """Yield a list that holds, after the block, what it wrote or started outside of ``allowed``."""
    if not _watch.is_installed:
        sys.addaudithook(_watch)
        _watch.is_installed = True
    _watch.seen = []
    _watch.allowed = ("/dev/null", *map(str, allowed))
    try:
        yield _watch.seen
    finally:
        _watch.allowed = None


def files_below(folder: Path, *, apart: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file and folder below ``folder``, apart from what lies below ``apart``."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if Path(parent) == apart.parent and apart.name in folders:
            folders.remove(apart.name)
        for name in (*folders, *files):
            status = (Path(parent) / name).lstat()
            found[str(Path(parent) / name)] = (status.st_size, 0 if name in folders else status.st_mtime_ns)
    return found
