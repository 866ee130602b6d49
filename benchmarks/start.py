"""What a change costs a command's start: another checkout of llmcompress and this one, in turn.

Both run the same dry run of the bundled checkpoint, which needs no layer of transformers: everything from the start of
Python to the report, with all imports of a real run but NNCF's. Medians of processor and wall time, and the median
ratio of runs that followed one another.

    git worktree add ../before main
    python benchmarks/start.py --before ../before
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[1]


class Took(NamedTuple):
    """What one run took."""

    processor_s: float
    wall_s: float


def run(tree: Path, output: Path) -> Took:
    """Run the command of one checkout."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    source = tree / "llmcompress" / "cli" / "demo_checkpoint"
    subprocess.run(
        [sys.executable, "-P", "-m", "llmcompress", "compress", source, "-r", "int8", "-o", output, "--dry-run"],
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(processor_s, time.perf_counter() - started)


def main() -> None:
    """Run both in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = (args.before.resolve(), HERE)
        for tree in trees:  # files come into memory, modules are compiled
            run(tree, Path(folder) / "out")
        rounds = [[run(tree, Path(folder) / "out") for tree in trees] for _ in range(args.rounds)]
    for field in Took._fields:
        before, here = ([getattr(each[side], field) for each in rounds] for side in (0, 1))
        ratios = [after / first for first, after in zip(before, here, strict=True)]
        print(
            f"{field}: before {statistics.median(before):.2f}, here {statistics.median(here):.2f}, "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
