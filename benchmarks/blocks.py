"""What `training.method: blocks` takes on a large model: time by layer, and peak memory next to GPTQ's of ours.

A few layers of a real shape with random weights are compressed by GPTQ and learned by blocks, each in a process of its
own. The table holds the time of a layer, that time for as many layers as the whole model has, by the clock and by the
processor (of one thread the same on a quiet machine), and the peak memory of each process with their ratio. The values
of the weights are random: nothing here is about quality.

    python benchmarks/blocks.py --text TRAIN.txt                       # four layers of 1.1 B parameters
    python benchmarks/blocks.py --text TRAIN.txt --layers 22 --num-steps 200
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated_llama import body_arguments, generate
from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.report.text import duration_text, size_text
from llmcompress.spec import Calibration, Recipe, Training, WeightCompression
from llmcompress.system.progress import Progress

WHOLE = 22
"""Layers of the model of 1.1 B parameters."""


def recipe_of(side: str, args: argparse.Namespace) -> Recipe:
    """The recipe of one side."""
    text = {"dataset": str(args.text), "num_samples": args.num_samples, "seq_len": args.seq_len}
    if side == "gptq":
        weights = WeightCompression(mode="int4_asym", group_size=128, gptq=True)
        return Recipe(name=side, weights=weights, calibration=Calibration(**text))
    training = Training(
        method="blocks",
        num_steps=args.num_steps,
        batch_size=args.batch_size,
        num_validation_samples=args.num_validation_samples,
        **text,
    )
    return Recipe(name=side, weights=WeightCompression(mode="int4_asym", group_size=128), training=training)


def measure(side: str, source: Path, args: argparse.Namespace) -> None:
    """Compress in this process, and print what that took as JSON."""
    ends: list[tuple[float, float]] = []

    def note(progress: Progress) -> None:
        if progress.stage == "train layers":
            ends.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        report = llmcompress.compress(source, recipe_of(side, args), Path(folder) / "out", progress=note)
    print(
        json.dumps(
            {
                "side": side,
                "peak_rss_bytes": report.measured.peak_rss_bytes,
                "stages": {each.stage: [each.duration_s, each.peak_rss_bytes] for each in report.measured.stages},
                "layers_s": [later[0] - sooner[0] for sooner, later in itertools.pairwise(ends)],
                "layers_processor_s": [later[1] - sooner[1] for sooner, later in itertools.pairwise(ends)],
            }
        )
    )


def main() -> None:
    """Measure both sides, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="to calibrate with and to train on")
    parser.add_argument("--work", type=Path, help="where the checkpoint is kept for the next time")
    body_arguments(parser)
    parser.set_defaults(layers=4)
    parser.add_argument("--num-samples", type=int, default=128)
    parser.add_argument("--num-validation-samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--num-steps", type=int, default=20, help="of each layer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--side", choices=("gptq", "blocks"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        work = args.work or Path(folder)
        os.environ["LLMCOMPRESS_CACHE"] = str(work / "cache")
        shape = {"layers": args.layers, "hidden": args.hidden, "intermediate": args.intermediate}
        source = generate(work / f"llama-{args.layers}x{args.hidden}", **shape)
        if args.side:
            measure(args.side, source, args)
            return
        results = {}
        for side in ("gptq", "blocks"):
            command = [sys.executable, __file__, *sys.argv[1:], "--work", str(work), "--side", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[side] = json.loads(done.stdout.splitlines()[-1])
            print(done.stdout.splitlines()[-1], file=sys.stderr)
    gptq, blocks = (results[side]["peak_rss_bytes"] for side in ("gptq", "blocks"))
    each_s, processor_s = (statistics.mean(results["blocks"][name]) for name in ("layers_s", "layers_processor_s"))
    steps = f"{args.num_steps} steps of {args.batch_size} x {args.seq_len}"
    table = Table("", "", title=f"{args.layers} layers of {args.hidden}, {steps}")
    table.add_row("a layer after the first", f"{duration_text(each_s)}, of the processor {duration_text(processor_s)}")
    whole, of_processor = (duration_text(WHOLE * each) for each in (each_s, processor_s))
    table.add_row(f"{WHOLE} layers, extrapolated", f"{whole}, of the processor {of_processor}")
    table.add_row("peak memory, blocks", size_text(blocks))
    table.add_row("peak memory, GPTQ", size_text(gptq))
    table.add_row("ratio", f"{blocks / gptq:.2f}")
    Console(width=120).print(table)
    machine = platform.processor() or platform.machine()
    print(json.dumps({"machine": machine, "cores": os.cpu_count(), "results": list(results.values())}))


if __name__ == "__main__":
    main()
