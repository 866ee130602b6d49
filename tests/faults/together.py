"""Runs at the same time: on one output, on one cache, with ``verify`` and ``cache prune`` between them.

    PYTHONPATH=tests python tests/faults/together.py --state points.jsonl
    PYTHONPATH=tests python tests/faults/together.py --case "a lock that is always granted"

Two recipes take turns, so that a mixture of two runs would be seen. Their graphs are kept, so that a run is hardly more
than the reading and writing that others could disturb; but for the cold cache.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import interception
from interception import Ended, to_its_end
from invariants import leaks, said_badly, tree, units
from points import Point, Points, add_arguments, table
from scenes import KEPT, PARTS, SECRET, command, environment

FLOCK = Path(__file__).with_name("flock.c")
AT_ONCE = 6
RECIPES = (("-r", "int8"), KEPT)
EXISTS, DAMAGED, LOCKED = 2, 4, 9
LOOK_S = 0.5


class Stage(NamedTuple):
    """A place, and what each of the recipes makes there alone."""

    place: Path
    inputs: dict[str, str]
    wholes: list[str]
    """Digests of the artifact."""

    def settings(self, **more: str) -> dict[str, str]:
        return environment(self.place) | {"LLMCOMPRESS_GRAPH_CACHE": "on"} | more

    def run(self, arguments: Sequence[str], settings: Mapping[str, str]) -> Ended:
        return to_its_end(arguments, settings, self.place / "work")

    def compress(self, number: int, output: str, *more: str, **settings: str) -> Ended:
        """By the first recipe where the number is even, else by the second."""
        recipe = RECIPES[number % len(RECIPES)]
        arguments = command("compress", self.place / "in/model", *recipe, "-o", self.place / "out" / output, *more)
        return self.run(arguments, self.settings(**settings))


def begun(place: Path) -> Stage:
    """Make the input, and each output once."""
    from tiny_models import build_checkpoint

    for part in PARTS:
        (place / part).mkdir(parents=True)
    build_checkpoint(place / "in/model", num_hidden_layers=1)
    stage = Stage(place, tree(place / "in"), [])
    for number in range(len(RECIPES)):
        ended = stage.compress(number, f"model-{number}", "--graph-cache")
        if ended.returncode:
            raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")
    found = units(place / "out")
    return stage._replace(wholes=[found[f"model-{number}/"] for number in range(len(RECIPES))])


def empty(stage: Stage, *, cache: bool = False) -> None:
    for part in ("out", *(("cache",) if cache else ())):
        shutil.rmtree(stage.place / part)
        (stage.place / part).mkdir()


def watched(
    stage: Stage, runs: Sequence[Callable[[], Ended]], between: Sequence[str]
) -> tuple[list[Ended], list[Ended]]:
    """Carry out runs, a few at once, and look at everything with a command meanwhile; returns how all of them ended."""
    looks, done = list[Ended](), threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            looks.append(stage.run(between, stage.settings()))

    looking = threading.Thread(target=look)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looking.start()
        ended = list(pool.map(lambda run: run(), runs))
    done.set()
    looking.join()
    return ended, looks


def judged(stage: Stage, case: str, number: int, ended: Ended, codes: frozenset[int]) -> Point:
    """One of the runs, by what it said."""
    wrong = list(said_badly(ended, codes)) if ended.returncode else []
    return Point("compress", case, number, "", ended.returncode, [], list(leaks(stage.place, ended, SECRET)), wrong)


def left(stage: Stage, case: str, number: int, outputs: int) -> Point:
    """What is there in the end: so many whole artifacts, and nothing beside them."""
    lost, leaked = list[str](), list[str]()
    try:
        found = units(stage.place / "out")
        lost += [f"{name} is a mixture" for name, content in found.items() if content not in stage.wholes]
        if len(found) != outputs:
            lost.append(f"{len(found)} outputs, not {outputs}")
    except (ValueError, OSError, KeyError) as error:
        lost.append(f"not whole: {error}")
    if tree(stage.place / "in") != stage.inputs:
        lost.append("an input was changed")
    leaked += [f"left behind: {path.name}" for path in (stage.place / "out").iterdir() if path.name.startswith(".")]
    return Point("all", case, number, "in the end", 0, lost, leaked, [])


def one_target(stage: Stage, count: int = 20) -> Iterator[Point]:
    """Runs to one output, every other of which may replace what is there; ``verify`` all the time."""
    case = "one output"
    empty(stage)
    more = (("--overwrite",), ())
    runs = [partial(stage.compress, number, "model", *more[number // 2 % 2]) for number in range(count)]
    ended, looks = watched(stage, runs, command("verify", stage.place / "out/model"))
    for number, each in enumerate(ended):
        yield judged(stage, case, number, each, frozenset({EXISTS, LOCKED}))
    if not any(each.returncode == 0 for each in ended):
        yield Point("all", case, count, "no run won", 0, ["no run won"], [], [])
    for number, each in enumerate(looks):
        # While another takes its place, what is hashed may be the old one's file or the new one's.
        wrong = list(said_badly(each, frozenset({EXISTS, DAMAGED}))) if each.returncode else []
        yield Point("verify", case, number, "", each.returncode, [], [], wrong)
    yield left(stage, case, count, 1)


def one_cache(stage: Stage, count: int = 3) -> Iterator[Point]:
    """Runs with a cold cache in common, from which everything is pruned meanwhile."""
    case = "one cache"
    for number in range(count):
        empty(stage, cache=True)
        runs = [partial(stage.compress, output, f"model-{output}", "--graph-cache") for output in range(3)]
        ended, looks = watched(stage, runs, command("cache", "prune", "--all"))
        for output, each in enumerate(ended):
            yield judged(stage, case, 3 * number + output, each, frozenset())
        for look, each in enumerate(looks):
            wrong = list(said_badly(each, frozenset())) if each.returncode else []
            yield Point("cache prune", case, 1000 * number + look, "", each.returncode, [], [], wrong)
        yield left(stage, case, number, 3)


def no_lock(stage: Stage, library: Path, count: int = 4) -> Iterator[Point]:
    """Runs to one output on a file system whose lock is always granted."""
    case = "a lock that is always granted"
    for number in range(count):
        empty(stage)
        settings = {"LD_PRELOAD": str(library)}
        runs = [partial(stage.compress, run, "model", "--overwrite", **settings) for run in range(3)]
        ended, looks = watched(stage, runs, command("verify", stage.place / "out/model"))
        for run, each in enumerate(ended):
            yield judged(stage, case, 3 * number + run, each, frozenset({LOCKED}))
        for look, each in enumerate(looks):
            wrong = list(said_badly(each, frozenset({EXISTS, DAMAGED}))) if each.returncode else []
            yield Point("verify", case, 1000 * number + look, "", each.returncode, [], [], wrong)
        # Each may have made way for another.
        winners = any(each.returncode == 0 for each in ended)
        yield left(stage, case, number, int(winners))


def main() -> None:
    """Run everything, and print the counts."""
    cases = ("one output", "one cache", "a lock that is always granted")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", choices=cases, default=cases, help="default: all")
    parser.add_argument("--every", type=int, default=1, help="of the runs of each case")
    add_arguments(parser, "case")
    args = parser.parse_args()
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        stage = begun(Path(folder) / "place")
        for case in args.case:
            if any(point.fault == case for point in points.all) or time.monotonic() > deadline:
                continue
            if case == "one output":
                tried = one_target(stage, -(-20 // args.every))
            elif case == "one cache":
                tried = one_cache(stage, -(-3 // args.every))
            elif interception.why_not():
                print(f"not swept: {case}: {interception.why_not()}")
                continue
            else:
                tried = no_lock(stage, interception.build(Path(folder), FLOCK), -(-4 // args.every))
            for point in tried:
                points.add(point)
    print(table(points.all))


if __name__ == "__main__":
    main()
