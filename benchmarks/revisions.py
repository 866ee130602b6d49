"""Two versions of llmcompress against each other, as whole processes in turn: import, help, compress, eval, bench.

Give the checkout of the earlier version; this script's own is the other one. Both run with the same libraries.

    git worktree add /tmp/earlier REVISION
    python benchmarks/revisions.py /tmp/earlier --checkpoint CHECKPOINT --text TEXT
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def cases(work: Path, checkpoint: Path, text: Path) -> dict[str, list[str]]:
    """Name the commands, each as arguments of Python; the later ones read what `compress` wrote."""
    command = ["-m", "llmcompress"]
    scored = ["--dataset", str(text), "--seq-len", "256", "--num-windows", "16"]
    return {
        "import llmcompress": ["-c", "import llmcompress"],
        "--help": [*command, "--help"],
        "compress --help": [*command, "compress", "--help"],
        "compress -r int4": [
            *command,
            "compress",
            str(checkpoint),
            "-r",
            "int4",
            "-o",
            str(work / "int4"),
            "--overwrite",
        ],
        "eval": [*command, "eval", str(work / "int4"), "--reference", str(checkpoint), *scored],
        "bench": [*command, "bench", str(work / "int4"), "-p", "64", "-n", "32", "-r", "5"],
    }


def time_s(checkout: Path, arguments: list[str], log: Path) -> float:
    """Run a command on a checkout's code; return the seconds it took.

    Raises:
        SystemExit: It failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with log.open("ab") as lines:
        done = subprocess.run([sys.executable, *arguments], env=environment, cwd=log.parent, stdout=lines, stderr=lines)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(arguments)} failed on {checkout}; its output:\n{log.read_text(errors='replace')[-2000:]}"
        )
    return time.perf_counter() - started


def main() -> None:
    """Run every case in turn on both, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path, help="checkout of the earlier version")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each side, after one that is not counted")
    args = parser.parse_args()
    table = Table("case", "earlier, s", "now, s", "now / earlier", title=f"medians of {args.runs} runs in turn")
    with tempfile.TemporaryDirectory(prefix="llmcompress-revisions-") as folder:
        log = Path(folder) / "log"
        for name, arguments in cases(Path(folder), args.checkpoint.resolve(), args.text.resolve()).items():
            pairs = [
                (time_s(args.earlier.resolve(), arguments, log), time_s(ROOT, arguments, log))
                for _ in range(args.runs + 1)
            ][1:]
            earlier, now = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(new / old for old, new in pairs)
            table.add_row(name, f"{earlier:.2f}", f"{now:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
