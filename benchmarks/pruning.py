"""What pruning takes and what healing gives back, next to fewer bits alone: KL divergence, size and decode speed.

Each pruning is carried out without compression, once as it is and once healed, and with int4 weights in groups of 64 on
top; beside them stand the packaged recipes of bits alone. Experts are pruned of a Mixtral that is made of the source.
Every artifact is evaluated on the same held-out windows, pinned to f32; with ``--speed`` all are run in turn, and the
decode speed is given as a ratio to that of the uncompressed model.

    python benchmarks/pruning.py --source ../shared/models/ref-llama-8m --train TRAIN.txt --text HELDOUT.txt
    python benchmarks/pruning.py ... --only depth:2 width:640 --num-steps 500 --speed
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.report.estimate import interval_text
from llmcompress.spec import override_recipe

BITS = ("none", "int8", "int4-mixed", "int4")
PRUNINGS = ("depth:1", "depth:2", "depth:3", "depth:4", "width:640", "magnitude:0.5", "wanda:0.5", "sparsegpt:0.5",
            "sparsegpt:2:4", "experts:0.25", "experts:0.25:merge")  # fmt: skip


def pruning_of(text: str) -> dict[str, Any]:
    """``depth:2``, or ``layers:3,1`` that were chosen before, as a recipe's part."""
    method, _, size = text.partition(":")
    if method == "depth":
        return {"method": method, "num_layers": int(size)}
    if method == "layers":
        return {"method": "depth", "layers": tuple(map(int, size.split(",")))}
    if method == "width":
        return {"method": method, "intermediate_size": int(size)}
    if method == "experts":
        ratio, _, merge = size.partition(":")
        return {"method": method, "ratio": float(ratio), "merge": merge == "merge"}
    return {"method": method, "pattern": size} if ":" in size else {"method": method, "sparsity": float(size)}


class Side(NamedTuple):
    """One line of the comparison."""

    name: str
    source: Path
    recipe: llmcompress.Recipe
    checkpoint: Path | None = None
    """Where a pruned model is kept, for the bits on top of it."""


def sides(source: Path, folder: Path, args: argparse.Namespace) -> Iterator[Side]:
    """Everything that is compared, of one model; bits on top come after what they are on top of."""
    text = {"dataset": str(args.train), "seq_len": args.seq_len}
    healing = {
        "method": "distillation", "what": ["weights"], **text, "num_samples": 4096, "num_steps": args.num_steps,
        "batch_size": args.batch_size,
    }  # fmt: skip
    int4 = llmcompress.load_recipe("int4", ["weights.group_size=64"])
    for name in BITS:
        yield Side(name, source, int4 if name == "int4" else llmcompress.load_recipe(name))
    has_experts = (source / "config.json").read_text().find("num_local_experts") > 0
    for number, each in enumerate(each for each in args.only if each.startswith("experts") == has_experts):
        pruning = pruning_of(each)
        recipe: dict[str, Any] = {"name": "side", "method": "none", "pruning": pruning}
        if pruning["method"] != "magnitude" and "layers" not in pruning:
            recipe["calibration"] = {**text, "num_samples": args.num_samples}
        for added, training in (("", {}), (", healed", {"training": healing}))[: 2 if args.num_steps else 1]:
            checkpoint = folder / f"checkpoint-{number}{added}"
            pruned = llmcompress.Recipe.model_validate({**recipe, **training})
            if training:
                pruned = override_recipe(pruned, [f"training.{each}" for each in args.set])
            yield Side(each + added, source, pruned, checkpoint)
            yield Side(f"{each}{added}, int4", checkpoint, int4)


def with_experts(source: Path, directory: Path, text: Path) -> Path:
    """A Mixtral of a Llama: eight experts a layer, copies of its MLP with noise, and a router with favourites.

    Of every token two experts are called; how near the router's row of an expert lies to the mean of what the layer is
    given on a text decides how often it is among them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    fields = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    mixed = MixtralForCausalLM(MixtralConfig(**fields, num_local_experts=8, num_experts_per_tok=2)).float()
    mixed.load_state_dict(model.state_dict(), strict=False)
    ids = tokenizer(text.read_text(encoding="utf-8")[:20_000], return_tensors="pt").input_ids[:, :512]
    given: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: given.append(args[0][0]))
    with torch.no_grad():
        model(ids)
        for layer, into, states in zip(model.model.layers, mixed.model.layers, given, strict=True):
            mean, spread = states.mean(0), states.std()
            favour = torch.linspace(1.5, -1.5, 8)[torch.randperm(8), None]
            noise = torch.randn(8, len(mean)) / (spread * len(mean) ** 0.5)
            into.mlp.gate.weight.copy_(noise + favour * mean / mean.square().sum())
            gate_up = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
            for stack, weight in (
                (into.mlp.experts.gate_up_proj, gate_up),
                (into.mlp.experts.down_proj, layer.mlp.down_proj.weight),
            ):
                stack.copy_(weight + 0.2 * weight.std() * torch.randn(8, *weight.shape))
    mixed.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def measure(side: Side, source: Path, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Make an artifact and compare it with the original."""
    spec = llmcompress.EvalSpec(
        dataset=str(args.text), seq_len=args.seq_len, num_windows=args.num_windows, precision="pinned",
        backend="stateful",
    )  # fmt: skip
    started = time.perf_counter()
    made = llmcompress.compress(side.source, side.recipe, output, save_checkpoint=side.checkpoint)
    duration_s = time.perf_counter() - started
    kept = output.parent / "logits"
    divergence = llmcompress.evaluate(output, spec, reference=source, keep_logits_in=kept).divergence
    assert divergence is not None
    size_bytes = (output / "openvino_model.bin").stat().st_size
    found: dict[str, Any] = {"source": source.name, "side": side.name, "bin_bytes": size_bytes}
    found |= {"duration_s": duration_s, "num_parameters": made.num_parameters}
    found |= {"kl": divergence.kl_divergence.value, "interval": interval_text(divergence.kl_divergence)}
    found |= {"agreement": divergence.top1_agreement.value}
    if made.pruning is not None:
        found["pruning"] = made.pruning.model_dump(mode="json")
    if made.training is not None:
        found["training"] = made.training.model_dump(mode="json")
    return found


def add_speed(results: list[dict[str, Any]], directories: list[Path], repetitions: int) -> None:
    """The decode speed of each to that of the first, runs in turn, each in a process of its own."""
    bench = llmcompress.BenchSpec(prompt_tokens=(32,), new_tokens=(128,), repetitions=repetitions)
    for result, report in zip(results[1:], llmcompress.benchmark(directories, bench)[1:], strict=True):
        (ratio,) = (each.ratio for each in report.ratios if each.figure == "decode_tokens_per_s")
        result["decode_ratio"] = interval_text(ratio, ".2f")
    print(json.dumps({"decode_ratios": [result.get("decode_ratio") for result in results]}), flush=True)


def main() -> None:
    """Measure every side, and print a table and one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--train", type=Path, required=True, help="text that decides what goes, and that heals")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--only", nargs="+", default=PRUNINGS, help="prunings, such as depth:2 or sparsegpt:2:4")
    parser.add_argument("--num-steps", type=int, default=500, help="of the healing; 0 leaves it out")
    parser.add_argument("--batch-size", type=int, default=8, help="of the healing")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the healing: patience=20")
    parser.add_argument("--num-samples", type=int, default=32, help="windows that decide what goes")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--num-windows", type=int, default=64)
    parser.add_argument("--speed", action="store_true", help="decode speed of all, in turn")
    parser.add_argument("--repetitions", type=int, default=9, help="of the speed")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as name:
        folder = Path(name)
        sources = [args.source] if any(not each.startswith("experts") for each in args.only) else []
        if any(each.startswith("experts") for each in args.only):
            sources.append(with_experts(args.source, folder / "with-experts", args.train))
        for source in sources:
            found: list[dict[str, Any]] = []
            place = folder / f"of-{source.name}"
            place.mkdir()
            for number, side in enumerate(sides(source, place, args)):
                found.append(measure(side, source, place / str(number), args))
                print(json.dumps(found[-1]), flush=True)
            if args.speed:
                add_speed(found, [place / str(number) for number in range(len(found))], args.repetitions)
            results += found
    table = Table("of", "side", "MB", "KL divergence", "agreement", "decode speed", "min")
    for result in sorted(results, key=lambda each: (each["source"], each["bin_bytes"])):
        table.add_row(
            result["source"],
            result["side"],
            f"{result['bin_bytes'] / 1e6:.2f}",
            result["interval"],
            f"{result['agreement']:.1%}",
            result.get("decode_ratio", "not measured"),
            f"{result['duration_s'] / 60:.1f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
