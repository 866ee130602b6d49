"""What became of each fault that was tried, kept as it is tried, so that a later call goes on."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

KINDS_OF_FAILURE = ("lost", "leaked", "executed", "wrong")


class Point(NamedTuple):
    """One fault at one place of one command."""

    command: str
    fault: str
    at: int
    where: str
    returncode: int
    lost: list[str]
    """What of the person's is gone, changed or half-written, or cannot be made again."""
    leaked: list[str]
    """A secret, or something that was left behind."""
    wrong: list[str]
    """An exit code or words that do not say what happened, or success that is none."""
    executed: tuple[str, ...] = ()
    """What an input had carried out: a process, a connection, a file written elsewhere."""

    @property
    def survived(self) -> bool:
        return not (self.lost or self.leaked or self.executed or self.wrong)


class Points:
    """The points of this call and, of a file, those of earlier ones; of a point that was tried again the last."""

    def __init__(self, state: Path | None) -> None:
        self.state = state
        lines = state.read_text(encoding="utf-8").splitlines() if state is not None and state.exists() else []
        self._by_key = {each[:3]: each for each in (Point(**json.loads(line)) for line in lines)}

    @property
    def all(self) -> list[Point]:
        return list(self._by_key.values())

    def has(self, command: str, fault: str, at: int) -> bool:
        return (command, fault, at) in self._by_key

    def has_survived(self, command: str, fault: str, at: int) -> bool:
        """Whether a point was tried and survived: what did not is tried again."""
        return self.has(command, fault, at) and self._by_key[command, fault, at].survived

    def add(self, point: Point) -> None:
        """Keep a point; one that does not survive is printed."""
        self._by_key[point[:3]] = point
        line = json.dumps(point._asdict())
        if self.state is not None:
            with self.state.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if not point.survived:
            print(line, flush=True)


def add_arguments(parser: argparse.ArgumentParser, unit: str = "point") -> None:
    """Where a sweep keeps its points, and for how long it begins further units."""
    parser.add_argument(
        "--state", type=Path, help="file of points, a line of JSON each, that a later call goes on with"
    )
    parser.add_argument("--limit-s", type=float, default=float("inf"), help=f"begin no {unit} after so many seconds")


def table(points: Iterable[Point]) -> str:
    """Counts of each command and fault, in Markdown."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for point in points:
        found = counts.setdefault((point.command, point.fault), Counter())
        found["points"] += 1
        found.update(name for name in ("survived", "lost", "leaked", "wrong") if getattr(point, name))
    columns = ("points", "survived", "lost", "leaked", "wrong")
    lines = [f"| command | fault | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for (command, fault), found in counts.items():
        lines.append(f"| {command} | {fault} | {' | '.join(str(found[name]) for name in columns)} |")
    total = sum(counts.values(), Counter())
    lines.append(f"| **all** | | {' | '.join(str(total[name]) for name in columns)} |")
    return "\n".join(lines)
