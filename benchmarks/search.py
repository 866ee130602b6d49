"""What a search gives back: KL divergence of searched plans against NNCF's recipes of no more bytes.

For each size a uniform recipe is made, and a search is given its bytes as the limit. Sensitivity and verdict come from
different windows of one text; every contender is scored on the same windows, pinned to f32. With ``--calibration`` the
search tries GPTQ as well, and so do its rivals; with ``--grid`` each size is held against the best of a fixed grid of
NNCF's recipes too, which are made and scored once and kept in that file.

    python benchmarks/search.py --source ../shared/models/ref-llama-8m --text ../shared/data/wikitext2-test-part1.txt
        --calibration ../shared/data/calibration-wiki.txt --grid grid.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.evaluation.statistics import divergence
from llmcompress.loaders.loaded_model import load
from llmcompress.report.text import interval_text
from llmcompress.searching.candidates import uniform
from llmcompress.searching.contest import Workshop
from llmcompress.searching.windows import search_windows
from llmcompress.spec import Calibration, Recipe
from llmcompress.spec.search import SearchSpec, parse_format
from llmcompress.system.progress import silent

SIZES = ("int2_sym:64", "int2_sym:32", "int4_sym:128", "int4_asym:128", "int4_sym:64", "int4_asym:64", "int4_asym:32")
METHODS: dict[str, dict[str, Any]] = {
    "data-free": {},
    "awq+se": {"awq": True, "scale_estimation": True},
    "gptq": {"gptq": True},
}


def main() -> None:
    """Search at each size, and print a table and one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="text for sensitivity and verdict")
    parser.add_argument("--calibration", type=Path, help="text for GPTQ, of candidates and of the grid")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="uniform formats whose bytes are the limits")
    parser.add_argument("--grid", type=Path, help="file of what NNCF's recipes lose, made where it is not there")
    parser.add_argument("--candidates", nargs="+", help="formats that weights may take; the default of a search")
    parser.add_argument("--num-windows", type=int, default=32)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    table = Table("bytes of", "MB", "best other", "its KL", "searched KL", "ratio", "predicted", "s")
    text = Calibration(dataset=str(args.calibration)) if args.calibration else None
    given = {"dataset": str(args.text), "num_windows": args.num_windows, "calibration": text}
    if args.candidates:
        given["candidates"] = tuple(args.candidates)
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        points = grid(args.source, SearchSpec(max_bytes=1, **given), args.grid, Path(folder)) if args.grid else []
        for name in args.sizes:
            recipe = Recipe(name="uniform", weights=uniform(parse_format(name)))
            directory = Path(folder) / name.replace(":", "-")
            llmcompress.compress(args.source, recipe, directory, tokenizer=False)
            limit, made = (directory / "openvino_model.bin").stat().st_size, time.perf_counter()
            spec = SearchSpec(max_bytes=limit, **given)
            report = llmcompress.search(args.source, spec, directory.with_suffix(".searched"))
            seconds = time.perf_counter() - made
            plan, *others = report.contenders
            found = [(each.kl_divergence.value, each.name, interval_text(each.kl_divergence, ".3g")) for each in others]
            found += [(kl, name, f"{kl:.3g}") for name, size, kl in points if size <= limit]
            best, best_name, best_text = min(found)
            line = {"limit_of": name, "best": best_name, "best_kl": best, **report.model_dump(mode="json")}
            print(json.dumps({name: line[name] for name in line if name not in ("weights", "measured")}), flush=True)
            searched = interval_text(plan.kl_divergence, ".3g")
            ratio, predicted = f"{plan.kl_divergence.value / best:.2f}", f"{plan.predicted_kl:.3g}"
            row = (name, f"{limit / 1e6:.2f}", best_name, best_text, searched, ratio, predicted, f"{seconds:.0f}")
            table.add_row(*row)
    Console(width=140).print(table)


def grid(source: Path, spec: SearchSpec, file: Path, folder: Path) -> list[tuple[str, int, float]]:
    """Names, bytes and KL divergences of NNCF's recipes on the windows of the verdict; what the file lacks is made."""
    known = [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    loaded = load(source)
    windows = search_windows(loaded.source, spec, offline=True)
    held_out = windows.held_out
    shop = Workshop(loaded, spec, folder, windows.looked_at, held_out, None, silent)
    for name, weights, needs_data in points():
        if name in {each[0] for each in known} or (needs_data and spec.calibration is None):
            continue
        calibration = spec.calibration if needs_data else None
        recipe = Recipe.model_validate({"name": "point", "weights": weights, "calibration": calibration})
        directory, size = shop.make("point", recipe)
        (scored,) = shop.score([directory], held_out)
        known.append((name, size, divergence(scored.scores, spec.confidence).kl_divergence.value))
        with file.open("a") as lines:
            lines.write(json.dumps(known[-1]) + "\n")
    return known


def points() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The grid: a name, the weights of a recipe, and whether it needs data."""
    whole = [f"{mode}:{size}" for mode in ("int4_sym", "int4_asym") for size in (32, 64, 128)]
    for text in (*whole, "int3_sym:64", "int3_sym:128", "int2_sym:32", "int2_sym:64"):
        for method, fields in METHODS.items():
            for ratio in (1, 0.8, 0.6, 0.4, 0.2) if text in ("int4_sym:128", "int4_asym:64") else (1,):
                base = uniform(parse_format(text)).model_dump(exclude_defaults=True)
                yield f"{text}, {method}, ratio {ratio}", {**base, **fields, "ratio": float(ratio)}, bool(fields)


if __name__ == "__main__":
    main()
