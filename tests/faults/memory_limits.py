"""Every command that needs memory under limits from all that it takes down to a twentieth of it.

    PYTHONPATH=tests python tests/faults/memory_limits.py --every 4                         # 100, 80, ... %
    PYTHONPATH=tests python tests/faults/memory_limits.py --scene train --at 75             # one limit again

A command may end, refuse before the work (exit code 3), or be killed and say so (10). Wrong are a run that was killed
after its forecast said that it fits, and one that was refused though it comes to its end, told to try, with a fifth
less. The models are small, and still most of what a run takes is theirs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import memory_group
from interception import Ended
from invariants import leaks, said_badly, tree, units
from points import Point, Points, add_arguments, table
from scenes import PARTS, SECRET, TEXT, Scene, Settings, command, environment, gguf, made, tune

STEP = 5
"""Per cent between two limits."""
MARGIN = 1.2
WRITTEN = ("out", "cache", "home", "tmp", "work")
LASTING = ("out", "home", "work")
LARGE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "vocab_size": 32000,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
SMALLER = LARGE | {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "vocab_size": 16000,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
KILLED = 10
REFUSED = 3
MEASURED = """
import atexit, pathlib, resource, runpy, sys
path = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: path.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)))
runpy.run_module("llmcompress", run_name="__main__", alter_sys=True)
"""
"""The command line, which leaves how much memory its own process took, in KiB."""


class Truth(NamedTuple):
    """A scene's place, and what a run without a limit needs and makes."""

    place: Path
    inputs: dict[str, str]
    old: dict[str, str]
    new: dict[str, str]
    names: set[str]
    need_bytes: int
    first_bytes: int
    """What its first process takes, which says how the run ended."""


def _large(place: Path, settings: Settings) -> None:
    from tiny_models import build_checkpoint

    # Of this one, 8 bits do not change whether its answers end in a loop.
    build_checkpoint(place / "in/model", **LARGE, seed=2)
    shutil.copy(TEXT, place / "in/text.txt")


def _smaller(place: Path, settings: Settings) -> None:
    from tiny_models import build_checkpoint

    build_checkpoint(place / "in/model", **SMALLER)
    shutil.copy(TEXT, place / "in/text.txt")
    learning = "num_samples: 4, seq_len: 32, num_steps: 2, batch_size: 2, num_validation_samples: 2, num_validations: 1"
    (place / "in/learned.yaml").write_text(
        "name: learned\nweights: {mode: int4_asym, group_size: 32}\n"
        f"training: {{method: distillation, dataset: {place}/in/text.txt, {learning}}}\n"
    )


def _evaluated(place: Path, settings: Settings) -> None:
    _large(place, settings)
    made(place, settings, "compress", place / "in/model", "-r", "int8", "-o", place / "out/model")


def _planned(place: Path, settings: Settings) -> None:
    _large(place, settings)
    (place / "in/plan.yaml").write_text(f"output: {place}/out/models\nmodels: [{place}/in/model]\nrecipes: [int8]\n")


def _compress(place: Path, *recipe: str | Path) -> list[str]:
    return command("compress", place / "in/model", *recipe, "-o", place / "out/model")


def _text(place: Path, *more: str) -> tuple[str | Path, ...]:
    return ("--dataset", place / "in/text.txt", "--seq-len", "32", *more)


def _search(place: Path) -> list[str]:
    text = _text(place, "--num-samples", "4", "--num-windows", "4", "--num-probes", "0")
    return command("search", place / "in/model", "--bits", "6", *text, "-o", place / "out/model")


def _eval(place: Path, *more: str) -> list[str]:
    text = _text(place, "--num-windows", "2", "--backend", "stateful")
    return command("eval", place / "out/model", "--reference", place / "in/model", *text, *more)


def _bench(place: Path) -> list[str]:
    few = ("-p", "16", "-n", "4", "-r", "2")
    return command("bench", place / "out/model", *few)


AWQ = ("-r", "int4-awq", "--set", "calibration.num_samples=4", "--set", "calibration.seq_len=32")
SCENES = (
    Scene("compress int8", _large, lambda place: _compress(place, "-r", "int8")),
    Scene("compress int4", _large, lambda place: _compress(place, "-r", "int4")),
    Scene(
        "compress with data",
        _large,
        lambda place: _compress(place, *AWQ, "--set", f"calibration.dataset={place}/in/text.txt"),
    ),
    Scene("train", _smaller, lambda place: _compress(place, "-r", place / "in/learned.yaml")),
    Scene("search", _smaller, _search),
    Scene("eval", _evaluated, _eval),
    Scene("eval of two at once", _evaluated, lambda place: _eval(place, "--noise-floor")),
    Scene("bench", _evaluated, _bench),
    Scene("tune", _evaluated, tune),
    Scene(
        "import a GGUF file",
        lambda place, _: gguf(place, **LARGE),
        lambda place: command("compress", place / "in/model.gguf", "-o", place / "out/model"),
    ),
    Scene("run a plan", _planned, lambda place: command("run", place / "in/plan.yaml")),
)


def begun(place: Path, scene: Scene) -> Truth:
    """Prepare a place, and run once without a limit.

    Raises:
        RuntimeError: That run fails.
    """
    for part in PARTS:
        (place / part).mkdir(parents=True)
    scene.prepare(place, {})
    keep(place)
    # What the first run keeps later ones find.
    with memory_group.limited(None) as group:
        _whole(group, place, scene.arguments(place))
    shutil.rmtree(place / "template/cache")
    shutil.copytree(place / "cache", place / "template/cache", symlinks=True)
    restore(place)
    old = units(place / "out")
    with memory_group.limited(None) as group:
        _whole(group, place, scene.arguments(place))
        need = group.peak_bytes()
    new, names = units(place / "out"), lasting(place)
    restore(place)
    return Truth(place, tree(place / "in"), old, new, names, need, _first_bytes(place, scene.arguments(place)))


def _first_bytes(place: Path, arguments: list[str]) -> int:
    said = place / "first_bytes"
    with memory_group.limited(None) as group:
        _whole(group, place, [arguments[0], "-c", MEASURED, str(said), *arguments[len(command()) :]])
    return 1024 * int(said.read_text())


def keep(place: Path) -> None:
    for part in WRITTEN:
        shutil.copytree(place / part, place / "template" / part, symlinks=True)


def restore(place: Path) -> None:
    """Make a place what every run begins with."""
    for part in WRITTEN:
        shutil.rmtree(place / part)
        shutil.copytree(place / "template" / part, place / part, symlinks=True)


def _whole(group: memory_group.Group, place: Path, arguments: list[str]) -> None:
    ended = group.run(arguments, environment(place), place / "work")
    if ended.returncode:
        raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")


def lasting(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for part in LASTING for path in (place / part).rglob("*")}


def run_at(truth: Truth, arguments: list[str], limit: int, seen_bytes: int | None = None) -> Ended:
    """Run with a limit; ``seen_bytes`` is the one that the command reads."""
    with memory_group.limited(limit) as group:
        seen = None
        if seen_bytes is not None:
            seen = truth.place / "seen"
            seen.write_text(f"{seen_bytes}\n")
        return group.run(arguments, environment(truth.place), truth.place / "work", seen)


def tried(scene: Scene, truth: Truth, percent: int) -> Point:
    """Run with a limit and look at what it says and leaves."""
    place, arguments = truth.place, scene.arguments(truth.place)
    limit = truth.need_bytes * percent // 100
    restore(place)
    ended = run_at(truth, arguments, limit)
    lost, wrong = list(_lost(truth, ended)), []
    leaked = list(leaks(place, ended, SECRET))
    leaked += [f"left behind: {name}" for name in sorted(lasting(place) - truth.names)]
    if ended.returncode > 0:
        wrong += said_badly(ended, frozenset({REFUSED, KILLED}))
    # Where it is the larger one, the first process is what the kernel ends, and nobody is left to say anything.
    if ended.returncode < 0 and limit > 2 * truth.first_bytes:
        wrong.append("it was killed and said nothing")
    if ended.returncode == KILLED and _said_yes(truth, arguments, ended, limit):
        wrong.append(f"it was to fit, and was killed: {_error(ended)}")
    if ended.returncode == REFUSED and _would_fit(truth, arguments, ended, limit):
        wrong.append(f"it was refused, and fits with a fifth less: {_error(ended)}")
    megabytes = f"{limit / 1e6:.0f} of {truth.need_bytes / 1e6:.0f} MB"
    return Point(scene.name, "M1", percent, megabytes, ended.returncode, lost, leaked, wrong)


def _lost(truth: Truth, ended: Ended) -> Iterator[str]:
    try:
        now = units(truth.place / "out")
    except (ValueError, OSError, KeyError) as error:
        yield f"not whole: {error}"
        return
    for name in now.keys() | truth.old.keys() | truth.new.keys():
        if now.get(name) not in (truth.old.get(name), truth.new.get(name)):
            yield f"{name} is neither the old nor the new one"
    if ended.returncode == 0 and now != truth.new:
        yield "exit code 0, and something is missing"
    if tree(truth.place / "in") != truth.inputs:
        yield "an input was changed"


def _error(ended: Ended) -> str:
    match = re.search(r"^error: .*", ended.stderr, re.MULTILINE)
    return match[0] if match else ended.stderr[-200:]


def _said_yes(truth: Truth, arguments: list[str], ended: Ended, limit: int) -> bool:
    """Whether the forecast of a run that was killed said that it fits."""
    verb = arguments[3]
    if verb in ("compress", "run"):
        return run_at(truth, [*arguments, "--dry-run"], limit).returncode == 0
    # A search asks before its first stage.
    return verb == "search" and "in stage '" in ended.stderr


def _would_fit(truth: Truth, arguments: list[str], ended: Ended, limit: int) -> bool:
    """Whether a run that was refused comes to its end with a fifth less, where it reads a limit that it takes."""
    sizes = [float(size) for size in re.findall(r"(\d+\.\d+) GB", _error(ended))]
    restore(truth.place)
    told = limit + int(1e9 * (max(sizes) - min(sizes))) + 120_000_000
    return run_at(truth, arguments, int(limit / MARGIN), told).returncode == 0


def main() -> None:
    """Sweep, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", nargs="*", choices=[scene.name for scene in SCENES], help="default: all")
    parser.add_argument("--every", type=int, default=1, help="of the limits")
    parser.add_argument("--at", type=int, help="this limit alone, in per cent")
    add_arguments(parser)
    args = parser.parse_args()
    if reason := memory_group.why_not():
        sys.exit(f"not swept: {reason}")
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    for scene in SCENES:
        percents = [args.at] if args.at else range(100, 0, -STEP * args.every)
        left = [each for each in percents if not points.has_survived(scene.name, "M1", each)]
        if not left or (args.scene and scene.name not in args.scene) or time.monotonic() > deadline:
            continue
        with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
            truth = begun(Path(folder), scene)
            print(f"{scene.name}: {truth.need_bytes / 1e6:.0f} MB", flush=True)
            for percent in left:
                if time.monotonic() < deadline:
                    points.add(tried(scene, truth, percent))
    print(table(points.all))


if __name__ == "__main__":
    main()
