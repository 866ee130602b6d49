"""The power fails: what a disk holds at each moment at which a run makes something last, and after its end.

    PYTHONPATH=tests python tests/faults/power.py --scene compress
    PYTHONPATH=tests python tests/faults/power.py --scene search --at 12   # one point again

The whole place lies on a disk that is an image of ext4, without the care that ext4 takes of renames, and with a commit
every five minutes. The image is copied before each fsync and rename, and each copy mounted: it holds what had reached
the disk. Points: what is in ``out`` is old or new, whole; after the end it is new; and the same command once more
recovers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import interception
from invariants import tree, units
from points import Point, Points, add_arguments, table
from scenes import SCENES, Scene
from sweep import Sweep, Truth, begun, restore, warm_up

FAULT = "K4"
SWEPT = {"compress", "compress by a kept graph", "keep a graph", "train", "search", "eval", "run a plan"}
SIZE = "160M"
CARELESS = "loop,data=writeback,noauto_da_alloc,commit=300"
COPY = "until cp --sparse=always {image} {copies}/$0 && cmp -s {image} {copies}/$0; do :; done"
"""Again until nothing was written to it meanwhile."""
AT_THE_END = 10**6


@contextmanager
def mounted(image: Path, disk: Path, options: str = "loop") -> Iterator[None]:
    """An image as a file system."""
    subprocess.run(["mount", "-o", options, str(image), str(disk)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def synced(disk: Path) -> None:
    """Have everything on a file system reach its disk."""
    subprocess.run(["sync", "--file-system", str(disk)], check=True)


def made_image(path: Path) -> Path:
    """An empty file system."""
    subprocess.run(["truncate", "-s", SIZE, str(path)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(path)], check=True)
    return path


def why_not(folder: Path) -> str:
    """Why no power can fail here; empty if it can."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        return "an image of ext4 takes root and mkfs.ext4"
    (folder / "probe").mkdir()
    try:
        with mounted(made_image(folder / "probe.img"), folder / "probe", CARELESS):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no image can be mounted: {error.stderr.decode().strip()}"


def photographed(sweep: Sweep, folder: Path) -> Path:
    """Run with the place on the disk, and return the directory of copies, each named by its call."""
    disk, image, copies = sweep.place.parent, made_image(folder / "image"), folder / "copies"
    copies.mkdir()
    with mounted(image, disk, CARELESS):
        shutil.copytree(folder / "aside", sweep.place, symlinks=True)
        synced(disk)
        ended, _ = sweep.run(copy=COPY.format(image=image, copies=copies))
        subprocess.run(["sh", "-c", COPY.format(image=image, copies=copies), str(AT_THE_END)], check=True)
    if ended.returncode:
        raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")
    image.unlink()
    return copies


def looked_at(sweep: Sweep, truth: Truth, copy: Path, *, recovers: bool) -> Point:
    """What is on a copy, and what the same command makes of it."""
    lost, wrong, returncode = list[str](), list[str](), 0
    at = int(copy.name)
    with mounted(copy, sweep.place.parent):
        try:
            found = units(sweep.place / "out")
            for name in found.keys() | truth.old.keys() | truth.new.keys():
                if found.get(name) not in (truth.old.get(name), truth.new.get(name)):
                    lost.append(f"{name} is neither the old nor the new one")
            if at == AT_THE_END and found != truth.new:
                wrong.append("exit code 0, and not everything was on the disk")
        except (ValueError, OSError, KeyError) as error:
            lost.append(f"not whole: {error}")
        if tree(sweep.place / "in") != truth.inputs:
            lost.append("an input was changed")
        if recovers:
            ended, _ = sweep.run()
            returncode = ended.returncode
            if ended.returncode:
                lost.append(f"the next run ended with {ended.returncode}: {ended.stderr.strip()[-300:]}")
            elif units(sweep.place / "out") != truth.new:
                lost.append("the next run made something else")
    where = "after the end" if at == AT_THE_END else truth.calls[at - 1].name if at <= len(truth.calls) else ""
    return Point(sweep.scene.name, FAULT, at, f"{where}, recovered" if recovers else where, returncode, lost, [], wrong)


def swept(scene: Scene, folder: Path, library: Path, warm: Path, args: argparse.Namespace, points: Points) -> None:
    """One scene; each ``every``-th copy is recovered from, all are looked at."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    sweep = Sweep(scene, disk / "place", library)
    truth = begun(sweep, warm)
    restore(sweep.place)
    shutil.rmtree(sweep.place / "template")
    shutil.move(sweep.place, folder / "aside")
    copies = sorted(photographed(sweep, folder).iterdir(), key=lambda path: int(path.name))
    print(f"{scene.name}: {len(copies)} copies", flush=True)
    for number, copy in enumerate(copies, 1):
        if args.at in (None, int(copy.name)) and not points.has_survived(scene.name, FAULT, int(copy.name)):
            recovers = number % args.every == 0 or copy is copies[-1] or args.at is not None
            points.add(looked_at(sweep, truth, copy, recovers=recovers))
        copy.unlink()


def main() -> None:
    """Sweep, and print the counts."""
    names = [scene.name for scene in SCENES if scene.name in SWEPT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", nargs="*", choices=names, help="default: all")
    parser.add_argument("--every", type=int, default=5, help="of the copies: the same command runs on it once more")
    parser.add_argument("--at", type=int, help="the copy before this call alone")
    add_arguments(parser, "command")
    args = parser.parse_args()
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        if reason := interception.why_not() or why_not(Path(folder)):
            sys.exit(f"not swept: {reason}")
        library, warm = interception.build(Path(folder)), Path(folder) / "warm"
        warm_up(Path(folder) / "first", warm)
        for number, scene in enumerate(SCENES):
            if scene.name in (args.scene or names) and time.monotonic() < deadline:
                swept(scene, Path(folder) / f"scene-{number}", library, warm, args, points)
    print(table(points.all))


if __name__ == "__main__":
    main()
