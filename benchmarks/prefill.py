"""Do quantized activations pay where prompts are computed? Uncompressed, weights alone, activations too, in turn.

`llmcompress bench` on all of them; prints the table of docs/benchmarks.md.

    python benchmarks/prefill.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from generated_llama import body_arguments
from speed import compare

import llmcompress
from llmcompress.data.texts import BUNDLED_TEXT

TEXT = BUNDLED_TEXT
DATA = (f"calibration.dataset={TEXT}", "calibration.num_samples=8", "calibration.seq_len=128")
"""Random weights have no language to measure: a few windows give ranges to work with."""

INT4_WEIGHTS = (
    "name=int4-sym-ptq",
    "method=weights_and_activations",
    "weights.mode=int4_sym",
    "weights.group_size=128",
)
"""What ``int4-sym-ptq`` changes in ``int8-ptq``; it is no packaged recipe."""


def make(loaded: llmcompress.LoadedModel, name: str, output: Path) -> None:
    """Compress by a packaged recipe, and say what is executed in 8 bits."""
    if name == "int4-sym-ptq":
        recipe = llmcompress.load_recipe("int8-ptq", DATA + INT4_WEIGHTS)
    else:
        recipe = llmcompress.load_recipe(name, DATA if name.endswith("ptq") else ())
    report = llmcompress.compress(loaded, recipe, output)
    print(f"{name}: peak memory so far {report.measured.peak_rss_bytes / 1e9:.2f} GB", flush=True)
    if report.activations is not None:
        print(f"{name}: executed as {report.activations.executed}", flush=True)


def main() -> None:
    """Make the models and run the benchmark on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 8 GB)")
    parser.add_argument("--recipes", nargs="+", default=["none", "int8", "int8-ptq", "int4-sym", "int4-sym-ptq"])
    parser.add_argument("--prompt-tokens", default="512,1024")
    parser.add_argument("--format", default="markdown")
    body_arguments(parser)
    args = parser.parse_args()
    compare(args, make, ["-p", args.prompt_tokens, "-n", "8", "-r", "5"])


if __name__ == "__main__":
    main()
