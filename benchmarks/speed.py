"""Uncompressed, int8 and int4 of one generated model: size, speed with intervals, share of what memory allows.

`llmcompress bench` on all of them, runs in turn; prints the table of docs/benchmarks.md.

    python benchmarks/speed.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from generated_llama import body_arguments, generate

import llmcompress

BIN = Path(sys.executable).parent


def compare(
    args: argparse.Namespace, make: Callable[[llmcompress.LoadedModel, str, Path], object], options: Sequence[str]
) -> None:
    """Generate a checkpoint, make a model of it by each of ``args.recipes``, and run the benchmark on them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-bench-") as folder:
        checkpoint = generate(
            Path(folder) / "checkpoint", layers=args.layers, hidden=args.hidden, intermediate=args.intermediate
        )
        loaded = llmcompress.load(checkpoint)
        outputs = [Path(folder) / recipe for recipe in args.recipes]
        for recipe, output in zip(args.recipes, outputs, strict=True):
            make(loaded, recipe, output)
        del loaded
        command = [BIN / "llmcompress", "bench", *outputs, *options, "--format", args.format]
        subprocess.run(list(map(str, command)), check=True)


def main() -> None:
    """Make the models and run the benchmark on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 7 GB)")
    parser.add_argument("--recipes", nargs="+", default=["none", "int8", "int4-sym"])
    parser.add_argument("--format", default="markdown")
    body_arguments(parser)
    compare(parser.parse_args(), llmcompress.compress, ["-p", "512", "-n", "64", "-r", "5"])


if __name__ == "__main__":
    main()
