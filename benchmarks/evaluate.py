"""Scored tokens per second: against bare inference of the same windows, and against lm-eval's OpenVINO model.

One process, one compiled model for each side, the sides in turn (A B C A B C ...); medians, and the ratio run by run.
Against bare inference: the same windows in the same batches and calls, once with our reductions and once with the plain
graph, whose logits nobody reads; llama.cpp scores half of the tokens, rolling all of them. Against
lm-evaluation-harness: the same text under rolling windows, `loglikelihood_rolling` of its `openvino` model. The body is
generated: 1.1 B parameters, int4.

    python benchmarks/evaluate.py                                     # needs the extra lm-eval
    python benchmarks/evaluate.py --layers 4 --hidden 512 --intermediate 1408 --vocabulary 32000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generated_llama import body_arguments, generate
from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.data.protocols import evaluation_windows
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.data.tokens import text_encoder
from llmcompress.evaluation.graph import add_scores, vocabulary_size
from llmcompress.evaluation.scoring import Feed, batches, calls, score
from llmcompress.graph.device import decoder_inputs, input_names
from llmcompress.loaders.resolving import resolve

TEXT = BUNDLED_TEXT


def bare(compiled: Any, feed: Feed, vocabulary: int) -> None:
    """The same batches and calls through the plain graph."""
    names = input_names(compiled)
    request = compiled.create_infer_request()
    for batch in batches(feed, vocabulary):
        request.reset_state()
        for call in calls(batch, feed.chunk):
            request.infer(decoder_inputs(batch.token_ids[:, call.start : call.end], call.start, names))


def timed(sides: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each side, in turn, after one turn that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if run:
                found[name].append(time.perf_counter() - started)
    return found


def compare(directory: Path, num_windows: int, seq_len: int, runs: int) -> list[dict[str, object]]:
    """Both comparisons on one model."""
    import openvino as ov
    from lm_eval.api.instance import Instance
    from lm_eval.models.optimum_lm import OptimumLM

    text = TEXT.read_text(encoding="utf-8")
    encoder = text_encoder(resolve(directory))
    texts = {"llama.cpp": text, "rolling": text[: num_windows * seq_len * 3]}
    feeds = {}
    for protocol, part in texts.items():
        spec = llmcompress.EvalSpec(
            dataset=str(TEXT),
            protocol=protocol,
            seq_len=seq_len,
            num_windows=num_windows if protocol == "llama.cpp" else "all",
        )
        feeds[protocol] = Feed(evaluation_windows([part], spec, encoder), seq_len)
    core = ov.Core()
    plain = core.read_model(directory / "openvino_model.xml")
    vocabulary = vocabulary_size(plain)
    compiled_plain = core.compile_model(plain, "CPU")
    scoring = core.read_model(directory / "openvino_model.xml")
    add_scores(scoring, "nll")
    compiled = core.compile_model(scoring, "CPU")
    harness = OptimumLM(pretrained=str(directory), device="cpu", max_length=seq_len)

    def ours(protocol: str) -> None:
        for _ in score(compiled, feeds[protocol], batches(feeds[protocol], vocabulary)):
            pass

    def theirs() -> None:
        harness.loglikelihood_rolling(
            [Instance("loglikelihood_rolling", {}, (texts["rolling"],), 0)], disable_tqdm=True
        )

    results = []
    for protocol, name, other in (
        ("llama.cpp", "bare inference", lambda: bare(compiled_plain, feeds["llama.cpp"], vocabulary)),
        ("rolling", "bare inference", lambda: bare(compiled_plain, feeds["rolling"], vocabulary)),
        ("rolling", "lm-eval", theirs),
    ):
        seconds = timed({"ours": lambda protocol=protocol: ours(protocol), name: other}, runs)
        tokens = feeds[protocol].windows.record.num_scored_tokens
        results.append(
            {
                "vocabulary": vocabulary,
                "against": name,
                "protocol": protocol,
                "scored_tokens": tokens,
                "ours_tokens_per_s": tokens / statistics.median(seconds["ours"]),
                "other_tokens_per_s": tokens / statistics.median(seconds[name]),
                "ratio": statistics.median(b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)),
                "raw_s": seconds,
            }
        )
    return results


def main() -> None:
    """Run both comparisons for each vocabulary and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoints and outputs go (about 8 GB)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 128000])
    parser.add_argument("--num-windows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    body_arguments(parser)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-bench-") as folder:
        for vocabulary in args.vocabulary:
            checkpoint = generate(
                Path(folder) / f"checkpoint-{vocabulary}",
                layers=args.layers,
                hidden=args.hidden,
                intermediate=args.intermediate,
                vocabulary=vocabulary,
            )
            output = Path(folder) / f"int4-{vocabulary}"
            # Random weights of another vocabulary than the tokenizer's: only their sizes matter here.
            llmcompress.compress(checkpoint, "int4", output)
            results += compare(output, args.num_windows, args.seq_len, args.runs)
    table = Table("vocabulary", "against", "protocol", "scored tokens/s", "theirs", "ratio")
    for result in results:
        table.add_row(
            f"{result['vocabulary']:,}",
            str(result["against"]),
            str(result["protocol"]),
            f"{result['ours_tokens_per_s']:.0f}",
            f"{result['other_tokens_per_s']:.0f}",
            f"{result['ratio']:.2f}",
        )
    Console().print(table)
    print(
        json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "results": results})
    )


if __name__ == "__main__":
    main()
