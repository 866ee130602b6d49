"""Do quantized activations pay where prompts are computed? Uncompressed, int8 weights, int8 activations, in turn.

`llmcompress bench` on all of them; prints the table of the README.

    python benchmarks/prefill.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from generated_llama import TOKENIZER, generate

import llmcompress

BIN = Path(sys.executable).parent
TEXT = TOKENIZER / "heldout.txt"
DATA = (f"calibration.dataset={TEXT}", "calibration.num_samples=8", "calibration.seq_len=128")
"""Random weights have no language to measure: a few windows give ranges to work with."""


def main() -> None:
    """Make the models, say what is executed in 8 bits, and run the benchmark on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 8 GB)")
    parser.add_argument("--recipes", nargs="+", default=["none", "int8", "int8-ptq"])
    parser.add_argument("--prompt-tokens", default="512,1024")
    parser.add_argument("--format", default="markdown")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-bench-") as folder:
        checkpoint = generate(
            Path(folder) / "checkpoint", layers=args.layers, hidden=args.hidden, intermediate=args.intermediate
        )
        loaded = llmcompress.load(checkpoint)
        outputs = [Path(folder) / recipe for recipe in args.recipes]
        for name, output in zip(args.recipes, outputs, strict=True):
            recipe = llmcompress.load_recipe(name, DATA if name.endswith("ptq") else ())
            report = llmcompress.compress(loaded, recipe, output)
            print(f"{name}: peak memory so far {report.measured.peak_rss_bytes / 1e9:.2f} GB", flush=True)
            if report.activations is not None:
                print(f"{name}: executed as {report.activations.executed}", flush=True)
        del loaded
        command = [BIN / "llmcompress", "bench", *outputs, "-p", args.prompt_tokens, "-n", "8", "-r", "5"]
        subprocess.run([*map(str, command), "--format", args.format], check=True)


if __name__ == "__main__":
    main()
