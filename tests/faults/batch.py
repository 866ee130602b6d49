"""A plan of twenty models of which three are damaged: the others are made, and the next run makes those three alone.

    PYTHONPATH=tests python tests/faults/batch.py --state points.jsonl

A point is a model of a run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from interception import Ended, to_its_end
from invariants import leaks, said_badly, tree, units
from points import Point, Points, add_arguments, table
from scenes import PARTS, SECRET, command, environment

COUNT = 20
DAMAGED_MODEL = 4
LIMIT_S = 1800


def _cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _unknown(model: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_bytes())
    path.write_text(json.dumps(config | {"model_type": "unheard_of", "architectures": ["UnheardOfForCausalLM"]}))


def _without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


def _with_nan(model: Path) -> None:
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    # A bfloat16 that is none, in the last weight.
    content[-2:] = b"\xc0\x7f"
    path.write_bytes(content)


DAMAGES: dict[int, Callable[[Path], None]] = {3: _cut, 7: _with_nan, 12: _unknown}
ALL_AT_ONCE: dict[int, Callable[[Path], None]] = {1: _without_tokenizer, 2: _cut, COUNT: _unknown}
CASES = {"B1": DAMAGES, "B1 at both ends": ALL_AT_ONCE}


def begun(place: Path) -> Path:
    """Make the models and the plan."""
    from tiny_models import build_checkpoint

    for part in PARTS:
        (place / part).mkdir(parents=True)
    for number in range(1, COUNT + 1):
        build_checkpoint(place / f"in/model-{number}", num_hidden_layers=1, hidden_size=64, seed=number)
    names = ", ".join(f"{place}/in/model-{number}" for number in range(1, COUNT + 1))
    plan = place / "in/plan.yaml"
    plan.write_text(f"output: {place}/out\nmodels: [{names}]\nrecipes: [int8]\n")
    return plan


def run(place: Path, plan: Path) -> Ended:
    return to_its_end(command("run", plan), environment(place), place / "work", LIMIT_S)


def identities(place: Path) -> dict[str, tuple[int, int]]:
    """What tells a file that was written again."""
    found = (path for path in (place / "out").rglob("*.json") if path.name == "llmcompress.json")
    return {path.parent.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def tried(place: Path, plan: Path, case: str, whole: dict[str, str]) -> Iterator[Point]:
    """Damage models, run, mend them, and run again."""
    shutil.rmtree(place / "out")
    (place / "out").mkdir()
    shutil.copytree(place / "in", place / "work/in")
    for number, damage in CASES[case].items():
        damage(place / f"in/model-{number}")
    damaged = tree(place / "in")
    ended = run(place, plan)
    kept, found = identities(place), units(place / "out")
    leaked = list(leaks(place, ended, SECRET))
    wrong = list(said_badly(ended, frozenset({DAMAGED_MODEL})))
    if tree(place / "in") != damaged:
        wrong.append("an input was changed")
    yield Point("run", case, 0, "all", ended.returncode, [], leaked, wrong)
    for number in range(1, COUNT + 1):
        yield _first_time(case, number, ended, found, whole)
    shutil.rmtree(place / "in")
    shutil.move(place / "work/in", place / "in")
    again = run(place, plan)
    lost = [] if again.returncode == 0 else [f"the next run ended with {again.returncode}: {again.stderr[-300:]}"]
    found = units(place / "out")
    lost += [f"{name} is another one" for name in artifacts(whole) if found.get(name) != whole[name]]
    lost += [f"{name} was made again" for name, known in kept.items() if identities(place).get(name) != known]
    yield Point("run", f"{case}, then mended", 0, "all", again.returncode, lost, list(leaks(place, again, SECRET)), [])


def _first_time(case: str, number: int, ended: Ended, found: dict[str, str], whole: dict[str, str]) -> Point:
    name, said = f"model-{number}", ended.stdout + ended.stderr
    lost, wrong = list[str](), list[str]()
    unit = f"{name}/int8/"
    if number in CASES[case]:
        if unit in found:
            wrong.append("a damaged model was compressed")
        if f"{name}/int8" not in said and f"{name} " not in said:
            wrong.append("it is not named")
    elif found.get(unit) != whole[unit]:
        lost.append("it was not made, or otherwise")
    return Point("run", case, number, name, ended.returncode, lost, [], wrong)


def artifacts(found: dict[str, str]) -> list[str]:
    return [name for name in found if name.endswith("/")]


def main() -> None:
    """Run both cases, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES), help="default: all")
    add_arguments(parser, "case")
    args = parser.parse_args()
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        place = Path(folder) / "place"
        plan = begun(place)
        ended = run(place, plan)
        if ended.returncode:
            raise SystemExit(f"an undisturbed run failed: {ended.stderr}")
        whole = units(place / "out")
        for case in args.case:
            if not points.has_survived("run", f"{case}, then mended", 0) and time.monotonic() < deadline:
                for point in tried(place, plan, case, whole):
                    points.add(point)
    print(table(points.all))


if __name__ == "__main__":
    main()
