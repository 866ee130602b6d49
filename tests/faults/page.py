"""The counts of docs/faults.md and docs/faults.json, from the files of points that the sweeps keep.

    PYTHONPATH=tests python tests/faults/page.py build/*.jsonl --evidence build/evidence.json

What no file of points is given for keeps the counts of docs/faults.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mutants import FAULT as SLIP
from mutants import MODULES, PACKAGE, equivalent
from mutations import Module
from points import KINDS_OF_FAILURE, Point, Points

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


class Kind(NamedTuple):
    """What one script tries: its state file, the seed of what is drawn, and how one point is tried again."""

    title: str
    state: str
    """The name of its file of points."""
    again: Callable[[Point], str]
    seed: str = ""


def _by(script: str, command: str) -> Callable[[Point], str]:
    return lambda point: f'{script} --{command} "{point.command}" --fault "{point.fault}" --at {point.at}'


def _at(script: str, command: str) -> Callable[[Point], str]:
    return lambda point: f'{script} --{command} "{point.command}" --at {point.at}'


def _all(script: str) -> Callable[[Point], str]:
    return lambda _: script


def _hostile(point: Point) -> str:
    door, _, _ = point.command.partition(": ")
    return f'../fuzz_run.py --seed {point.at // 1_000_000} --door "{door}"'


KINDS = (
    Kind("kill or disk", "faults", _by("sweep.py", "scene")),
    Kind("power loss", "power", lambda point: f'power.py --scene "{point.command}"'),
    Kind("memory limit", "memory", _at("memory_limits.py", "scene")),
    Kind("allocation", "allocations", _at("allocations.py", "scene")),
    Kind("surroundings", "surroundings", _all("surroundings.py")),
    Kind("at the same time", "together", _all("together.py")),
    Kind("batch", "batch", _all("batch.py")),
    Kind("made again", "rebuild", lambda point: f'rebuild.py --recipe "{point.command}"'),
    Kind("changed artifact", "flips", _all("flips.py"), "29"),
    Kind("hostile input", "fuzz", _hostile, "0"),
    Kind("slip in a guard", "mutants", _at("mutants.py", "module")),
    Kind("Hub", "hub-faults", _by("hub_requests.py", "command")),
)


class Row(NamedTuple):
    """Counts of one fault."""

    kind: str
    fault: str
    num_commands: int
    points: int
    survived: int
    lost: int
    leaked: int
    executed: int
    wrong: int
    seed: str
    again: str
    """The command of one point."""


class InputRow(NamedTuple):
    """Hostile inputs of what reads them."""

    read_as: str
    inputs: int
    right_results: int
    refused: int
    failed: int


class MutantRow(NamedTuple):
    """A guard that was judged to its end."""

    guard: str
    mutants: int
    killed: int
    equivalent: int
    alive: int
    judged_by: str


class Counts(NamedTuple):
    """All that the page says."""

    points: list[Row]
    inputs: list[InputRow]
    mutants: list[MutantRow]
    evidence: list[dict[str, Any]]
    """As ``evidence.py --json`` gives it."""


def rows(points: Mapping[str, Sequence[Point]]) -> list[Row]:
    """One for each fault, in the order of ``KINDS``; points by the names of their files."""
    found: list[Row] = []
    for kind in KINDS:
        met: dict[str, list[Point]] = {}
        for point in points.get(kind.state, ()):
            met.setdefault(point.fault, []).append(point)
        found += [_row(kind, fault, members) for fault, members in sorted(met.items())]
    return found


def _row(kind: Kind, fault: str, points: list[Point]) -> Row:
    counts = Counter(name for point in points for name in ("survived", *KINDS_OF_FAILURE) if getattr(point, name))
    numbers = [counts[name] for name in ("survived", *KINDS_OF_FAILURE)]
    commands = {point.command for point in points}
    shown = points[len(points) // 2]
    return Row(kind.title, fault, len(commands), len(points), *numbers, kind.seed, kind.again(shown))


def input_rows(points: Iterable[Point]) -> list[InputRow]:
    """Hostile inputs by what reads them."""
    counts: dict[str, Counter[str]] = {}
    for point in points:
        if point.fault.startswith("C, S"):
            found = counts.setdefault(point.command.partition(": ")[0], Counter())
            found.update(["right_results" if point.where == "right result" else "refused"])
            found["failed"] += not point.survived
    return [
        InputRow(door, found["right_results"] + found["refused"], *(found[name] for name in InputRow._fields[2:]))
        for door, found in sorted(counts.items())
    ]


def mutant_rows(points: Iterable[Point]) -> list[MutantRow]:
    """Mutants of each guard that was judged to its end."""
    judged = {(point.command, point.at): point.survived for point in points if point.fault == SLIP}
    rows = []
    for module, tests in MODULES.items():
        mutants, num_same = there(module)
        found = [judged.get((module, number)) for number in mutants]
        if None not in found:
            files = ", ".join(f"`{name}`" for name in dict.fromkeys(name.partition("::")[0] for name in tests))
            counts = (len(mutants) + num_same, found.count(True), num_same, found.count(False))
            rows.append(MutantRow(module, *counts, files))
    return rows


def joined(earlier: Counts, later: Counts) -> Counts:
    """The later counts, and of what they do not have the earlier ones."""
    order = [kind.title for kind in KINDS]
    points = {(row.kind, row.fault): row for row in (*earlier.points, *later.points)}
    mutants = {row.guard: row for row in (*earlier.mutants, *later.mutants) if row.guard in MODULES}
    inputs = {row.read_as: row for row in (*earlier.inputs, *later.inputs)}
    return Counts(
        sorted(points.values(), key=lambda row: (order.index(row.kind), row.fault)),
        [inputs[name] for name in sorted(inputs)],
        [mutants[module] for module in MODULES if module in mutants],
        later.evidence or earlier.evidence,
    )


def read(file: Path) -> Counts:
    """What ``written`` has written."""
    found = json.loads(file.read_text(encoding="utf-8"))
    kinds = {"points": Row, "inputs": InputRow, "mutants": MutantRow}
    return Counts(*([kind(**each) for each in found[name]] for name, kind in kinds.items()), found["evidence"])


def written(counts: Counts) -> str:
    """As JSON."""
    found = {name: [each._asdict() for each in rows] for name, rows in zip(Counts._fields[:3], counts, strict=False)}
    return json.dumps(found | {"evidence": counts.evidence}, indent=1, ensure_ascii=False) + "\n"


def table(found: list[Row]) -> str:
    """In Markdown, with a sum."""
    columns = ("points", "survived", *KINDS_OF_FAILURE)
    lines = [f"| | fault | commands | {' | '.join(columns)} | seed | one point again |"]
    lines.append(f"|---|---|--:|{'--:|' * len(columns)}--:|---|")
    for row in found:
        numbers = " | ".join(f"{getattr(row, name):,}" for name in columns)
        lines.append(f"| {row.kind} | {row.fault} | {row.num_commands} | {numbers} | {row.seed} | `{row.again}` |")
    sums = " | ".join(f"**{sum(getattr(row, name) for row in found):,}**" for name in columns)
    return "\n".join([*lines, f"| **all** | | | {sums} | | |"])


def inputs_table(found: Iterable[InputRow]) -> str:
    """In Markdown."""
    lines = ["| read as | inputs | right result | refused or not there | failed |", "|---|--:|--:|--:|--:|"]
    return "\n".join([*lines, *(f"| {row[0]} | {' | '.join(f'{number:,}' for number in row[1:])} |" for row in found)])


def mutants_table(found: Iterable[MutantRow]) -> str:
    """In Markdown."""
    lines = ["| guard | mutants | killed | equivalent | alive | judged by |", "|---|--:|--:|--:|--:|---|"]
    return "\n".join([*lines, *(f"| `{row[0]}` | {' | '.join(map(str, row[1:]))} |" for row in found)])


@cache
def there(module: str) -> tuple[frozenset[int], int]:
    """The numbers of the mutants of a module as it stands, and how many equivalent ones there are beside them."""
    same, source = equivalent(module), Module((PACKAGE / module).read_text(encoding="utf-8"), module)
    return frozenset(each.number for each in source.mutants if each.name not in same), len(same)


def evidence_table(found: Iterable[Mapping[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| what | under | share | wanted |", "|---|---|--:|---|"]
    for each in found:
        mark = "" if each["right"] else " **not kept**"
        lines.append(f"| {each['what']} | {each['under']} | {each['share']:.1%}{mark} | {each['wanted']} |")
    return "\n".join(lines)


def put(page: str, name: str, text: str) -> str:
    """Put a table between its marks.

    Raises:
        ValueError: The page has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"there are no marks <!-- {name} --> and <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page, count=1)


def main() -> None:
    """Write the page, and the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", type=Path, nargs="+", help="files of points, by the names in `make faults-all`")
    parser.add_argument("--evidence", type=Path, help="the outcomes of evidence.py --json")
    parser.add_argument("--json", type=Path, default=PAGE.with_suffix(".json"), help="the counts")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    by_state = {state.stem: Points(state).all for state in args.states}
    if unknown := by_state.keys() - {kind.state for kind in KINDS}:
        parser.error(f"{', '.join(sorted(unknown))}: no script keeps its points in a file of that name")
    # A mutant of an earlier version of its module is none.
    by_state |= {
        name: [point for point in points if point.fault != SLIP or point.at in there(point.command)[0]]
        for name, points in by_state.items()
    }
    points = [point for points in by_state.values() for point in points]
    evidence = json.loads(args.evidence.read_text(encoding="utf-8")) if args.evidence is not None else []
    counts = Counts(rows(by_state), input_rows(points), mutant_rows(points), evidence)
    if args.json.exists():
        counts = joined(read(args.json), counts)
    args.json.write_text(written(counts), encoding="utf-8")
    page = args.page.read_text(encoding="utf-8")
    for name, made in zip(Counts._fields, (table, inputs_table, mutants_table, evidence_table), strict=True):
        page = put(page, name, made(getattr(counts, name)))
    args.page.write_text(page, encoding="utf-8")
    failed = [point for point in points if not point.survived]
    print(f"{len(points):,} points of these files, {len(failed)} of which did not survive")


if __name__ == "__main__":
    main()
