"""What tuned runtime settings gain and cost: tuned against default, runs in turn with intervals; the KL cost of each.

Speed: models of a generated Llama (1.1 B parameters by default) in int4 with groups of 128 and 64, symmetric and
asymmetric, and in int8. Each is tuned, the choice is written into a new artifact, and that one runs in turn with the
untuned one: by `llmcompress bench`, and with --stock by a plain loop over the request of stock optimum-intel and by
openvino_genai, to see that they run at the tuned speed. Damage: every setting alone on a trained model.
Prints the tables of the README.

    python benchmarks/tune.py speed --stock
    python benchmarks/tune.py damage ../shared/models/ref-llama-8m --dataset ../shared/data/wikitext2-test-part1.txt
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from generated_llama import TOKENIZER, body_arguments, generate

import llmcompress
from llmcompress.recipe import tune_spec
from llmcompress.report import Estimate, TuneReport
from llmcompress.wording import interval_text

HELD_OUT = TOKENIZER / "heldout.txt"
MODELS = {
    "int4-sym g128": ("int4-sym", ["weights.group_size=128"]),
    "int4-sym g64": ("int4-sym", ["weights.group_size=64"]),
    "int4-asym g128": ("int4", ["weights.group_size=128"]),
    "int4-asym g64": ("int4", ["weights.group_size=64"]),
    "int8-asym": ("int8", []),
}
HINTS: dict[str, list[str]] = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": ["0", "32", "64", "128"],
    "KV_CACHE_PRECISION": ["f32", "f16", "bf16", "u8", "u4"],
    "VALUE_CACHE_PRECISION": ["u4"],
    "INFERENCE_PRECISION_HINT": ["f32", "bf16"],
}


def speed(args: argparse.Namespace) -> None:
    """Tune each model, and run the tuned artifact in turn with the untuned one."""
    print(
        "| model | objective | chosen | prefill, tuned / default | decode, tuned / default | KL, tuned | by default |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-tune-") as folder:
        body = generate(
            Path(folder) / "checkpoint", layers=args.layers, hidden=args.hidden, intermediate=args.intermediate
        )
        loaded = llmcompress.load(body)
        stock = []
        for name in args.models:
            recipe, overrides = MODELS[name]
            directory = Path(folder) / name.replace(" ", "-")
            llmcompress.compress(loaded, llmcompress.load_recipe(recipe, overrides), directory)
            spec = tune_spec(
                dataset=str(HELD_OUT), seq_len=args.seq_len, num_windows=args.num_windows, workloads=[args.workload],
                objective=args.objective, budget=args.budget, repetitions=args.repetitions,
                properties=args.properties, max_kl=args.max_kl,
            )  # fmt: skip
            report = llmcompress.tune(directory, spec)
            if not report.in_model:
                what = "for a runtime profile alone" if report.chosen else f"defaults: {report.reason}"
                print(f"| {name} | {args.objective} | {what} | | | | |", flush=True)
                continue
            tuned = directory.with_name(f"{directory.name}-tuned")
            llmcompress.apply_tuning(directory, tuned)
            print(_row(name, report, *_ratios(directory, tuned, args)), flush=True)
            if args.stock:
                stock += [(name, engine, *_stock(engine, directory, tuned, args)) for engine in ("optimum", "genai")]
    if stock:
        print(
            "\n| model | engine | decode, tuned / default | decode of the tuned one, engine / ours |\n|---|---|---|---|"
        )
        for name, engine, gain, fidelity in stock:
            print(f"| {name} | {engine} | {gain:.3f} | {fidelity:.3f} |")


def damage(args: argparse.Namespace) -> None:
    """The divergence under each setting alone, from exact execution of the original."""
    from llmcompress.tuning.damage import Reference, divergence_under, open_models

    spec = tune_spec(dataset=str(args.dataset), seq_len=args.seq_len, num_windows=args.num_windows)
    print("| model | setting | KL divergence, nats | top-1 agreement |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-tune-") as folder:
        loaded = llmcompress.load(args.checkpoint)
        for name in args.models:
            recipe, overrides = MODELS[name]
            directory = Path(folder) / name.replace(" ", "-")
            llmcompress.compress(loaded, llmcompress.load_recipe(recipe, overrides), directory)
            models = open_models(directory, Reference(args.checkpoint), spec, lambda progress: None)
            settings = [{}, *({key: value} for key, values in HINTS.items() for value in values)]
            for properties in settings:
                lost, _ = divergence_under(models, properties, models.search, spec.confidence, lambda progress: None)
                words = ", ".join(f"{key} {value}" for key, value in properties.items()) or "default"
                print(
                    f"| {name} | {words} | {interval_text(lost.kl_divergence, '.3g')} | "
                    f"{lost.top1_agreement.value:.2%} |",
                    flush=True,
                )


def _ratios(directory: Path, tuned: Path, args: argparse.Namespace) -> tuple[Estimate, Estimate]:
    """Prefill and decode of the tuned artifact over the untuned one's, each in a process of its own."""
    workload = tune_spec(dataset="wikitext2", workloads=[args.workload]).workloads[0]
    spec = llmcompress.BenchSpec(
        prompt_tokens=(workload.prompt_tokens,), new_tokens=(workload.new_tokens,),
        batch_sizes=(workload.batch_size,), repetitions=args.repetitions,
    )  # fmt: skip
    found = {ratio.figure: ratio.ratio for ratio in llmcompress.benchmark([directory, tuned], spec)[1].ratios}
    return found["prefill_tokens_per_s"], found["decode_tokens_per_s"]


def _row(name: str, report: TuneReport, prefill: Estimate, decode: Estimate) -> str:
    verified = report.verification
    assert verified is not None
    chosen = ", ".join(f"{key}={value}" for key, value in report.in_model.items())
    return (
        f"| {name} | {report.spec.objective} | {chosen} | {interval_text(prefill, '.3g')} | "
        f"{interval_text(decode, '.3g')} | {verified.divergence.kl_divergence.value:.3g} | "
        f"{verified.default_divergence.kl_divergence.value:.3g} |"
    )


def _stock(engine: str, directory: Path, tuned: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Decode rates of processes in turn: the engine's tuned over default, and its tuned over ours."""
    rates: dict[tuple[str, Path], list[float]] = {}
    for _ in range(args.repetitions):
        for key in ((engine, directory), (engine, tuned), ("ours", tuned)):
            command = [sys.executable, __file__, "once", key[0], str(key[1]), "--workload", args.workload]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rates.setdefault(key, []).append(float(done.stdout.split()[-1]))
    default, mine, ours = (statistics.median(rates[key]) for key in rates)
    return mine / default, mine / ours


def once(args: argparse.Namespace) -> None:
    """Print the decode rate of one engine on one model, the best of three runs."""
    workload = tune_spec(dataset="wikitext2", workloads=[args.workload]).workloads[0]
    directory, shape = Path(args.directory), workload.shape()
    if args.engine == "optimum":
        print(max(_optimum(directory, shape.prompt_tokens, shape.new_tokens)))
        return
    from llmcompress.benchmarking.timing import decode_tokens_per_s
    from llmcompress.benchmarking.worker import Worker

    worker = Worker(str(directory), "genai" if args.engine == "genai" else "openvino")
    worker.open("CPU", {})
    single = shape._replace(batch_size=1)
    print(max(decode_tokens_per_s(worker.run(single, seed), 1) for seed in range(4)))


def _optimum(directory: Path, prompt_tokens: int, new_tokens: int) -> Sequence[float]:
    """Rates of the steps of stock optimum-intel's own forward."""
    import torch
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(directory, device="CPU")
    rates = []
    for seed in range(4):
        ids = torch.randint(0, 1000, (1, prompt_tokens), generator=torch.Generator().manual_seed(seed))
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=None)
        began = time.perf_counter()
        for step in range(1, new_tokens):
            mask = torch.ones((1, prompt_tokens + step), dtype=torch.int64)
            output = model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=output.past_key_values)
        rates.append((new_tokens - 1) / (time.perf_counter() - began))
    return rates


def main() -> None:
    """Run one of the parts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("nncf").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 10 GB)")
    common.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    common.add_argument("--seq-len", type=int, default=256)
    common.add_argument("--num-windows", type=int, default=8)
    fast = parts.add_parser("speed", parents=[common])
    body_arguments(fast)
    fast.add_argument("--workload", default="chat:512/128")
    fast.add_argument("--objective", default="decode")
    fast.add_argument("--budget", default="30m", help="of each model")
    fast.add_argument("--repetitions", type=int, default=5)
    fast.add_argument("--max-kl", type=float, default=None)
    fast.add_argument("--properties", nargs="*", default=[], metavar="KEY=VALUE,...", help="as --property of tune")
    fast.add_argument("--stock", action="store_true", help="also by stock optimum-intel and openvino_genai")
    fast.set_defaults(run=speed)
    lost = parts.add_parser("damage", parents=[common])
    lost.add_argument("checkpoint", type=Path)
    lost.add_argument("--dataset", type=Path, required=True)
    lost.set_defaults(run=damage)
    single = parts.add_parser("once")
    single.add_argument("engine", choices=("ours", "optimum", "genai"))
    single.add_argument("directory")
    single.add_argument("--workload", required=True)
    single.set_defaults(run=once)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
