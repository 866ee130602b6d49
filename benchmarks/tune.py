"""What tuned runtime settings gain and cost: tuned against default, runs in turn with intervals; the KL cost of each.

Speed: models of a generated Llama (1.1 B parameters by default) in int4 with groups of 128 and 64, symmetric and
asymmetric, and in int8. Each is tuned, the choice is written into a new artifact, and that one runs in turn with the
untuned one, each in a process of its own; with --stock also in stock optimum-intel and openvino_genai, as anyone would
open it, to see that they run at the tuned speed. The weights are random, so this part says nothing of quality.
Damage: every setting alone on a trained model.

Each model's figures go to --results, one line of JSON, as soon as they are measured. The same command again measures
what is not there yet. The tables of docs/tune.md are printed at the end, and by `table`.

    python benchmarks/tune.py speed --stock
    python benchmarks/tune.py damage ../shared/models/ref-llama-8m --dataset ../shared/data/wikitext2-test-part1.txt
    python benchmarks/tune.py table tune-speed.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from generated_llama import body_arguments, generate

import llmcompress
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.report.estimate import Estimate, interval_text
from llmcompress.report.text import settings_text
from llmcompress.spec import TuneSpec, tune_spec
from llmcompress.spec.benchmark import RuntimeName
from llmcompress.tuning.race import race, start

HELD_OUT = BUNDLED_TEXT
BY_PLUGIN = "runtime.dynamic_quantization_group_size=null"
"""The packaged recipes carry what was found here."""
MODELS = {
    "int4-sym g128": ("int4-sym", ["weights.group_size=128", BY_PLUGIN]),
    "int4-sym g64": ("int4-sym", ["weights.group_size=64", BY_PLUGIN]),
    "int4-asym g128": ("int4", ["weights.group_size=128", BY_PLUGIN]),
    "int4-asym g64": ("int4", ["weights.group_size=64", BY_PLUGIN]),
    "int8-asym": ("int8", []),
}
HINTS: dict[str, list[str]] = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": ["0", "32", "64", "128", "256"],
    "KV_CACHE_PRECISION": ["f32", "f16", "bf16", "u8", "u4"],
    "KEY_CACHE_PRECISION": ["u4"],
    "VALUE_CACHE_PRECISION": ["u4"],
    "KEY_CACHE_GROUP_SIZE": ["16"],
    "VALUE_CACHE_GROUP_SIZE": ["16"],
    "INFERENCE_PRECISION_HINT": ["f32", "bf16"],
}
ENGINES = ("optimum", "genai")
STOCK_TOKENS = (64, 17)
"""Of the prompt, and new ones. Runs are short, so that all engines meet the same moods of the machine."""
NO_OPTIONS = ("run", "work", "results", "models")
"""What does not change a figure."""


def speed(args: argparse.Namespace) -> None:
    """Tune each model, and run the tuned artifact in turn with the untuned one."""
    todo = _todo(args)
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-tune-") as folder:
        body = generate(
            Path(folder) / "checkpoint", layers=args.layers, hidden=args.hidden, intermediate=args.intermediate
        )
        loaded = llmcompress.load(body) if todo else None
        for name in todo:
            took: dict[str, float] = {}
            directory = Path(folder) / name.replace(" ", "-")
            tuned = directory.with_name(f"{directory.name}-tuned")
            with _timed("compress", took):
                recipe, overrides = MODELS[name]
                llmcompress.compress(loaded, llmcompress.load_recipe(recipe, overrides), directory)
            spec = _spec(args)
            with _timed("tune", took):
                report = llmcompress.tune(directory, spec)
            line: dict[str, Any] = {
                "chosen": report.in_model,
                "reason": report.reason,
                "num_trials": len(report.trials) - 1,
                "out_of_time": report.out_of_time,
                "trials": [
                    (each.properties, each.status, each.gain and each.gain.model_dump()) for each in report.trials
                ],
            }
            if report.in_model:
                llmcompress.apply_tuning(directory, tuned)
                with _timed("in turn", took):
                    line |= _in_turn(directory, tuned, spec.model_copy(update={"repetitions": args.runs}))
                if args.stock:
                    with _timed("stock", took):
                        line["stock"] = _stock(directory, tuned, args)
            _put(args, name, {**line, "seconds": {step: round(value, 1) for step, value in took.items()}})
    _print_table(_lines(args.results))


def damage(args: argparse.Namespace) -> None:
    """The divergence under each setting alone, from exact execution of the original."""
    from llmcompress.tuning.damage import TuneRequest, divergence_under, open_models

    spec = tune_spec(dataset=str(args.dataset), seq_len=args.seq_len, num_windows=args.num_windows)
    todo = _todo(args)
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-tune-") as folder:
        loaded = llmcompress.load(args.checkpoint) if todo else None
        for name in todo:
            recipe, overrides = MODELS[name]
            directory = Path(folder) / name.replace(" ", "-")
            llmcompress.compress(loaded, llmcompress.load_recipe(recipe, overrides), directory)
            request = TuneRequest(directory, spec, args.checkpoint, logits_dir=Path(folder) / "logits")
            models = open_models(request, lambda progress: None)
            settings = [{}, *({key: value} for key, values in HINTS.items() for value in values)]
            found = []
            for properties in settings:
                lost, _ = divergence_under(models, properties, models.search, spec.confidence, lambda progress: None)
                found.append((properties, lost.kl_divergence.model_dump(), lost.top1_agreement.value))
            _put(args, name, {"settings": found})
    _print_table(_lines(args.results))


def table(args: argparse.Namespace) -> None:
    """Print the tables of what was measured."""
    _print_table(_lines(args.file))


def _spec(args: argparse.Namespace) -> TuneSpec:
    return tune_spec(
        dataset=str(HELD_OUT), seq_len=args.seq_len, num_windows=args.num_windows, workloads=[args.workload],
        objective=args.objective, budget=args.budget, repetitions=args.repetitions, scope="model",
        properties=args.properties, max_kl=args.max_kl,
    )  # fmt: skip


def _in_turn(directory: Path, tuned: Path, spec: TuneSpec) -> dict[str, Any]:
    """Both artifacts as they are: nothing is set but what the tuned one holds."""
    with ExitStack() as stack:
        default, mine = (stack.enter_context(start(each, spec.device, {})[0]) for each in (directory, tuned))
        found = race(mine, default, spec)
    (speeds,), (others,) = found.speeds, found.default_speeds
    assert speeds.prefill_ratio is not None
    assert speeds.decode_ratio is not None
    assert speeds.decode_tokens_per_s is not None
    assert others.decode_tokens_per_s is not None
    return {
        "prefill": [others.prefill_tokens_per_s.p50, speeds.prefill_tokens_per_s.p50],
        "prefill_ratio": speeds.prefill_ratio.model_dump(),
        "decode": [others.decode_tokens_per_s.p50, speeds.decode_tokens_per_s.p50],
        "decode_ratio": speeds.decode_ratio.model_dump(),
    }


def _stock(directory: Path, tuned: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Decode rates of processes that run in turn: each engine's tuned over default, and its tuned over ours."""
    keys = [("ours", tuned), *((engine, each) for engine in ENGINES for each in (directory, tuned))]
    runs: dict[tuple[str, Path], list[list[float]]] = {key: [] for key in keys}
    with ExitStack() as stack:
        ask = {key: stack.enter_context(_served(*key)) for key in keys}
        for seed in range(-1, args.stock_runs):
            # Who comes first changes, or the order itself would be measured.
            for key in keys[:: -1 if seed % 2 else 1]:
                latencies_s = ask[key](seed + 1)
                if seed >= 0:
                    runs[key].append(latencies_s)
    return {
        engine: {
            "gain": _undisturbed_ratio(runs[engine, tuned], runs[engine, directory]),
            "fidelity": _undisturbed_ratio(runs[engine, tuned], runs["ours", tuned]),
        }
        for engine in ENGINES
    }


def _undisturbed_ratio(mine: list[list[float]], theirs: list[list[float]]) -> dict[str, Any]:
    """Ratio of two rates, each the inverse of the first decile of token latencies; runs are drawn in pairs.

    Engines differ by little, and what else the machine does only ever makes a token late.
    """
    import numpy as np
    from scipy import stats

    latencies_s = np.array([mine, theirs])

    def ratio(runs: Any) -> float:
        first, second = np.quantile(latencies_s[:, runs], 0.1, axis=(1, 2))
        return float(second / first)

    every = np.arange(len(mine))
    found = stats.bootstrap((every,), ratio, vectorized=False, method="percentile", rng=0)
    interval = found.confidence_interval
    return Estimate(
        value=ratio(every), standard_error=float(found.standard_error), low=float(interval.low),
        high=float(interval.high),
    ).model_dump()  # fmt: skip


@contextmanager
def _served(engine: str, directory: Path) -> Iterator[Callable[[int], list[float]]]:
    """An engine with one model in a process of its own; ask it for the latencies of one run's further tokens."""
    here, there = multiprocessing.Pipe()
    # A fork would take this process's threads and models along.
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, engine, directory))
    process.start()
    there.close()

    def ask(seed: int) -> list[float]:
        here.send(seed)
        return list(here.recv())

    try:
        yield ask
    finally:
        here.close()
        process.join(timeout=20)
        process.kill()


def _serve(requests: Connection, engine: str, directory: Path) -> None:
    run = _optimum(directory) if engine == "optimum" else _ours(directory, "genai" if engine == "genai" else "openvino")
    while True:
        try:
            seed = requests.recv()
        except EOFError:
            return
        requests.send(run(*STOCK_TOKENS, seed))


def _ours(directory: Path, engine: RuntimeName) -> Callable[[int, int, int], list[float]]:
    from llmcompress.benchmarking.timing import tpot_s
    from llmcompress.benchmarking.worker import open_model, run_model, runtime_of
    from llmcompress.spec.benchmark import Shape

    runtime = runtime_of(directory, engine)
    open_model(runtime, "CPU", {})
    return lambda prompt, new, seed: tpot_s(run_model(runtime, Shape(1, 0, prompt, new), seed))


def _optimum(directory: Path) -> Callable[[int, int, int], list[float]]:
    """The steps of stock optimum-intel's own forward."""
    import torch
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(str(directory), device="CPU")

    def run(prompt: int, new: int, seed: int) -> list[float]:
        ids = torch.randint(0, 1000, (1, prompt), generator=torch.Generator().manual_seed(seed))
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=None)
        moments = [time.perf_counter()]
        for step in range(1, new):
            mask = torch.ones((1, prompt + step), dtype=torch.int64)
            output = model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=output.past_key_values)
            moments.append(time.perf_counter())
        return [after - before for before, after in pairwise(moments)]

    return run


@contextmanager
def _timed(step: str, took: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    took[step] = time.perf_counter() - began
    print(f"{step}: {took[step]:.0f} s", file=sys.stderr, flush=True)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: json.loads(json.dumps(value, default=str)) for name, value in vars(args).items()
            if name not in NO_OPTIONS}  # fmt: skip


def _todo(args: argparse.Namespace) -> list[str]:
    """Models that have no line of these options yet."""
    done = {line["model"] for line in _lines(args.results) if line["options"] == _options(args)}
    return [name for name in args.models if name not in done]


def _put(args: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    line = {"model": name, "options": _options(args), **found}
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(f"{name}: {settings_text(found['chosen'])}: {found['reason']}" if "chosen" in found else name,
          file=sys.stderr, flush=True)  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _print_table(lines: Sequence[dict[str, Any]]) -> None:
    damaged = [line for line in lines if "settings" in line]
    for columns, rows in (
        (
            ("model", "tuned settings", "prefill tokens/s, default → tuned", "ratio",
             "decode tokens/s, default → tuned", "ratio"),
            [_speed_row(line) for line in lines if "chosen" in line],
        ),
        (
            ("model", "engine", "decode, tuned / default", "decode of the tuned one, engine / ours"),
            [(line["model"], engine, _ratio(found["gain"]), _ratio(found["fidelity"]))
             for line in lines for engine, found in line.get("stock", {}).items()],
        ),
        (("KL divergence, nats", *(line["model"] for line in damaged)), _damage_rows(damaged)),
    ):  # fmt: skip
        if rows:
            print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
            for row in rows:
                print(f"| {' | '.join(row)} |")


def _speed_row(line: dict[str, Any]) -> tuple[str, ...]:
    if "decode" not in line:
        return (line["model"], f"defaults: {line['reason']}", "", "", "", "")
    rates = {name: "{:.1f} → {:.1f}".format(*line[name]) for name in ("prefill", "decode")}
    return (line["model"], settings_text(line["chosen"]), rates["prefill"], _ratio(line["prefill_ratio"]),
            rates["decode"], _ratio(line["decode_ratio"]))  # fmt: skip


def _damage_rows(lines: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each setting, a column for each model."""
    by_model = [{settings_text(properties): _ratio(lost) for properties, lost, _ in line["settings"]} for line in lines]
    return [
        (name, *(found.get(name, "not measured") for found in by_model)) for name in (by_model[0] if by_model else ())
    ]


def _ratio(found: dict[str, Any]) -> str:
    return interval_text(Estimate(**found), ".3g")


def main() -> None:
    """Run one of the parts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("nncf").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 10 GB)")
    common.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    fast = parts.add_parser("speed", parents=[common], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    body_arguments(fast)
    fast.add_argument("--results", type=Path, default=Path("tune-speed.jsonl"))
    fast.add_argument("--seq-len", type=int, default=128, help="the weights are random: the text only takes time")
    fast.add_argument("--num-windows", type=int, default=2)
    fast.add_argument("--workload", default="chat:256/32")
    fast.add_argument("--objective", default="decode")
    fast.add_argument("--budget", default="5m", help="of each model's search")
    fast.add_argument("--repetitions", type=int, default=5, help="of the search")
    fast.add_argument("--runs", type=int, default=12, help="of tuned against default")
    fast.add_argument("--stock-runs", type=int, default=30, help="of the stock libraries, short ones")
    fast.add_argument("--max-kl", type=float, default=None)
    fast.add_argument("--properties", nargs="*", default=[], metavar="KEY=VALUE,...", help="as --property of tune")
    fast.add_argument("--stock", action="store_true", help="also by stock optimum-intel and openvino_genai")
    fast.set_defaults(run=speed)
    lost = parts.add_parser("damage", parents=[common], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    lost.add_argument("checkpoint", type=Path)
    lost.add_argument("--results", type=Path, default=Path("tune-damage.jsonl"))
    lost.add_argument("--dataset", type=Path, required=True)
    lost.add_argument("--seq-len", type=int, default=256)
    lost.add_argument("--num-windows", type=int, default=8)
    lost.set_defaults(run=damage)
    shown = parts.add_parser("table")
    shown.add_argument("file", type=Path)
    shown.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
