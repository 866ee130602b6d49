"""What a search gives back: KL divergence of searched plans against one format for all at no more bytes.

For each size a uniform recipe is made, and a search is given its bytes as the limit. Sensitivity and verdict come from
different windows of one text; every contender is scored on the same windows, pinned to f32.

    python benchmarks/search.py --source ../shared/models/ref-llama-8m --text ../shared/data/wikitext2-test-part1.txt
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.report.text import interval_text
from llmcompress.searching.candidates import uniform
from llmcompress.spec import Recipe
from llmcompress.spec.search import Format

SIZES = ("int2_sym:64", "int2_sym:32", "int4_sym:128", "int4_asym:128", "int4_sym:64", "int4_asym:64", "int4_asym:32")


def main() -> None:
    """Search at each size, and print a table and one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="text for sensitivity and verdict")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="uniform formats whose bytes are the limits")
    parser.add_argument("--num-windows", type=int, default=32)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    table = Table("bytes of", "MB", "best other", "its KL", "searched KL", "ratio", "predicted", "s")
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        for text in args.sizes:
            mode, _, group_size = text.partition(":")
            recipe = Recipe(name="uniform", weights=uniform(Format(mode, int(group_size or -1))))
            directory, started = Path(folder) / text.replace(":", "-"), time.perf_counter()
            llmcompress.compress(args.source, recipe, directory, tokenizer=False)
            limit, made = (directory / "openvino_model.bin").stat().st_size, time.perf_counter()
            spec = llmcompress.SearchSpec(max_bytes=limit, dataset=str(args.text), num_windows=args.num_windows)
            report = llmcompress.search(args.source, spec, directory.with_suffix(".searched"))
            seconds = time.perf_counter() - made
            plan, *others = report.contenders
            best = min(others, key=lambda each: each.kl_divergence.value)
            ratio = plan.kl_divergence.value / best.kl_divergence.value
            line = {"limit_of": text, "made_s": made - started, "ratio": ratio, **report.model_dump(mode="json")}
            print(json.dumps({name: line[name] for name in line if name not in ("weights", "measured")}), flush=True)
            table.add_row(
                text,
                f"{limit / 1e6:.2f}",
                best.name,
                interval_text(best.kl_divergence, ".3g"),
                interval_text(plan.kl_divergence, ".3g"),
                f"{ratio:.2f}",
                f"{plan.predicted_kl:.3g}",
                f"{seconds:.0f}",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
