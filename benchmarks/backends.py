"""What each backend costs: the stateful graph, and the paged one that OpenVINO GenAI and Model Server run.

Each recipe's artifact of a checkpoint is evaluated against that checkpoint on both backends, in calls of the same size,
pinned (where the two are to be one model) and as used; then both are benchmarked by the OpenVINO runtime, runs in turn.
The table holds the KL divergence of each backend, the paged one's share with its interval, and medians of decode rates
with the median ratio of runs that followed one another.

    python benchmarks/backends.py --text TEXT --source ../shared/models/ref-llama-8m
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.timing import decode_tokens_per_s
from llmcompress.report.estimate import interval_text
from llmcompress.spec.benchmark import Shape

SHAPE = Shape(batch_size=1, depth=0, prompt_tokens=128, new_tokens=64)


def damage(directory: Path, source: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    """Divergences of both backends, pinned and as used."""
    lines: list[dict[str, object]] = []
    for precision in ("pinned", "as_used"):
        spec = llmcompress.EvalSpec(
            dataset=str(args.text), seq_len=args.seq_len, num_windows=args.num_windows, precision=precision
        )
        report = llmcompress.evaluate(directory, spec, reference=source)
        stateful, paged = report.backends
        share = report.backend_share
        assert stateful.divergence is not None
        assert paged.divergence is not None
        assert share is not None
        assert share.kl_divergence is not None
        lines.append(
            {
                "precision": precision,
                "stateful_kl": stateful.divergence.kl_divergence.value,
                "paged_kl": paged.divergence.kl_divergence.value,
                "share": interval_text(share.kl_divergence, "+.2g"),
                "nll": [stateful.perplexity.nll.value, paged.perplexity.nll.value],
                "served": next((c.value for c in report.gate.checks if c.name == "answers_when_served"), None),
            }
        )
    return lines


def speed(directory: Path, runs: int) -> dict[str, object]:
    """Decode rates of both backends by the OpenVINO runtime, in turn."""
    rates: dict[str, list[float]] = {"stateful": [], "paged": []}
    with (
        Client(directory, "openvino", name="stateful", backend="stateful") as stateful,
        Client(directory, "openvino", name="paged", backend="paged") as paged,
    ):
        clients = {"stateful": stateful, "paged": paged}
        for client in clients.values():
            client.open("CPU", {})
        for number in range(runs + 1):
            for name, client in clients.items():
                run = client.run(SHAPE, number)
                if number:
                    rates[name].append(decode_tokens_per_s(run, SHAPE.batch_size))
    ratio = statistics.median(b / a for a, b in zip(rates["stateful"], rates["paged"], strict=True))
    return {**{name: statistics.median(values) for name, values in rates.items()}, "ratio": ratio, "raw": rates}


def main() -> None:
    """Measure each recipe of a checkpoint, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["int8", "int4"])
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--num-windows", type=int, default=32)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    quality = Table("recipe", "precision", "KL, stateful", "KL, paged", "the paged graph's share", "served")
    rates = Table("recipe", "decode tokens/s, stateful", "paged", "ratio")
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        for recipe in args.recipes:
            output = Path(folder) / recipe
            llmcompress.compress(args.source, recipe, output)
            for line in damage(output, args.source, args):
                results.append({"recipe": recipe, **line})
                kl = (f"{line['stateful_kl']:.4g}", f"{line['paged_kl']:.4g}")
                quality.add_row(recipe, str(line["precision"]), *kl, str(line["share"]), str(line["served"]))
            found = speed(output, args.runs)
            results.append({"recipe": recipe, **found})
            rates.add_row(recipe, f"{found['stateful']:.4g}", f"{found['paged']:.4g}", f"{found['ratio']:.3f}")
    for table in (quality, rates):
        Console().print(table)
    print(
        json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "results": results})
    )


if __name__ == "__main__":
    main()
