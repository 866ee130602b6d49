"""Do our speeds agree with OpenVINO GenAI's own? And what its prefix cache does to a repeated prompt.

Both runtimes run the same IR on both backends, stateful and paged, each in a process of its own, runs in turn
(A B C D A B C D ...); the ratio of decode and prefill rates, ours over `LLMPipeline`'s PerfMetrics on the same backend,
is to be within 5 % of 1 on a quiet machine. Our loop is inference and nothing else, so both clocks of PerfMetrics stand
next to it: the moments of the tokens, and what of them was inference (`token_infer_durations`). Then the pipeline
alone, the same prompt twice, prefix caching off and on.

    python benchmarks/bench_fidelity.py
    python benchmarks/bench_fidelity.py --source ../shared/models/ref-llama-8m --runs 15
    python benchmarks/bench_fidelity.py --layers 8 --hidden 1024 --intermediate 2816 --recipes int4
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import get_args

from generated_llama import body_arguments, generate
from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.genai_runtime import GenaiRuntime
from llmcompress.benchmarking.ratios import paired_ratio
from llmcompress.benchmarking.timing import decode_tokens_per_s, prefill_tokens_per_s, ttft_s
from llmcompress.spec.benchmark import RuntimeName, Shape
from llmcompress.spec.evaluation import Backend

TOLERANCE = 0.05


def compare(directory: Path, shape: Shape, runs: int) -> list[dict[str, object]]:
    """Rates of both runtimes on both backends, in turn."""
    keys = list(itertools.product(get_args(Backend), get_args(RuntimeName)))
    rates: dict[tuple[str, str], dict[str, list[float]]] = {key: defaultdict(list) for key in keys}
    with contextlib.ExitStack() as stack:
        clients = {
            (backend, runtime): stack.enter_context(Client(directory, runtime, name=runtime, backend=backend))
            for backend, runtime in keys
        }
        for client in clients.values():
            client.open("CPU", {})
        for number in range(runs + 1):
            for key, client in clients.items():
                run = client.run(shape, number)
                if number:
                    found = rates[key]
                    found["prefill"].append(prefill_tokens_per_s(run, shape.batch_size, shape.prompt_tokens))
                    found["decode"].append(decode_tokens_per_s(run, shape.batch_size))
                    if run.inference_s:
                        first, *later = run.inference_s
                        found["prefill, inference"].append(shape.prompt_tokens / first)
                        found["decode, inference"].append(len(later) / sum(later))
    return [
        _line(backend, clock, rates[backend, "openvino"][figure], rates[backend, "genai"][figure + clock])
        | {"figure": figure}
        for backend in get_args(Backend)
        for figure in ("prefill", "decode")
        for clock in ("", ", inference")
    ]


def _line(backend: str, clock: str, mine: list[float], theirs: list[float]) -> dict[str, object]:
    ratio = paired_ratio(mine, theirs, 0.95)
    return {
        "backend": backend,
        "clock": "inference" if clock else "tokens",
        "openvino_tokens_per_s": statistics.median(mine),
        "genai_tokens_per_s": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        "interval": [ratio.low, ratio.high],
        "raw": [mine, theirs],
    }


def repeated_prompt(directory: Path, shape: Shape) -> dict[str, float]:
    """Time to first token of a prompt that was seen before, without and with the pipeline's prefix cache."""
    found = {}
    for name, caching in (("off", False), ("on", True)):
        engine = GenaiRuntime(directory)
        engine.open("CPU", {}, prefix_caching=caching)
        engine.run(shape, 0)
        found[name] = statistics.median(ttft_s(engine.run(shape, 0)) for _ in range(3))
        engine.close()
    return found


def main() -> None:
    """Run both comparisons for each recipe and print tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 5 GB)")
    parser.add_argument("--source", type=Path, default=None, help="a checkpoint instead of a generated body")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["int8", "int4"])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    body_arguments(parser)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    shape = Shape(1, 0, args.prompt_tokens, args.new_tokens)
    table = Table(
        "recipe", "backend", "figure", "GenAI's clock", "ours tokens/s", "GenAI tokens/s", "ratio", "", "within 5 %"
    )
    cache = Table("recipe", "ttft of a repeated prompt, prefix cache off", "on")
    results = []
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-bench-") as folder:
        checkpoint = args.source or generate(
            Path(folder) / "checkpoint", layers=args.layers, hidden=args.hidden, intermediate=args.intermediate
        )
        for recipe in args.recipes:
            output = Path(folder) / recipe
            llmcompress.compress(checkpoint, recipe, output)
            for found in compare(output, shape, args.runs):
                results.append({"recipe": recipe, **found})
                ratio, interval = found["ratio"], found["interval"]
                assert isinstance(ratio, float)
                assert isinstance(interval, list)
                table.add_row(
                    recipe,
                    str(found["backend"]),
                    str(found["figure"]),
                    str(found["clock"]),
                    f"{found['openvino_tokens_per_s']:.4g}",
                    f"{found['genai_tokens_per_s']:.4g}",
                    f"{ratio:.3f}",
                    "[{:.3f}, {:.3f}]".format(*interval),
                    "yes" if abs(ratio - 1) <= TOLERANCE else "no",
                )
            repeated = repeated_prompt(output, shape)
            results.append({"recipe": recipe, "figure": "ttft_s of a repeated prompt", **repeated})
            cache.add_row(recipe, f"{repeated['off']:.3f} s", f"{repeated['on']:.3f} s")
    for each in (table, cache):
        Console(width=120).print(each)
    print(
        json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "results": results})
    )


if __name__ == "__main__":
    main()
