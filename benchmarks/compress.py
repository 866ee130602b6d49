"""`llmcompress compress` against `optimum-cli export openvino`: wall time, peak memory, bytes written.

Whole processes in turn (A B A B ...), our checks and hashes included; medians, and the ratio pair by pair. Then four
recipes of one model: our one process against four runs of optimum-cli.

Data-aware recipes (--engines) go by our kernels, by --engine nncf and by Optimum's from_pretrained, which gets the same
windows; where the processor has bf16, also by ours with statistics in bf16. The stages of NNCF are apart: each from its
first report of progress to its last. Our first run on a machine compiles the kernels, some seconds.

With --graph-cache each recipe goes four ways in turn: by a kept graph, the first run that keeps it (its whole process,
the keeping included), without the cache, and by optimum-cli; times, and the peak of memory that is no file's (RssAnon
and RssShmem of all processes together, looked at fifty times a second).

    python benchmarks/compress.py                     # 1.1 B parameters, bf16, generated
    python benchmarks/compress.py --runs 3 --layers 8 --hidden 1024 --intermediate 2816
    python benchmarks/compress.py --no-four --recipes --graph-cache int4-sym int8
    python benchmarks/compress.py --recipes --no-four --engines int4-awq-se --text TEXT
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
BLOCK_BYTES = 512

# The same recipe in both tools' words; optimum's int4 default for an unknown model is asymmetric, groups of 128.
RECIPES: dict[str, tuple[list[str], list[str]]] = {
    "int4": (["-r", "int4"], ["--weight-format", "int4", "--group-size", "128", "--ratio", "1.0"]),
    "int4-sym": (["-r", "int4-sym"], ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"]),
    "int4-g64": (
        ["-r", "int4", "--set", "weights.group_size=64"],
        ["--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"],
    ),
    "int8": (["-r", "int8"], ["--weight-format", "int8"]),
    "nf4": (["-r", "nf4"], ["--weight-format", "nf4", "--group-size", "128", "--ratio", "1.0"]),
}

FOUR_IN_ONE = """
import sys
from llmcompress import compress, load, load_recipe
loaded = load(sys.argv[1])
for name, *overrides in (("int4",), ("int4-sym",), ("int4", "weights.group_size=64"), ("int8",)):
    compress(loaded, load_recipe(name, overrides), f"{sys.argv[2]}/{name}{len(overrides)}")
"""

# Source, output, engine, recipe, overrides; writes the seconds of every stage that reports progress.
STAGED = """
import json, sys, time
from llmcompress import compress, load_recipe
source, output, engine, recipe, *overrides = sys.argv[1:]
seen = {}
def note(progress):
    seen.setdefault(progress.stage, []).append(time.perf_counter())
compress(source, load_recipe(recipe, overrides), output, engine=engine, graph_cache=False, progress=note)
with open(f"{output}/stages_s.json", "w") as file:
    json.dump({stage: times[-1] - times[0] for stage, times in seen.items()}, file)
"""

OPTIMUM = """
import sys
from optimum.intel import OVModelForCausalLM
from llmcompress import OVRecipeConfig
source, output, recipe, *overrides = sys.argv[1:]
config = OVRecipeConfig.from_recipe(recipe, overrides)
model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, quantization_config=config)
model.save_pretrained(output)
"""

COMPARISONS = {
    "nncf": ("ours", "nncf", "against --engine nncf"),
    "optimum": ("ours", "optimum", "against optimum's from_pretrained"),
    "bf16": ("bf16", "nncf", "statistics in bf16, against --engine nncf"),
}
"""Of data-aware recipes: which two sides, and what a table says of them."""
NOT_OF_DATA = ("applying weight compression",)
"""Of NNCF's stages, what a data-free method has as well."""


class Usage(NamedTuple):
    """What one process took, its children included."""

    wall_s: float
    peak_rss_bytes: int
    written_bytes: int


def measure(command: list[str], log: Path) -> Usage:
    """Run a command to its end; the operating system's own accounting of it and of the children it waited for."""
    started = time.perf_counter()
    with log.open("ab") as output:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed; its output is in {log}")
    return Usage(wall_s, usage.ru_maxrss * 1024, usage.ru_oublock * BLOCK_BYTES)


def ours(source: Path, output: Path, recipe: str, *, graph_cache: bool = False) -> list[str]:
    """Our command line for a recipe."""
    options = [*RECIPES[recipe][0], "--graph-cache" if graph_cache else "--no-graph-cache"]
    return [str(BIN / "llmcompress"), "compress", str(source), *options, "-o", str(output)]


def theirs(source: Path, output: Path, recipe: str) -> list[str]:
    """Optimum's command line for the same recipe."""
    options = ["--task", "text-generation-with-past", *RECIPES[recipe][1]]
    return [str(BIN / "optimum-cli"), "export", "openvino", "-m", str(source), *options, str(output)]


def compare_one(source: Path, work: Path, recipe: str, runs: int) -> dict[str, object]:
    """One recipe, both commands in turn."""
    pairs: list[tuple[Usage, Usage]] = []
    for run in range(runs):
        mine, other = work / f"ours-{run}", work / f"optimum-{run}"
        pairs.append(
            (
                measure(ours(source, mine, recipe), work / "ours.log"),
                measure(theirs(source, other, recipe), work / "optimum.log"),
            )
        )
        equal = filecmp.cmp(mine / "openvino_model.bin", other / "openvino_model.bin", shallow=False)
        bin_bytes = (mine / "openvino_model.bin").stat().st_size
        shutil.rmtree(mine)
        shutil.rmtree(other)
    return {"case": recipe, "equal_bytes": equal, "bin_bytes": bin_bytes, **summarise(pairs)}


def compare_engines(
    source: Path, work: Path, recipe: str, text: Path | None, runs: int, wanted: Collection[str]
) -> list[dict[str, object]]:
    """One recipe by our kernels and by what they are compared with; statistics are collected in every run."""
    windows = [f"calibration.dataset={text}", "calibration.num_samples=32", "calibration.seq_len=256"] if text else []
    if not (text and collects_statistics(recipe, windows) and computes_in_bf16()):
        wanted = [name for name in wanted if name != "bf16"]
    if not wanted:
        raise SystemExit(f"{recipe}: statistics in bf16 need --text, a recipe with data and a processor with bf16")
    pairs = [COMPARISONS[name] for name in wanted]
    short = [*windows, "weights.statistics_precision=bf16"]
    python = [sys.executable, "-c"]

    def staged(name: str, engine: str, overrides: list[str]) -> list[str]:
        return [*python, STAGED, str(source), str(work / name), engine, recipe, *overrides]

    commands = {
        "ours": staged("ours", "llmcompress", windows),
        "nncf": staged("nncf", "nncf", windows),
        "optimum": [*python, OPTIMUM, str(source), str(work / "optimum"), recipe, *windows],
        "bf16": staged("bf16", "llmcompress", short),
    }
    # Bytes are compared with ours, whatever else is.
    compared = {"ours", *(side for pair in pairs for side in pair[:2])}
    sides = {side: command for side, command in commands.items() if side in compared}
    usages: dict[str, list[Usage]] = {side: [] for side in sides}
    stages: dict[str, list[dict[str, float]]] = {side: [] for side in sides if side != "optimum"}
    equal = dict.fromkeys(sides, 1.0)
    for _ in range(runs):
        for side, command in sides.items():
            for directory in Path(os.environ["LLMCOMPRESS_CACHE"]).glob("*"):
                if directory.name != "kernels":
                    shutil.rmtree(directory)
            usages[side].append(measure(command, work / f"{side}.log"))
            if side in stages:
                stages[side].append(json.loads((work / side / "stages_s.json").read_text()))
        for side in sides:
            equal[side] = min(equal[side], equal_share(work / "ours", work / side))
        for side in sides:
            shutil.rmtree(work / side)
    medians = {
        side: {stage: statistics.median(run[stage] for run in found) for stage in found[0]}
        for side, found in stages.items()
    }
    return [
        {
            "case": f"{recipe}, {words}",
            "equal_bytes": "True" if (share := min(equal[other], equal[mine])) == 1 else f"{share:.2%}",
            **summarise(list(zip(usages[mine], usages[other], strict=True))),
            **({"stages_s": {"ours": medians[mine], "the other": medians[other]}} if other in medians else {}),
        }
        for mine, other, words in pairs
    ]


def equal_share(*directories: Path) -> float:
    """Share of the bytes that two artifacts have alike; GPTQ's depend on the order of sums."""
    ours, other = (np.memmap(directory / "openvino_model.bin", np.uint8, mode="r") for directory in directories)
    return float(np.mean(ours == other))


def collects_statistics(recipe: str, overrides: list[str]) -> bool:
    """Whether NNCF collects statistics of activations for a packaged recipe."""
    from llmcompress import load_recipe

    weights = load_recipe(recipe, overrides).weights
    return weights is not None and weights.collects_statistics


def computes_in_bf16() -> bool:
    """Whether the processor does."""
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def usage_rows(result: dict[str, object]) -> Iterator[list[str]]:
    """Of the table: what the processes took."""
    for field, scale, unit in (("wall_s", 1, "s"), ("peak_rss_bytes", 1e9, "GB"), ("written_bytes", 1e9, "GB")):
        figure = result[field]
        assert isinstance(figure, dict)
        mine, other = (f"{figure[side] / scale:.2f} {unit}" for side in ("ours", "the other"))
        yield [field, mine, other, f"{figure['ratio']:.2f}"]


def stage_rows(result: dict[str, object]) -> Iterator[list[str]]:
    """Of the table: NNCF's stages, and those that only data-aware methods have together."""
    stages = result.get("stages_s")
    if not isinstance(stages, dict):
        return
    ours, other = stages["ours"], stages["the other"]
    names = [name for name in ours if name in other and name.startswith(("statistics", "applying"))]
    rows = {name: (ours[name], other[name]) for name in names}
    aware = [pair for name, pair in rows.items() if name not in NOT_OF_DATA]
    rows["data-aware stages"] = (sum(a for a, _ in aware), sum(b for _, b in aware))
    for name, (mine, theirs_s) in rows.items():
        ratio = f"{mine / theirs_s:.2f}" if theirs_s else "-"
        yield [name, f"{mine:.2f} s", f"{theirs_s:.2f} s", ratio]


class Watched(NamedTuple):
    """What a process and its children took."""

    wall_s: float
    peak_own_bytes: int
    """RssAnon and RssShmem of all of them together."""


def watched(command: list[str], log: Path) -> Watched:
    """Run a command to its end and look at its memory meanwhile."""
    started = time.perf_counter()
    samples = memory_meanwhile(command, log)
    return Watched(time.perf_counter() - started, max(own for _, own in samples))


def memory_meanwhile(command: list[str], log: Path) -> list[tuple[float, int]]:
    """Seconds since the epoch, and the bytes that a command and its children have of their own."""
    samples = []
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None:
            samples.append((time.time(), sum(own_memory(pid) for pid in family(process.pid))))
            time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed; its output is in {log}")
    return samples


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def own_memory(pid: int) -> int:
    """Of one process, in bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def compare_kept(source: Path, work: Path, recipe: str, runs: int) -> dict[str, object]:
    """One recipe by a kept graph, with the graph kept, without the cache, and by optimum-cli, in turn."""
    kept = Path(os.environ["LLMCOMPRESS_CACHE"]) / "graphs"
    results: dict[str, list[Watched]] = {"first": [], "kept": [], "whole": [], "optimum": []}
    equal = True
    for _ in range(runs):
        shutil.rmtree(kept, ignore_errors=True)
        for side, found in results.items():
            output = work / side
            if side == "optimum":
                command = theirs(source, output, recipe)
            else:
                command = ours(source, output, recipe, graph_cache=side != "whole")
            found.append(watched(command, work / f"{side}.log"))
        report = json.loads((work / "kept" / "llmcompress.json").read_text())
        if not report["measured"]["replayed"]:
            raise SystemExit("the graph was not kept")
        for side in ("first", "whole", "optimum"):
            names = ["openvino_model.bin"] + (["openvino_model.xml"] if side != "optimum" else [])
            equal &= all(filecmp.cmp(work / "kept" / name, work / side / name, shallow=False) for name in names)
        for side in results:
            shutil.rmtree(work / side)
    medians = {
        side: {field: statistics.median(getattr(one, field) for one in found) for field in Watched._fields}
        for side, found in results.items()
    }
    return {"case": recipe, "equal_bytes": equal, "num_runs": runs, "sides": medians, "raw": results}


def print_kept(result: dict[str, object]) -> None:
    """A table of the four ways; the ratio is optimum-cli's median time over that of the way."""
    sides = result["sides"]
    assert isinstance(sides, dict)
    table = Table(
        "way",
        "time",
        "optimum-cli / way",
        "peak memory",
        title=f"{result['case']}, equal bytes: {result['equal_bytes']}",
    )
    for side, figures in sides.items():
        ratio = sides["optimum"]["wall_s"] / figures["wall_s"]
        table.add_row(side, f"{figures['wall_s']:.2f} s", f"{ratio:.2f}", f"{figures['peak_own_bytes'] / 1e9:.2f} GB")
    Console().print(table)


def compare_four(source: Path, work: Path, runs: int) -> dict[str, object]:
    """Four recipes: our one process against four of optimum's."""
    pairs: list[tuple[Usage, Usage]] = []
    for _ in range(runs):
        mine = measure([sys.executable, "-c", FOUR_IN_ONE, str(source), str(work / "four")], work / "ours.log")
        shutil.rmtree(work / "four")
        single = []
        for recipe in RECIPES:
            single.append(measure(theirs(source, work / "one", recipe), work / "optimum.log"))
            shutil.rmtree(work / "one")
        pairs.append(
            (
                mine,
                Usage(
                    sum(usage.wall_s for usage in single),
                    max(usage.peak_rss_bytes for usage in single),
                    sum(usage.written_bytes for usage in single),
                ),
            )
        )
    return {"case": "four recipes", **summarise(pairs)}


def summarise(pairs: list[tuple[Usage, Usage]]) -> dict[str, object]:
    """Medians of both sides, and the median of the pairwise ratios."""
    result: dict[str, object] = {"num_runs": len(pairs)}
    for field in Usage._fields:
        mine = [getattr(a, field) for a, _ in pairs]
        other = [getattr(b, field) for _, b in pairs]
        result[field] = {
            "ours": statistics.median(mine),
            "the other": statistics.median(other),
            "ratio": statistics.median(a / b for a, b in zip(mine, other, strict=True)),
            "raw": [mine, other],
        }
    return result


def shape_arguments(parser: argparse.ArgumentParser) -> None:
    """What is generated: 1.1 B parameters unless it is said otherwise."""
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)


@contextlib.contextmanager
def generated(args: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """A generated checkpoint and the working directory that it lies in."""
    with tempfile.TemporaryDirectory(dir=args.work, prefix="llmcompress-bench-") as directory:
        work = Path(directory)
        os.environ["TMPDIR"] = str(work)
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["LLMCOMPRESS_CACHE"] = str(work / "cache")
        source = work / "checkpoint"
        # In a process of its own: a child's peak memory begins with that of the process it was spawned from.
        shape = [f"--{name}={getattr(args, name)}" for name in ("layers", "hidden", "intermediate")]
        script = str(Path(__file__).with_name("generated_llama.py"))
        measure([sys.executable, script, str(source), *shape], work / "generate.log")
        yield source, work


def main() -> None:
    """Run the comparison and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 8 GB)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--recipes", nargs="*", default=["int4", "int8"], choices=sorted(RECIPES))
    parser.add_argument("--graph-cache", nargs="*", default=[], choices=sorted(RECIPES), metavar="RECIPE")
    parser.add_argument(
        "--engines", nargs="*", default=[], metavar="RECIPE", help="packaged recipes, by both engines and Optimum"
    )
    parser.add_argument(
        "--sides", nargs="+", default=list(COMPARISONS), choices=COMPARISONS, help="what --engines are compared with"
    )
    parser.add_argument("--text", type=Path, default=None, help="calibration text for --engines: 32 windows of 256")
    parser.add_argument("--no-four", action="store_true", help="leave the four-recipe comparison out")
    shape_arguments(parser)
    args = parser.parse_args()
    with generated(args) as (source, work):
        kept = [compare_kept(source, work, recipe, args.runs) for recipe in args.graph_cache]
        results = [compare_one(source, work, recipe, args.runs) for recipe in args.recipes]
        text = args.text.resolve() if args.text else None
        for recipe in args.engines:
            results += compare_engines(source, work, recipe, text, args.runs, args.sides)
        if not args.no_four:
            results.append(compare_four(source, work, args.runs))
    for way in kept:
        print_kept(way)
    for result in results:
        equal = f", equal bytes: {result['equal_bytes']}" if "equal_bytes" in result else ""
        table = Table("figure", "ours", "the other", "ratio", title=f"{result['case']}{equal}")
        for row in (*usage_rows(result), *stage_rows(result)):
            table.add_row(*row)
        Console().print(table)
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "results": [*kept, *results],
            }
        )
    )


if __name__ == "__main__":
    main()
