"""What a change costs a command's start: another checkout of llmcompress and this one, in turn.

Both run the same dry run of the bundled checkpoint, which needs no layer of transformers: everything from the start of
Python to the report, with all imports of a real run but NNCF's. Medians of processor and wall time, and the median
ratio of runs that followed one another.

With --first-line, how long a compression takes to its first line on a terminal and to its end, on the whole way and by
a kept graph.

    git worktree add ../before main
    python benchmarks/start.py --before ../before
    python benchmarks/start.py --first-line
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
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


class Shown(NamedTuple):
    """When a run showed something, and when it ended."""

    first_line_s: float
    end_s: float


def on_a_terminal(tree: Path, output: Path, cache: Path, *, graph_cache: bool) -> Shown:
    """Compress the bundled checkpoint by the command of one checkout, with a terminal as its stderr."""
    shutil.rmtree(output, ignore_errors=True)
    source = tree / "llmcompress" / "cli" / "demo_checkpoint"
    command = [sys.executable, "-P", "-m", "llmcompress", "compress", str(source), "-r", "int8", "-o", str(output)]
    ours, theirs = os.openpty()
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--graph-cache" if graph_cache else "--no-graph-cache"],
        env={**os.environ, "PYTHONPATH": str(tree), "LLMCOMPRESS_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    first = 0.0
    # The terminal's end is an error on Linux.
    with contextlib.suppress(OSError):
        while os.read(ours, 65536):
            first = first or time.perf_counter() - started
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return Shown(first, time.perf_counter() - started)


def print_shown(tree: Path, folder: Path, rounds: int) -> None:
    """Medians of a checkout."""
    cache = folder / "cache"
    for name, graph_cache in (("the whole way", False), ("a kept graph", True)):
        on_a_terminal(tree, folder / "out", cache, graph_cache=graph_cache)  # files come into memory, graphs are kept
        found = [on_a_terminal(tree, folder / "out", cache, graph_cache=graph_cache) for _ in range(rounds)]
        first, end = (statistics.median(getattr(each, field) for each in found) for field in Shown._fields)
        print(f"{tree.name}, {name}: first line after {first:.2f} s, end after {end:.2f} s")


def main() -> None:
    """Run both in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--first-line", action="store_true", help="when something is shown, in place of all else")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.first_line:
        with tempfile.TemporaryDirectory() as folder:
            print_shown(HERE, Path(folder), args.rounds)
        return
    if args.before is None:
        parser.error("give --before, or --first-line")
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
