"""Commands in a pseudo-terminal, and what a person sees there at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

LLMCOMPRESS = (sys.executable, "-m", "llmcompress")
ROWS = 50


@dataclass(frozen=True)
class Shown:
    """What a command left on a terminal, and how it ended."""

    lines: list[str]
    exit_code: int
    columns: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def too_long(self) -> list[str]:
        """Lines that the terminal had to break, wherever that was."""
        return [line for line in self.lines if len(line) > self.columns]


def in_terminal(
    command: Sequence[str | Path],
    columns: int,
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Shown:
    """Run a command in a pseudo-terminal without colours and type ``stdin`` there."""
    pty = pytest.importorskip("pty", reason="needs a POSIX pseudo-terminal")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "COLUMNS", "LINES"}}
    child = subprocess.Popen(
        [str(part) for part in command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env={**kept, "NO_COLOR": "1", "TERM": "xterm", **(environment or {})},
    )
    os.close(theirs)
    os.write(ours, stdin)
    received = received_from(ours)
    return Shown(on_screen(received, columns), child.wait(), columns)


def received_from(terminal: int) -> str:
    """Read our end of a pseudo-terminal until the other end is closed, and close it."""
    received = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            break
        if not block:
            break
        received += block
    os.close(terminal)
    return received.decode()


def on_screen(received: str, columns: int) -> list[str]:
    """The lines that stand on a terminal after all of this, bars that were drawn again and again once.

    A line that is wider than the terminal takes several rows there, which are put together again.
    """
    rows: list[list[str]] = [[]]
    goes_on: set[int] = set()
    row = column = 0
    for control, character in _parts(received):
        if control in ("\r", "\x1b[1G"):
            column = 0
        elif control == "\n":
            row += 1
        elif control == "\x1b[2K":
            rows[row] = []
        elif control.endswith("A"):
            row = max(row - int(control[2:-1] or 1), 0)
        elif character:
            if column == columns:
                goes_on.add(row)
                row, column = row + 1, 0
            while len(rows) <= row:
                rows.append([])
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = character
            column += 1
        else:
            assert re.fullmatch(r"\x1b\[(\?25[hl]|[0-9;]*m)", control), f"not known: {control!r}"
        while len(rows) <= row:
            rows.append([])
    lines: list[str] = []
    for number, characters in enumerate(rows):
        text = "".join(characters)
        if number - 1 in goes_on:
            lines[-1] += text
        else:
            lines.append(text)
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


def _parts(received: str) -> Iterator[tuple[str, str]]:
    """What moves or erases, or one character."""
    for found in re.finditer(r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])|(.)", received):
        yield found[1] or "", found[2] or ""


def without_escapes(text: str) -> str:
    """The text without colours and movements of the cursor, its lines ended as in a file."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
