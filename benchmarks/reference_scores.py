"""Ways to score a reference: KL divergence, time and own memory of an evaluation by each, in turn.

Both models at once; one after the other, with the reference's logits rounded on disk; and with its likeliest tokens
kept, which gives a lower bound. The artifact is made first, the cache is empty each time.

    python benchmarks/reference_scores.py CHECKPOINT --text wikitext2-test-part1.txt
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from compress import memory_meanwhile
from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.report.estimate import interval_text
from llmcompress.report.evaluation import EvalReport

WAYS = ("exact", "rounded", "cached")


def main() -> None:
    """Evaluate one artifact by each way, and print a table and a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint")
    parser.add_argument("--recipe", default="int4-sym")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--num-windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    table = Table("reference scores", "KL divergence", "s", "peak own memory, GB")
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        artifact = Path(folder) / "artifact"
        llmcompress.compress(args.source, args.recipe, artifact)
        options = {"reference": args.source, "dataset": args.text, "num-windows": args.num_windows}
        options |= {"seq-len": args.seq_len, "precision": "pinned", "backend": "stateful"}
        command = [sys.executable, "-m", "llmcompress", "eval", str(artifact)]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        for way in args.ways:
            os.environ["LLMCOMPRESS_CACHE"] = str(Path(folder) / f"cache-{way}")
            started = time.perf_counter()
            samples = memory_meanwhile([*command, "--reference-scores", way], Path(folder) / "log")
            seconds, peak = time.perf_counter() - started, max(own for _, own in samples)
            found = EvalReport.model_validate_json((artifact / "eval.json").read_text()).divergence
            assert found is not None
            line = {"way": way, "kl": found.kl_divergence.value, "s": seconds, "peak_own_bytes": peak}
            print(json.dumps(line), flush=True)
            table.add_row(way, interval_text(found.kl_divergence, ".5g"), f"{seconds:.1f}", f"{peak / 1e9:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
