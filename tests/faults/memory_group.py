"""Commands in a memory control group with a limit, which they may see or not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from interception import Ended, to_its_end

TOP = Path("/sys/fs/cgroup")
JOIN = 'echo $$ > "$0" && exec "$@"'
SEE = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""In a name space of its own, another file is read where the limit stands."""


class Names(NamedTuple):
    """Where a version of control groups has what."""

    directory: Path
    limit: str
    peak: str
    swap: str


VERSIONS = (
    Names(TOP / "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.memsw.limit_in_bytes"),
    Names(TOP, "memory.max", "memory.peak", "memory.swap.max"),
)


class Group(NamedTuple):
    """A control group that is there."""

    directory: Path
    names: Names

    def peak_bytes(self) -> int:
        """The most that its processes had at once, with the file pages that they were the first to read."""
        return int((self.directory / self.names.peak).read_text())

    def run(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, seen: Path | None = None) -> Ended:
        """Run a command in the group.

        Args:
            command: What to run.
            environment: All that it sees of it.
            cwd: Where it runs.
            seen: A file that it reads in place of the one with the limit.
        """
        if seen is not None:
            limit = str(self.directory / self.names.limit)
            command = ["unshare", "--mount", "sh", "-c", SEE, str(seen), limit, *command]
        return to_its_end(["sh", "-c", JOIN, str(self.directory / "cgroup.procs"), *command], environment, cwd)


@contextmanager
def limited(limit_bytes: int | None) -> Iterator[Group]:
    """A control group with a limit, or none, without swap; gone afterwards.

    Raises:
        OSError: There is none that may be written.
    """
    names = VERSIONS[0] if VERSIONS[0].directory.is_dir() else VERSIONS[1]
    group = Group(names.directory / f"llmcompress-faults-{os.getpid()}", names)
    group.directory.mkdir()
    try:
        if limit_bytes is not None:
            (group.directory / names.limit).write_text(str(limit_bytes))
            with suppress(OSError):
                swap = "0" if names.swap.endswith("swap.max") else str(limit_bytes)
                (group.directory / names.swap).write_text(swap)
        yield group
    finally:
        _removed(group.directory.rmdir)


def _removed(remove: Callable[[], None]) -> None:
    for _ in range(100):
        with suppress(OSError):
            return remove()
        # Its last process is still going.
        time.sleep(0.1)
    remove()


def why_not() -> str:
    """Why no command can be limited here; empty if one can."""
    try:
        with limited(2**30) as group:
            (group.directory / group.names.peak).read_text()
    except OSError as error:
        return f"no memory control group may be written: {error}"
    return ""
