"""Large allocations that get no memory, one after another, in each of the swept commands.

    PYTHONPATH=tests python tests/faults/allocations.py --every 40
    PYTHONPATH=tests python tests/faults/allocations.py --scene train --fault M2 --at 37   # one point again

A run may end well, where a library does without, or say that it got no more memory (exit code 10).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import interception
from points import Points, add_arguments, table
from scenes import SCENES, Scene
from sweep import Fault, Sweep, begun, tried, warm_up

SOURCE = Path(__file__).with_name("allocations.c")
LARGE_BYTES = 100_000
SWEPT = {"compress", "compress by a kept graph", "import a GGUF file", "train", "search", "eval"}
CODES = frozenset({10})
FAULTS = (
    Fault("M2-once", "one allocation is refused", "memory"),
    Fault("M2", "no allocation is granted any more", "memory", later=True),
)


def counted(scene: Scene) -> Scene:
    """A scene whose allocations are counted, and which may end for nothing else."""
    return scene._replace(arguments=_with_size(scene.arguments), codes=CODES)


def _with_size(arguments: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    return lambda place: ["env", f"FAULTS_LARGE={LARGE_BYTES}", *arguments(place)]


def main() -> None:
    """Sweep, and print the counts."""
    names = [scene.name for scene in SCENES if scene.name in SWEPT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", nargs="*", choices=names, help="default: all")
    parser.add_argument("--fault", nargs="*", choices=[fault.name for fault in FAULTS], help="default: all")
    parser.add_argument("--every", type=int, default=1, help="of the allocations")
    parser.add_argument("--at", type=int, help="this allocation alone")
    add_arguments(parser)
    args = parser.parse_args()
    if reason := interception.why_not():
        sys.exit(f"not swept: {reason}")
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        library, warm = interception.build(Path(folder), SOURCE), Path(folder) / "warm"
        warm_up(Path(folder) / "first", warm)
        for number, scene in enumerate(SCENES):
            if scene.name not in (args.scene or names) or time.monotonic() > deadline:
                continue
            sweep = Sweep(counted(scene), Path(folder) / f"place-{number}", library)
            truth = begun(sweep, warm)
            print(f"{scene.name}: {len(truth.calls)} allocations", flush=True)
            called = (
                truth.calls[args.every - 1 :: args.every] if args.at is None else truth.calls[args.at - 1 : args.at]
            )
            for fault in FAULTS:
                for call in called:
                    is_left = (not args.fault or fault.name in args.fault) and time.monotonic() < deadline
                    if is_left and not points.has_survived(scene.name, fault.name, call.number):
                        points.add(tried(sweep, truth, fault, call))
            shutil.rmtree(sweep.place)
    print(table(points.all))


if __name__ == "__main__":
    main()
