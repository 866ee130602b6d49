"""The same input by every packaged recipe, again and under other circumstances, and whether the bytes are the same.

    PYTHONPATH=tests python tests/faults/rebuild.py                                  # every recipe
    PYTHONPATH=tests python tests/faults/rebuild.py --recipe int4 --way "two threads"   # one point again

One process makes the outputs of all recipes, each other one in the opposite order. Of a manifest all counts but
``measured``, and in a run with other threads their number. Texts are short, and from a file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from interception import to_its_end
from invariants import digest
from points import Point, Points, add_arguments
from scenes import PARTS, ROOT, TEXT, command, environment

FEW = ("num_samples=2", "seq_len=32")
SHORT = {
    "calibration": FEW,
    "training": (*FEW, "num_steps=2", "num_validation_samples=2", "num_validations=1"),
    "activations.accuracy_control": ("num_samples=1", "ranking_num_samples=1", "max_drop=10"),
}
"""What is set in each part that a recipe has."""
OTHER_USER = 65534
THREADS = "llmcompress.json: environment.num_threads"
FAILED = "failed"
IN_TURN = Path(__file__).with_name("in_turn.py")
KEPT = "keep"
"""The recipe whose source is quantized already."""


class Way(NamedTuple):
    """A circumstance that must not show in the output."""

    name: str
    folder: str = "model"
    """What the source is called."""
    cwd: str = "work"
    output: str = "out"
    threads: int = 1
    is_cold: bool = False
    """Whether its caches are empty."""
    user: int | None = None
    keeps: bool = False
    """Whether each is made by a kept graph, where there is one."""
    backwards: bool = False


FIRST = Way("the first", is_cold=True)
WAYS = (
    Way("again"),
    Way("other folder", folder="another name of it", backwards=True),
    Way("other working directory", cwd="out/elsewhere", output="out/elsewhere/made here"),
    Way("other user, cold caches", is_cold=True, user=OTHER_USER, backwards=True),
    Way("two threads", threads=2),
    Way("by a kept graph", keeps=True, backwards=True),
)
TRAINED = ("int4-distilled", "int4-learned", "int4-sym-distilled", "int4-sym-learned")
STATED = {(name, "two threads") for name in ("int4-gptq", *TRAINED)}
"""Where docs/artifact.md says that bytes may differ: GPTQ's sums and training, by the number of threads."""


class Packaged(NamedTuple):
    """A recipe that comes with the package."""

    name: str
    overrides: tuple[str, ...]

    def options(self) -> list[str]:
        return ["-r", self.name, *(part for each in self.overrides for part in ("--set", each))]


Made = Mapping[str, Mapping[str, str]]
"""Of each recipe the files of its output by their digests, or ``FAILED`` and why."""


def packaged(place: Path) -> list[Packaged]:
    """The recipes as the command lists them, each with short texts."""
    arguments, settings = command("recipes", "--json"), environment(place)
    done = subprocess.run(arguments, env=settings, cwd=place / "work", capture_output=True, check=True)
    return [Packaged(recipe["name"], tuple(_shortened(recipe, place))) for recipe in json.loads(done.stdout)]


def _shortened(recipe: Mapping[str, object], place: Path) -> list[str]:
    found = []
    for part, values in SHORT.items():
        inner: object = recipe
        for name in part.split("."):
            inner = inner.get(name) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            found += [f"{part}.{value}" for value in values]
            if inner.get("dataset") is not None:
                text = {"dataset": place / "in/text.txt", "subset": "null", "split": "null", "text_field": "null"}
                found += [f"{part}.{name}={value}" for name, value in text.items() if inner.get(name) is not None]
    return found


def prepared(place: Path) -> None:
    """A checkpoint in two folders, one that is quantized already, and a text."""
    from gguf_fixture import blocks, write_gguf
    from tiny_models import build_checkpoint

    for part in PARTS:
        (place / part).mkdir(parents=True)
    build_checkpoint(place / "in/model", num_hidden_layers=1)
    half = build_checkpoint(place / "work/half", num_hidden_layers=1, dtype="float16")
    for folder in ("model", "another name of it"):
        (place / "in" / f"{folder} quantized").mkdir()
        write_gguf(half, place / "in" / f"{folder} quantized" / "model.gguf", blocks("Q8_0"))
    shutil.rmtree(half)
    shutil.copytree(place / "in/model", place / "in/another name of it")
    shutil.copy(TEXT, place / "in/text.txt")


def made(place: Path, recipes: Sequence[Packaged], way: Way) -> Made:
    """Compress by all recipes in one process."""
    shutil.rmtree(place / "out")
    for part in ("out", way.cwd):
        (place / part).mkdir(exist_ok=True)
    settings = environment(place) | {"OMP_NUM_THREADS": str(way.threads), "NUMBA_NUM_THREADS": str(way.threads)}
    settings["LLMCOMPRESS_GRAPH_CACHE"] = "on" if way.keeps else "off"
    settings["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", IN_TURN.parent)))
    if way.is_cold:
        settings |= {name: str(place / "cold" / name) for name in ("HOME", "LLMCOMPRESS_CACHE", "HF_HOME", "TMPDIR")}
        shutil.rmtree(place / "cold", ignore_errors=True)
        for name in ("HOME", "TMPDIR"):
            (place / "cold" / name).mkdir(parents=True)
    order = list(recipes)[:: -1 if way.backwards else 1]
    asked = []
    for recipe in order:
        folder = f"{way.folder} quantized" if recipe.name == KEPT else way.folder
        arguments = ["compress", str(place / "in" / folder), *recipe.options()]
        if way.keeps:
            asked.append([*arguments, "-o", str(place / "out" / f"{recipe.name} first"), "--graph-cache"])
        asked.append([*arguments, "-o", str(place / way.output / recipe.name)])
    said = _carried_out(place, way, asked, settings)
    found: dict[str, dict[str, str]] = {}
    for recipe, (code, text) in zip(order, said[way.keeps :: 1 + way.keeps], strict=True):
        found[recipe.name] = {FAILED: text[-300:]} if code else contents(place / way.output / recipe.name)
    return found


def _carried_out(
    place: Path, way: Way, asked: Sequence[Sequence[str]], settings: Mapping[str, str]
) -> list[tuple[int, str]]:
    file = place / "asked.json"
    file.write_text(json.dumps(asked))
    # A process counts as its threads what it may run on.
    bound = ["taskset", "--cpu-list", ",".join(map(str, sorted(os.sched_getaffinity(0))[: way.threads]))]
    if way.user is not None:
        for directory in (place, place / "out", place / "work", place / "cold", *(place / "cold").rglob("*")):
            os.chown(directory, way.user, way.user)
    arguments = [*as_user(way.user), *bound, sys.executable, str(IN_TURN), str(file)]
    ended = to_its_end(arguments, settings, place / way.cwd, limit_s=1800)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    missing = [(ended.returncode or 1, ended.stderr)] * (len(asked) - len(lines))
    return [(code, text) for code, text in lines] + missing


def as_user(user: int | None) -> list[str]:
    """What has a command run by another user, who may read the interpreter wherever that is, and write nothing more."""
    if user is None:
        return []
    reads = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *reads]


def contents(directory: Path) -> dict[str, str]:
    """Every file by its digest, of the manifest one for each of its lasting parts."""
    found = {}
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        name = path.relative_to(directory).as_posix()
        if name != "llmcompress.json":
            found[name] = digest(path.read_bytes())
            continue
        manifest = json.loads(path.read_bytes())
        del manifest["measured"]
        found[THREADS] = str(manifest["environment"].pop("num_threads"))
        found |= {f"{name}: {part}": digest(json.dumps(value).encode()) for part, value in manifest.items()}
    return found


def compared(name: str, way: Way, first: Mapping[str, str], found: Mapping[str, str]) -> Point:
    """One recipe, made in another way."""
    differing = sorted(each for each in found.keys() | first.keys() if found.get(each) != first.get(each))
    if way.threads > 1 and THREADS in differing:
        differing.remove(THREADS)
    where, lost = "the same", list[str]()
    if FAILED in first or FAILED in found:
        where, lost = FAILED, [first.get(FAILED, found.get(FAILED, ""))]
    elif differing and (name, way.name) in STATED:
        where = "differs, as stated"
    elif differing:
        where, lost = "differs", [f"{', '.join(differing)} differ"]
    return Point(name, way.name, 0, where, 0, lost, [], [])


def table(points: Iterable[Point]) -> str:
    """A line for each recipe and a column for each way, in Markdown."""
    ways = [way.name for way in WAYS]
    cells = {(point.command, point.fault): point.where for point in points}
    lines = [f"| recipe | {' | '.join(ways)} |", f"|---|{'---|' * len(ways)}"]
    for recipe in sorted({recipe for recipe, _ in cells}):
        lines.append(f"| {recipe} | {' | '.join(cells.get((recipe, way), 'not run') for way in ways)} |")
    return "\n".join(lines)


def main() -> None:
    """Make and compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="*", help="default: all")
    parser.add_argument("--way", nargs="*", choices=[way.name for way in WAYS], help="default: all")
    parser.add_argument("--every", type=int, default=1, help="of the recipes")
    add_arguments(parser, "way")
    args = parser.parse_args()
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    refused = other_user_refused()
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        place = Path(folder) / "place"
        prepared(place)
        Path(folder).chmod(0o755)
        recipes = packaged(place)[:: args.every]
        recipes = [recipe for recipe in recipes if not args.recipe or recipe.name in args.recipe]
        first: Made = {}
        for way in WAYS:
            left = [recipe for recipe in recipes if not points.has_survived(recipe.name, way.name, 0)]
            if not left or time.monotonic() > deadline or (args.way and way.name not in args.way):
                continue
            if way.user is not None and refused:
                print(f"not swept: {refused}")
                continue
            first = first or made(place, recipes, FIRST)
            found = made(place, left, way)
            for recipe in left:
                points.add(compared(recipe.name, way, first[recipe.name], found[recipe.name]))
    print(table(points.all))


def other_user_refused() -> str:
    """Why nothing can be run by another user; empty if it can."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return "another user takes root and setpriv"
    done = subprocess.run([*as_user(OTHER_USER), sys.executable, "-c", ""], capture_output=True, text=True, cwd=ROOT)
    return f"another user: {done.stderr.strip()}" if done.returncode else ""


if __name__ == "__main__":
    main()
