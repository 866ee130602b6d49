"""The smallest memory limit under which `llmcompress compress` and `optimum-cli export openvino` still complete.

Each run gets a control group of its own with a limit on its memory, page cache included; the limit is halved in on to
`--step`. Needs Linux and the right to make control groups (root). Swap, where the machine has any, is not limited.

    python benchmarks/memory.py                     # 1.1 B parameters, bf16, generated; int4
    python benchmarks/memory.py --recipes int4 int8 --layers 8 --hidden 1024 --intermediate 2816
    python benchmarks/memory.py --recipes int4-sym --sides llmcompress kept    # on the whole way, and by a kept graph
    python benchmarks/memory.py --data-aware int4-awq-se --text TEXT --step 500 --most 6000

A data-aware recipe goes by 8 windows of 128 tokens, with a cache of its own, whose statistics are collected each time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from compress import BIN, RECIPES, generated, ours, shape_arguments, theirs
from rich.console import Console
from rich.table import Table

from llmcompress.system.memory import ControlGroup, control_groups

LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
SIDES: dict[str, Callable[[Path, Path, str], list[str]]] = {
    "llmcompress": ours,
    "kept": functools.partial(ours, graph_cache=True),
    "optimum-cli": theirs,
}
WINDOWS = {"num_samples": 8, "seq_len": 128}
KILLED_FOR_MEMORY = {3, 10, 137, -9}
"""Exit codes: refused beforehand, or killed."""


@contextlib.contextmanager
def limited(parent: ControlGroup, limit_bytes: int) -> Iterator[Path]:
    """A new control group with a limit; everything in it has ended when the context does."""
    directory = parent.directory / f"llmcompress-{os.getpid()}"
    directory.mkdir()
    (directory / LIMIT[parent.version]).write_text(str(limit_bytes))
    try:
        yield directory
    finally:
        while (directory / "cgroup.procs").read_text():
            time.sleep(0.1)
        directory.rmdir()


def completes(command: list[str], output: Path, parent: ControlGroup, log: Path, limit_mb: int) -> bool:
    """Whether a command reaches its end under a limit.

    Raises:
        SystemExit: It ended by something that is no want of memory.
    """
    for left in (output, output.with_name("cache") / "statistics"):
        shutil.rmtree(left, ignore_errors=True)
    started = time.perf_counter()
    with limited(parent, limit_mb * 1_000_000) as group, log.open("ab") as lines:
        done = subprocess.run(["sh", "-c", ENTER, str(group), *command], stdout=lines, stderr=lines)
    took_s = time.perf_counter() - started
    print(f"{Path(command[0]).name} {limit_mb} MB: exit {done.returncode}, {took_s:.0f} s", file=sys.stderr)
    if done.returncode not in {0, *KILLED_FOR_MEMORY}:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}; its output is in {log}")
    return done.returncode == 0


def smallest(passes: Callable[[int], bool], low: int, high: int, step: int) -> int | None:
    """The smallest multiple of ``step`` that passes, between one that is taken to fail and one that is tried first."""
    if not passes(high):
        return None
    while high - low > step:
        middle = (low + high) // 2 // step * step
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def data_aware(text: Path, source: Path, output: Path, recipe: str) -> list[str]:
    """Our command line for a recipe that goes by a text."""
    changes = [f"calibration.{name}={value}" for name, value in {"dataset": text, **WINDOWS}.items()]
    options = [part for change in changes for part in ("--set", change)]
    return [str(BIN / "llmcompress"), "compress", str(source), "-r", recipe, *options, "-o", str(output)]


def main() -> None:
    """Run the search for both tools and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 8 GB)")
    parser.add_argument("--recipes", nargs="*", default=["int4"], choices=sorted(RECIPES))
    parser.add_argument("--data-aware", metavar="RECIPE", help="a packaged recipe, in the place of those without data")
    parser.add_argument("--text", type=Path, help="its calibration text")
    parser.add_argument("--sides", nargs="+", default=["llmcompress", "optimum-cli"], choices=sorted(SIDES))
    parser.add_argument("--step", type=int, default=100, metavar="MB")
    parser.add_argument("--most", type=int, default=2400, metavar="MB", help="the largest limit that is tried")
    shape_arguments(parser)
    args = parser.parse_args()
    if args.data_aware:
        if args.text is None:
            parser.error("--data-aware needs --text")
        SIDES["llmcompress"] = functools.partial(data_aware, args.text)
        args.recipes, args.sides = [args.data_aware], ["llmcompress"]
    parent = control_groups()[0]
    results = []
    with generated(args) as (source, work):
        for recipe in args.recipes:
            found: dict[str, int | None] = {}
            for name in args.sides:
                output, log = work / "output", work / f"{name}.log"
                command = SIDES[name](source, output, recipe)
                if name == "kept":
                    subprocess.run(command, check=True, capture_output=True)
                passes = functools.partial(completes, command, output, parent, log)
                found[name] = smallest(passes, 0, args.most, args.step)
                shutil.rmtree(output, ignore_errors=True)
            results.append({"case": recipe, "smallest_limit_mb": found})
    table = Table("recipe", *args.sides, title="smallest limit in MB")
    for result in results:
        limits = result["smallest_limit_mb"]
        assert isinstance(limits, dict)
        table.add_row(str(result["case"]), *(str(limit or f"more than {args.most}") for limit in limits.values()))
    Console().print(table)
    machine = platform.processor() or platform.machine()
    print(json.dumps({"machine": machine, "step_mb": args.step, "results": results}))


if __name__ == "__main__":
    main()
