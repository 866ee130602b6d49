"""What learned bits give back: KL divergence to the original at equal bytes, against the best that NNCF makes.

For each format a checkpoint is compressed without data, by stock NNCF's AWQ with scale estimation and its GPTQ, and by
training; every artifact is evaluated on the same held-out windows of one text and, where it is given, of another kind
of text, pinned to f32. The table holds the KL divergence with its interval, its ratio to the best of NNCF's, agreement,
perplexity, size and the time that making it took. int3 and int2 are about quality and size: of u3 the CPU plugin makes
bf16.

    python benchmarks/learned.py --source ../shared/models/ref-llama-8m --text HELDOUT.txt --train TRAIN.txt
    python benchmarks/learned.py ... --modes int4_asym int4_sym --group-sizes 64 128 --num-steps 1000 --other-text O.txt
    python benchmarks/learned.py ... --sides data-free distillation --num-steps 5 --speed   # learned bits run as fast
    python benchmarks/learned.py ... --engine llmcompress   # NNCF's sides by this project's kernels: its bytes, sooner
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import openvino as ov
from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.report.estimate import interval_text
from llmcompress.spec import Calibration, Recipe, Training, WeightCompression, override_recipe

STARTS = ("data-free", "awq+se", "gptq")
SIDES = (*STARTS, "blocks", "distillation", "gptq, then distillation")
OTHER_SIDES = ("awq+se, then distillation",)
SEARCHED = ("searched", "searched, then distillation")
"""A format for each weight at no more bytes than NNCF's sides before it have, by GPTQ too; learned from there."""


def recipe_of(side: str, mode: str, group_size: int, args: argparse.Namespace) -> Recipe:
    """The recipe of one side of the comparison."""
    gptq, awq = side.startswith("gptq"), side.startswith("awq+se")
    methods = {"awq": awq, "scale_estimation": awq, "gptq": gptq}
    mixed = {} if args.ratio == 1 else {"ratio": args.ratio}
    weights = WeightCompression(mode=mode, group_size=group_size, group_size_fallback="adjust", **methods, **mixed)
    calibration = Calibration(dataset=str(args.train), num_samples=args.num_samples, seq_len=args.seq_len)
    recipe = Recipe(name="side", weights=weights, calibration=calibration if gptq or awq else None)
    return with_training(recipe, side, args) if side.endswith(("blocks", "distillation")) else recipe


def with_training(recipe: Recipe, side: str, args: argparse.Namespace) -> Recipe:
    """A recipe that learns its bits."""
    training = Training(
        method="blocks" if side == "blocks" else "distillation",
        dataset=str(args.train),
        num_samples=args.num_training_samples if side != "blocks" else args.num_samples,
        seq_len=args.seq_len,
        num_steps=args.num_steps if side != "blocks" else args.num_block_steps,
        batch_size=args.batch_size,
    )
    fields = {name: value for name, value in recipe if name in recipe.model_fields_set}
    return override_recipe(Recipe(**fields, training=training), [f"training.{each}" for each in args.set])


def searched(directory: Path, max_bytes: int, args: argparse.Namespace) -> Recipe:
    """The recipe that a search finds at a size, from the text to train on alone."""
    text = {"dataset": str(args.train), "seq_len": args.seq_len}
    calibration = Calibration(**text, num_samples=args.num_samples)
    spec = llmcompress.SearchSpec(max_bytes=max_bytes, calibration=calibration, **text)
    if not directory.exists():
        llmcompress.search(args.source, spec, directory)
    return llmcompress.load_recipe(directory / "recipe.yaml", [f"calibration.dataset={args.train}"])


def measured(directory: Path, text: Path, kept: Path, args: argparse.Namespace) -> dict[str, object]:
    """How near an artifact is to its source on a text, of which the source's logits are kept for the next one."""
    spec = llmcompress.EvalSpec(
        dataset=str(text),
        seq_len=args.seq_len,
        num_windows=args.num_windows,
        precision="pinned",
        backend="stateful",
    )
    report = llmcompress.evaluate(directory, spec, reference=args.source, keep_logits_in=kept)
    divergence = report.divergence
    assert divergence is not None
    return {
        "kl": divergence.kl_divergence.value,
        "interval": interval_text(divergence.kl_divergence, ".3g"),
        "agreement": divergence.top1_agreement.value,
        "perplexity": report.model.perplexity.perplexity.value,
    }


def operations(directory: Path) -> list[tuple[str, ...]]:
    """What a runtime is given to execute, without the values of constants."""
    model = ov.Core().read_model(directory / "openvino_model.xml")
    return [
        (op.get_type_name(), *(f"{each.element_type} {each.partial_shape}" for each in op.outputs()))
        for op in model.get_ordered_ops()
    ]


def decode_ratio(first: Path, later: Path, args: argparse.Namespace) -> dict[str, object]:
    """Decode speed of one artifact to that of another, runs in turn, each in a process of its own.

    Where both have the same operations of the same shapes and types, kernels do the same work.
    """
    spec = llmcompress.BenchSpec(prompt_tokens=(32,), new_tokens=(128,), repetitions=args.repetitions)
    _, report = llmcompress.benchmark([first, later], spec)
    found = next(each.ratio for each in report.ratios if each.figure == "decode_tokens_per_s")
    same = operations(first) == operations(later)
    return {"decode_ratio": found.value, "interval": interval_text(found, ".3f"), "same_operations": same}


def main() -> None:
    """Measure each format, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--train", type=Path, required=True, help="text to calibrate with and to train on")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--other-text", type=Path, help="held-out text of another kind")
    parser.add_argument("--modes", nargs="+", default=["int4_asym", "int4_sym", "int3_sym", "int2_sym"])
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--ratio", type=float, default=1.0, help="of NNCF's sides: layers of the mode, the rest int8")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=(*SIDES, *OTHER_SIDES, *SEARCHED))
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--num-block-steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-training-samples", type=int, default=4096)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of training, such as patience=20")
    parser.add_argument("--num-samples", type=int, default=128, help="windows of NNCF's calibration, and of blocks")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--num-windows", type=int, default=64)
    parser.add_argument("--engine", choices=("nncf", "llmcompress"), default="nncf", help="what makes NNCF's sides")
    parser.add_argument("--speed", action="store_true", help="decode speed of the last side to that of the first")
    parser.add_argument("--repetitions", type=int, default=15, help="of the speed")
    args = parser.parse_args()
    first = next((each for each in args.sides if each in STARTS or each in SEARCHED), None)
    if first in SEARCHED:
        parser.error("searched: a side before it gives the limit of bytes, one of " + ", ".join(STARTS))
    os.environ["HF_HUB_OFFLINE"] = "1"
    columns = (
        "format",
        "side",
        "KL divergence",
        "of NNCF's best",
        "other text",
        "agreement",
        "perplexity",
        "MB",
        "min",
    )
    table, results = Table(*columns), []
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        kept = Path(folder) / "logits"
        kept.mkdir()
        for mode in args.modes:
            for group_size in args.group_sizes:
                best, fewest = float("inf"), sys.maxsize
                for side in args.sides:
                    output, started = Path(folder) / f"{mode}-{group_size}-{side}", time.perf_counter()
                    if side in SEARCHED:
                        recipe = searched(Path(folder) / f"{mode}-{group_size}-{fewest}-plan", fewest, args)
                        recipe = with_training(recipe, side, args) if side != "searched" else recipe
                    else:
                        recipe = recipe_of(side, mode, group_size, args)
                    peers = side in ("awq+se", "gptq")
                    engine = args.engine if peers else "llmcompress"
                    made = llmcompress.compress(args.source, recipe, output, engine=engine)
                    line = {"mode": mode, "group_size": group_size, "side": side}
                    line |= {"duration_s": time.perf_counter() - started, "size_bytes": made.size_bytes}
                    line |= {"bin_bytes": (output / "openvino_model.bin").stat().st_size}
                    line |= measured(output, args.text, kept, args)
                    other = measured(output, args.other_text, kept, args) if args.other_text else {}
                    line |= {f"other_{name}": value for name, value in other.items()}
                    if made.training is not None:
                        line["training"] = made.training.model_dump(mode="json")
                    if side in STARTS:
                        best = min(best, float(str(line["kl"])))
                        fewest = min(fewest, int(str(line["bin_bytes"])))
                    results.append(line)
                    table.add_row(
                        f"{mode} g{group_size}",
                        side,
                        f"{line['kl']:.4g} {line['interval']}",
                        f"{line['kl'] / best:.2f}",
                        f"{other['kl']:.4g}" if other else "not measured",
                        f"{line['agreement']:.2%}",
                        f"{line['perplexity']:.2f}",
                        f"{line['bin_bytes'] / 1e6:.3f}",
                        f"{line['duration_s'] / 60:.1f}",
                    )
                    print(json.dumps(line), flush=True)
                if args.speed:
                    first, last = (Path(folder) / f"{mode}-{group_size}-{args.sides[n]}" for n in (0, -1))
                    speed = {"mode": mode, "group_size": group_size, **decode_ratio(first, last, args)}
                    results.append(speed)
                    print(json.dumps(speed), flush=True)
    Console(width=140).print(table)
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
