"""Eight recipes of one model: one `llmcompress run` against eight runs of `optimum-cli export openvino`.

Whole commands in turn (A B A B ...), our survey, checks and hashes included; medians, and the ratio pair by pair. The
`.bin` of each recipe is compared byte for byte with optimum's.

    python benchmarks/sweep.py                     # 1.1 B parameters, bf16, generated
    python benchmarks/sweep.py --runs 1 --layers 4 --hidden 512 --intermediate 1408
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import shutil
from pathlib import Path

from compress import BIN, Usage, generated, measure, shape_arguments, summarise
from rich.console import Console
from rich.table import Table

# The same recipe in both tools' words: ours as the plan has it, theirs as options.
RECIPES: dict[str, tuple[str, list[str]]] = {
    "int8": ("int8", ["--weight-format", "int8"]),
    "int4": ("int4", ["--weight-format", "int4", "--group-size", "128", "--ratio", "1.0"]),
    "int4-g64": (
        "{recipe: int4, name: int4-g64, set: {weights.group_size: 64}}",
        ["--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"],
    ),
    "int4-g32": (
        "{recipe: int4, name: int4-g32, set: {weights.group_size: 32}}",
        ["--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"],
    ),
    "int4-sym": ("int4-sym", ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"]),
    "int4-sym-g64": (
        "{recipe: int4-sym, name: int4-sym-g64, set: {weights.group_size: 64}}",
        ["--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1.0"],
    ),
    "int4-sym-channel": (
        "{recipe: int4-sym, name: int4-sym-channel, set: {weights.group_size: -1, weights.group_size_fallback: error,"
        " runtime.dynamic_quantization_group_size: null}}",
        ["--weight-format", "int4", "--sym", "--group-size", "-1", "--ratio", "1.0"],
    ),
    "nf4-g64": (
        "{recipe: nf4, name: nf4-g64, set: {weights.group_size: 64}}",
        ["--weight-format", "nf4", "--group-size", "64", "--ratio", "1.0"],
    ),
}


def write_plan(source: Path, work: Path) -> Path:
    """The plan of all recipes."""
    items = "".join(f"  - {ours}\n" for ours, _ in RECIPES.values())
    path = work / "plan.yaml"
    path.write_text(f"models: [{{source: {source}, name: model}}]\nrecipes:\n{items}", encoding="utf-8")
    return path


def compare(source: Path, work: Path) -> tuple[Usage, Usage, dict[str, bool]]:
    """Both sides once."""
    plan, mine = write_plan(source, work), work / "ours"
    ours = measure([str(BIN / "llmcompress"), "run", str(plan), "-o", str(mine)], work / "ours.log")
    single, equal = [], {}
    for name, (_, options) in RECIPES.items():
        output = work / "optimum"
        command = [str(BIN / "optimum-cli"), "export", "openvino", "-m", str(source)]
        command += ["--task", "text-generation-with-past", *options, str(output)]
        single.append(measure(command, work / "optimum.log"))
        made = [directory / "openvino_model.bin" for directory in (mine / "model" / name, output)]
        equal[name] = filecmp.cmp(*made, shallow=False)
        shutil.rmtree(output)
    shutil.rmtree(mine)
    theirs = Usage(
        sum(usage.wall_s for usage in single),
        max(usage.peak_rss_bytes for usage in single),
        sum(usage.written_bytes for usage in single),
    )
    return ours, theirs, equal


def main() -> None:
    """Run the comparison and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoint and outputs go (about 15 GB)")
    parser.add_argument("--runs", type=int, default=3)
    shape_arguments(parser)
    args = parser.parse_args()
    with generated(args) as (source, work):
        runs = [compare(source, work) for _ in range(args.runs)]
    result = summarise([(ours, theirs) for ours, theirs, _ in runs])
    equal = {name: all(found[name] for _, _, found in runs) for name in RECIPES}
    table = Table("figure", "ours", "optimum-cli", "ratio")
    for field, scale, unit in (("wall_s", 1, "s"), ("peak_rss_bytes", 1e9, "GB"), ("written_bytes", 1e9, "GB")):
        figure = result[field]
        assert isinstance(figure, dict)
        table.add_row(
            field,
            f"{figure['ours'] / scale:.2f} {unit}",
            f"{figure['the other'] / scale:.2f} {unit}",
            f"{figure['ratio']:.2f}",
        )
    Console().print(table)
    print("equal bytes:", ", ".join(f"{name} {'yes' if same else 'NO'}" for name, same in equal.items()))
    machine = platform.processor() or platform.machine()
    print(json.dumps({"machine": machine, "cores": os.cpu_count(), "result": result, "equal_bytes": equal}))


if __name__ == "__main__":
    main()
