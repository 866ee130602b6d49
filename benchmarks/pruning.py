"""What pruning takes and what healing gives back, next to fewer bits alone: KL divergence, size and decode speed.

Each pruning is carried out without compression, once as it is and once healed, and with int4 weights on top; beside
them stand the packaged recipes of bits alone. Every artifact is evaluated on the same held-out windows, pinned to f32;
with ``--speed`` all are run in turn, and the decode speed is given as a ratio to that of the uncompressed model.

    python benchmarks/pruning.py --source ../shared/models/ref-llama-8m --train TRAIN.txt --text HELDOUT.txt
    python benchmarks/pruning.py ... --only depth:2 width:640 --num-steps 500 --speed
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.report.text import interval_text

BITS = ("none", "int8", "int4-mixed", "int4")
PRUNINGS = ("depth:1", "depth:2", "depth:3", "depth:4", "width:640", "magnitude:0.5", "wanda:0.5", "sparsegpt:0.5",
            "sparsegpt:2:4")  # fmt: skip


def pruning_of(text: str) -> dict[str, Any]:
    """``depth:2`` as a recipe's part."""
    method, _, size = text.partition(":")
    if method == "depth":
        return {"method": method, "num_layers": int(size)}
    if method == "width":
        return {"method": method, "intermediate_size": int(size)}
    if method == "experts":
        return {"method": method, "ratio": float(size)}
    return {"method": method, "pattern": size} if ":" in size else {"method": method, "sparsity": float(size)}


def recipes(args: argparse.Namespace) -> dict[str, Any]:
    """Every side of the comparison, by its name."""
    text = {"dataset": str(args.train), "seq_len": args.seq_len}
    calibration = {**text, "num_samples": args.num_samples}
    healing = {"method": "distillation", "what": ["weights"], **text, "num_samples": 4096, "num_steps": args.num_steps}
    int4 = {"weights": {"mode": "int4_asym", "group_size": 64, "group_size_fallback": "adjust"}}
    found: dict[str, Any] = {name: llmcompress.load_recipe(name) for name in BITS}
    for each in args.only:
        pruning = pruning_of(each)
        base = {"name": "side", "pruning": pruning}
        if pruning["method"] != "magnitude":
            base["calibration"] = calibration
        found[each] = {**base, "method": "none"}
        found[f"{each}, int4"] = {**base, **int4}
        if args.num_steps:
            found[f"{each}, healed"] = {**base, "method": "none", "training": healing}
            found[f"{each}, healed, int4"] = {**base, **int4, "training": healing}
    return found


def main() -> None:
    """Measure every side, and print a table and one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--train", type=Path, required=True, help="text that decides what goes, and that heals")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--only", nargs="+", default=PRUNINGS, help="prunings, such as depth:2 or sparsegpt:2:4")
    parser.add_argument("--num-steps", type=int, default=500, help="of the healing; 0 leaves it out")
    parser.add_argument("--num-samples", type=int, default=32, help="windows that decide what goes")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--num-windows", type=int, default=64)
    parser.add_argument("--speed", action="store_true", help="decode speed of all, in turn")
    parser.add_argument("--repetitions", type=int, default=9, help="of the speed")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    spec = llmcompress.EvalSpec(
        dataset=str(args.text), seq_len=args.seq_len, num_windows=args.num_windows, precision="pinned",
        backend="stateful",
    )  # fmt: skip
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        for number, (name, recipe) in enumerate(recipes(args).items()):
            output, started = Path(folder) / str(number), time.perf_counter()
            given = recipe if isinstance(recipe, llmcompress.Recipe) else llmcompress.Recipe.model_validate(recipe)
            made = llmcompress.compress(args.source, given, output)
            duration_s = time.perf_counter() - started
            divergence = llmcompress.evaluate(output, spec, reference=args.source).divergence
            assert divergence is not None
            size_bytes = (output / "openvino_model.bin").stat().st_size
            results.append({"side": name, "bin_bytes": size_bytes, "duration_s": duration_s})
            results[-1] |= {"kl": divergence.kl_divergence.value, "interval": interval_text(divergence.kl_divergence)}
            results[-1] |= {"agreement": divergence.top1_agreement.value, "num_parameters": made.num_parameters}
            if made.pruning is not None:
                results[-1]["pruning"] = made.pruning.model_dump(mode="json")
            print(json.dumps(results[-1]), flush=True)
        if args.speed:
            bench = llmcompress.BenchSpec(prompt_tokens=(32,), new_tokens=(128,), repetitions=args.repetitions)
            directories = [Path(folder) / str(number) for number in range(len(results))]
            _, report = llmcompress.benchmark(directories, bench)
            ratios = [each.ratio for each in report.ratios if each.figure == "decode_tokens_per_s"]
            for result, ratio in zip(results[1:], ratios, strict=True):
                result["decode_ratio"] = interval_text(ratio, ".2f")
            print(json.dumps({"decode_ratios": [result.get("decode_ratio") for result in results]}), flush=True)
    table = Table("side", "MB", "KL divergence", "agreement", "decode speed", "min")
    for result in sorted(results, key=lambda each: each["bin_bytes"]):
        table.add_row(
            result["side"], f"{result['bin_bytes'] / 1e6:.2f}", result["interval"], f"{result['agreement']:.1%}",
            result.get("decode_ratio", "not measured"), f"{result['duration_s'] / 60:.1f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
