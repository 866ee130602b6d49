"""Kills and errors at every call of every command that changes a file system, and what was lost or leaked.

    PYTHONPATH=tests python tests/faults/sweep.py --every 20                    # a sample
    PYTHONPATH=tests python tests/faults/sweep.py --scene compress --fault K1   # a part of it
    PYTHONPATH=tests python tests/faults/sweep.py --scene compress --fault K1 --at 37   # one point again

Points are kept in ``--state`` as they are tried, so that a later call goes on. In K3 the run that recovers from a
kill is killed too, at ``--pairs`` moments of each command that a seed chooses.
"""

from __future__ import annotations

import argparse
import errno
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import interception
from interception import Call, Ended, Injection
from invariants import leaks, said_badly, tree, units
from points import Point, Points, add_arguments, table
from scenes import PARTS, SCENES, SECRET, Scene, environment

WRITTEN = ("out", "cache", "home", "tmp", "work")
LASTING = ("out", "home", "work")
"""Where nothing may be left that an undisturbed run does not leave."""


class Fault(NamedTuple):
    """What is put at a call."""

    name: str
    what: str
    act: str
    later: bool = False

    def injection(self, at: int) -> Injection:
        return Injection(at, self.act, self.later)


UNLOCKED_S = 1.1
"""A file that has no byte yet may be one that another run has just begun: for a second it is left alone."""
VIEWS = ("compare.html",)
"""Pages of what a plan has made so far: where one of its jobs failed, of the others."""
COMPOUND = "K3"
FAULTS = (
    Fault("K1", "all processes are killed", "group"),
    Fault("K1-worker", "the process that calls is killed", "self"),
    Fault("K2-int", "Ctrl-C", "int"),
    Fault("K2-term", "SIGTERM to the group", "term"),
    Fault("D1-once", "one call finds no room", str(errno.ENOSPC)),
    Fault("D1", "no call finds room any more", str(errno.ENOSPC), later=True),
    Fault("D4-EIO", "every later call ends in an error of the device", str(errno.EIO), later=True),
    Fault("D4-EDQUOT", "the quota is used up", str(errno.EDQUOT), later=True),
    Fault("D4-EACCES", "one call is not permitted", str(errno.EACCES)),
    Fault("D4-short", "every write takes half of its bytes", "short", later=True),
)


class Truth(NamedTuple):
    """What a scene begins with, and what an undisturbed run makes of it."""

    inputs: dict[str, str]
    old: dict[str, str]
    new: dict[str, str]
    names: set[str]
    """Of all that is in ``out``, ``home`` and ``work`` after it."""
    calls: list[Call]


class Sweep(NamedTuple):
    """A scene in its place, and the library that its runs are given."""

    scene: Scene
    place: Path
    library: Path

    def run(self, injection: Injection | None = None, copy: str = "") -> tuple[Ended, list[Call]]:
        under = [self.place / part for part in PARTS if part != "in"]
        arguments, cwd = self.scene.arguments(self.place), self.place / "work"
        with self.scene.around(self.place) as more:
            settings = {**environment(self.place), **more}
            return interception.run(arguments, self.library, under, settings, injection=injection, copy=copy, cwd=cwd)


def begun(sweep: Sweep, warm: Path) -> Truth:
    """Prepare a place, keep what every run begins with, and run twice undisturbed.

    Args:
        sweep: What is swept.
        warm: A cache with compiled kernels.

    Raises:
        RuntimeError: Two undisturbed runs differ, or one fails, so that nothing could be told from a disturbed one.
    """
    for part in PARTS:
        (sweep.place / part).mkdir(parents=True)
    shutil.copytree(warm, sweep.place / "cache", dirs_exist_ok=True)
    sweep.scene.prepare(sweep.place, {})
    template = sweep.place / "template"
    for part in WRITTEN:
        shutil.copytree(sweep.place / part, template / part, symlinks=True)
    inputs, old = tree(sweep.place / "in"), units(sweep.place / "out")
    # What the first run keeps later ones find.
    _whole(sweep)
    if not sweep.scene.begins_cold:
        shutil.rmtree(template / "cache")
        shutil.copytree(sweep.place / "cache", template / "cache", symlinks=True)
    found = []
    for _ in range(2):
        restore(sweep.place)
        calls = _whole(sweep)
        found.append((units(sweep.place / "out"), _names(sweep.place)))
    if found[0] != found[1]:
        raise RuntimeError(f"two undisturbed runs differ: {_difference(*(each[0] for each in found))}")
    new, names = found[0]
    return Truth(inputs, old, new, names, calls)


def warm_up(place: Path, cache: Path) -> None:
    """Have kernels compiled once for all scenes, into a cache that each gets a copy of."""
    for part in PARTS:
        (place / part).mkdir(parents=True)
    SCENES[0].prepare(place, {})
    shutil.move(place / "cache", cache)
    shutil.rmtree(place)


def _whole(sweep: Sweep) -> list[Call]:
    ended, calls = sweep.run()
    if ended.returncode:
        raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")
    return calls


def restore(place: Path) -> None:
    """Make a place what every run begins with."""
    for part in WRITTEN:
        shutil.rmtree(place / part)
        shutil.copytree(place / "template" / part, place / part, symlinks=True)


def _names(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for part in LASTING for path in (place / part).rglob("*")}


def _difference(first: dict[str, str], later: dict[str, str]) -> list[str]:
    return sorted(name for name in first.keys() | later.keys() if first.get(name) != later.get(name))


def tried(sweep: Sweep, truth: Truth, fault: Fault, call: Call) -> Point:
    """Put a fault at a call, and check what must hold then, and after the same command once more."""
    restore(sweep.place)
    ended, seen = sweep.run(fault.injection(call.number))
    met = seen[call.number - 1] if len(seen) >= call.number else None
    where = f"{met.name} {_shown(met.path, sweep.place)}" if met else "not reached"
    return judged(sweep, truth, ended, Point(sweep.scene.name, fault.name, call.number, where, 0, [], [], []))


def tried_twice(sweep: Sweep, truth: Truth, number: int) -> Point:
    """Kill a run, and the one that recovers from it; both moments follow from the number."""
    chance = random.Random(f"{sweep.scene.name} {number}")
    restore(sweep.place)
    places = []
    for _ in range(2):
        at = chance.randint(1, len(truth.calls))
        ended, seen = sweep.run(Injection(at, "group"))
        places.append(
            f"{at} {seen[at - 1].name} {_shown(seen[at - 1].path, sweep.place)}" if len(seen) >= at else "none"
        )
    point = Point(sweep.scene.name, COMPOUND, number, ", then ".join(places), 0, [], [], [])
    return judged(sweep, truth, ended, point)


def judged(sweep: Sweep, truth: Truth, ended: Ended, point: Point) -> Point:
    """Check what must hold after a run, and after the same command once more."""
    lost, wrong = [], []
    leaked = list(leaks(sweep.place, ended, SECRET))
    try:
        found = units(sweep.place / "out")
        for name in found.keys() | truth.old.keys() | truth.new.keys():
            is_view = ended.returncode > 0 and name.endswith(VIEWS)
            if found.get(name) not in (truth.old.get(name), truth.new.get(name)) and not is_view:
                lost.append(f"{name} is neither the old nor the new one")
    except (ValueError, OSError, KeyError) as error:
        found = {}
        lost.append(f"not whole: {error}")
    if ended.returncode == 0:
        if not lost and found != truth.new:
            wrong.append(f"exit code 0, but {_difference(found, truth.new)} differ from an undisturbed run")
    else:
        wrong += said_badly(ended, sweep.scene.codes)
    # Beside the fault itself, what a kill leaves is for the next run to clear away.
    if not lost:
        if ended.returncode < 0:
            time.sleep(UNLOCKED_S)
        lost += _after_another(sweep, truth)
        leaked += [f"left behind: {name}" for name in sorted(_names(sweep.place) - truth.names)]
    if tree(sweep.place / "in") != truth.inputs:
        lost.append("an input was changed")
    return point._replace(returncode=ended.returncode, lost=lost, leaked=leaked, wrong=wrong)


def _after_another(sweep: Sweep, truth: Truth) -> Iterator[str]:
    ended, _ = sweep.run()
    if ended.returncode:
        yield f"the next run ended with {ended.returncode}: {ended.stderr.strip()[-300:]}"
        return
    try:
        if (found := units(sweep.place / "out")) != truth.new:
            yield f"the next run made something else: {_difference(found, truth.new)}"
    except (ValueError, OSError, KeyError) as error:
        yield f"not whole after the next run: {error}"


def _shown(path: str, place: Path) -> str:
    """Without what differs from run to run."""
    return re.sub(r"[0-9a-f]{8,}", "*", path.removeprefix(f"{place}/"))


def chosen(calls: Iterable[Call], every: int) -> list[Call]:
    """Each ``every``-th call, all that rename, and the last one."""
    calls = list(calls)
    deciding = ("rename", "renameat", "renameat2")
    return [
        call
        for number, call in enumerate(calls, 1)
        if number % every == 0 or call.name in deciding or number == len(calls)
    ]


def main() -> None:
    """Sweep, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", nargs="*", choices=[scene.name for scene in SCENES], help="default: all")
    parser.add_argument(
        "--fault", nargs="*", choices=[*(fault.name for fault in FAULTS), COMPOUND], help="default: all"
    )
    parser.add_argument("--pairs", type=int, default=5, help="of kills of a command and of what recovers from it")
    parser.add_argument("--every", type=int, default=1, help="of the calls; renames are always tried")
    parser.add_argument("--at", type=int, nargs="+", help="these calls alone")
    add_arguments(parser)
    args = parser.parse_args()
    if reason := interception.why_not():
        sys.exit(f"not swept: {reason}")
    points = Points(args.state)
    deadline = time.monotonic() + args.limit_s
    faults = [fault for fault in FAULTS if not args.fault or fault.name in args.fault]
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        library, warm = interception.build(Path(folder)), Path(folder) / "warm"
        warm_up(Path(folder) / "first", warm)
        for number, scene in enumerate(SCENES):
            if (args.scene and scene.name not in args.scene) or time.monotonic() > deadline:
                continue
            sweep = Sweep(scene, Path(folder) / f"place-{number}", library)
            truth = begun(sweep, warm)
            print(f"{scene.name}: {len(truth.calls)} calls", flush=True)
            asked = [call for call in truth.calls if args.at and call.number in args.at]
            called = chosen(truth.calls, args.every) if args.at is None else asked
            for fault in faults:
                for call in called:
                    if not points.has_survived(scene.name, fault.name, call.number) and time.monotonic() < deadline:
                        points.add(tried(sweep, truth, fault, call))
            pairs = args.at or range(1, args.pairs + 1)
            for pair in pairs if not args.fault or COMPOUND in args.fault else ():
                if not points.has_survived(scene.name, COMPOUND, pair) and time.monotonic() < deadline:
                    points.add(tried_twice(sweep, truth, pair))
            shutil.rmtree(sweep.place)
    print(table(points.all))


if __name__ == "__main__":
    main()
