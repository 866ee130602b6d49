"""What a search gives back: KL divergence of searched plans against NNCF's recipes of no more bytes.

For each size a uniform recipe is made, and a search is given its bytes as the limit. Sensitivity and verdict come from
different windows of one text; every contender is scored on the same windows, pinned to f32. With ``--calibration`` the
search tries GPTQ as well, and so do its rivals. With ``--grid`` the plans of one search at all sizes are held against
the best of a fixed grid of NNCF's recipes, which are made and scored once and kept in that file; with ``--k-quants``
against llama.cpp's mixtures, whose bytes are the limits. ``--predictions`` makes plans near each size and says how far
off they were predicted; ``--speed`` does so for their time a token, next to plans of the same bytes chosen for size;
``--neighbours`` measures what decoder layers of the best plan lose together over what each loses alone.

    python benchmarks/search.py --source ../shared/models/ref-llama-8m --text ../shared/data/wikitext2-test-part1.txt
        --calibration ../shared/data/calibration-wiki.txt --grid grid.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from k_quants import KQuant, k_quants
from rich.console import Console
from rich.table import Table

import llmcompress
from llmcompress.benchmarking.token_times import model_times
from llmcompress.evaluation.statistics import divergence
from llmcompress.loaders.loaded_model import load
from llmcompress.report.estimate import interval_text
from llmcompress.searching.candidates import BACKUP, uniform
from llmcompress.searching.contest import AT_ONCE, Output, Planned, Workshop
from llmcompress.searching.repair import redrawn
from llmcompress.searching.search import corrected_table, predicted_table, uncompressed, workshop
from llmcompress.searching.solver import Plan, fastest, least_damage, total_kl, total_seconds
from llmcompress.searching.speed import timed
from llmcompress.searching.windows import search_windows
from llmcompress.spec import Calibration, Recipe
from llmcompress.spec.search import SearchSpec, parse_format, parse_size
from llmcompress.system.progress import silent

SIZES = ("int2_sym:64", "int2_sym:32", "int4_sym:128", "int4_asym:128", "int4_sym:64", "int4_asym:64", "int4_asym:32")
METHODS: dict[str, dict[str, Any]] = {
    "data-free": {},
    "awq+se": {"awq": True, "scale_estimation": True},
    "gptq": {"gptq": True},
}
GRID = (
    *(f"{mode}:{size}" for mode in ("int4_sym", "int4_asym") for size in (32, 64, 128)),
    *("int3_sym:64", "int3_sym:128", "int2_sym:32", "int2_sym:64"),
)
"""Formats of the grid's points."""
Point = tuple[str, int, float]
"""A recipe's name, its bytes and its KL divergence."""
PLANS_PER_SIZE = 4
NUM_PAIRS = 5
"""Of neighbours, at least, where the model has so many layers."""
QUANTILE = 0.05
"""Of the times of tokens: what other work on the machine does to most of them is not in it."""
NUM_PROCESSES = 3
"""That each model is timed in, one after the other."""
REDRAWN_BY = 0.5
"""The error of the predictions for which a plan is the best that is not so by prediction."""


class Bench(NamedTuple):
    """What is compared, and where."""

    source: Path
    given: dict[str, Any]
    """Fields of the searches' specs, all but the limit."""
    folder: Path


class Limit(NamedTuple):
    """Bytes, and what has them."""

    name: str
    size_bytes: int
    kl_divergence: float | None = None
    """Of a rival that takes so many; None: the search knows its rivals."""


def main() -> None:
    """Search at each size, and print a table and one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="text for sensitivity and verdict")
    parser.add_argument("--calibration", type=Path, help="text for GPTQ, of candidates and of the grid")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="limits: uniform formats with such bytes, or 6.5MB")
    parser.add_argument("--grid", type=Path, help="file of what NNCF's recipes lose, made where it is not there")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="of points that --grid adds; may be none"
    )
    parser.add_argument("--formats", nargs="+", default=GRID, help="of points that --grid adds")
    parser.add_argument("--only-grid", action="store_true", help="make that file and end")
    parser.add_argument("--k-quants", action="store_true", help="take llama.cpp's mixtures as limits and rivals")
    parser.add_argument("--predictions", action="store_true", help="measure plans near each size, without searches")
    parser.add_argument("--speed", choices=("decode", "prefill"), help="the same with their time a token")
    parser.add_argument("--neighbours", action="store_true", help="measure pairs of decoder layers of each size's plan")
    parser.add_argument("--candidates", nargs="+", help="formats that weights may take; the default of a search")
    parser.add_argument("--num-windows", type=int, default=32)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    text = Calibration(dataset=str(args.calibration)) if args.calibration else None
    given = {"dataset": str(args.text), "num_windows": args.num_windows, "calibration": text}
    if args.candidates:
        given["candidates"] = tuple(args.candidates)
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        bench = Bench(args.source, given, Path(folder))
        if args.predictions:
            predictions(bench, args.sizes)
        elif args.neighbours:
            neighbours(bench, args.sizes)
        elif args.speed:
            speeds(bench, args.sizes, args.speed)
        else:
            known = grid(bench, args.grid, args.methods, args.formats) if args.grid else []
            if args.k_quants:
                front(bench, mixtures(bench), known)
            elif args.only_grid:
                pass
            elif args.grid:
                front(bench, uniform_limits(bench, args.sizes), known)
            else:
                searches(bench, uniform_limits(bench, args.sizes))


def uniform_limits(bench: Bench, names: list[str]) -> Iterator[Limit]:
    """The bytes of uniform formats, or those that are given."""
    for name in names:
        if ":" not in name:
            yield Limit(name, parse_size(name))
            continue
        directory = bench.folder / name.replace(":", "-")
        recipe = Recipe(name="uniform", weights=uniform(parse_format(name)))
        llmcompress.compress(bench.source, recipe, directory, tokenizer=False)
        yield Limit(name, (directory / "openvino_model.bin").stat().st_size)


def mixtures(bench: Bench) -> Iterator[Limit]:
    """Those of llama.cpp's mixtures, and what they lose."""
    # In a process of its own: the search needs the memory that the runtimes keep of these models.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        found = process.submit(measured_mixtures, bench).result()
    table = Table("mixture", "MB", "KL as llama.cpp runs it", "its weights alone")
    for each in found:
        alone = interval_text(each.weights_alone, ".3g")
        table.add_row(each.name, f"{each.size_bytes / 1e6:.2f}", f"{each.as_run:.3g}", alone)
        print(json.dumps({**each._asdict(), "weights_alone": each.weights_alone.value}), flush=True)
    Console(width=140).print(table)
    # Where widths are no multiple of 256, llama.cpp takes other formats, and two mixtures can be one file.
    by_size = {each.size_bytes: each for each in reversed(found) if each.name != "F16"}
    return (Limit(each.name, each.size_bytes, each.weights_alone.value) for each in by_size.values())


def measured_mixtures(bench: Bench) -> list[KQuant]:
    """Make each, and measure it on the windows of the verdict."""
    shop = shop_of(bench, 1)
    return list(k_quants(shop.loaded, shop.held_out, bench.folder))


def searches(bench: Bench, limits: Iterable[Limit]) -> None:
    """Search at each limit, and hold the plan against what the search holds it against."""
    table = Table("bytes of", "MB", "best other", "its KL", "searched KL", "ratio", "predicted", "uncorrected", "s")
    for limit in limits:
        started, directory = time.perf_counter(), bench.folder / f"{limit.name.replace(':', '-')}.searched"
        report = llmcompress.search(bench.source, SearchSpec(max_bytes=limit.size_bytes, **bench.given), directory)
        seconds = time.perf_counter() - started
        plan, *others = report.contenders
        best = min(others, key=lambda each: each.kl_divergence.value)
        line = {"limit_of": limit.name, "best": best.name, **report.model_dump(mode="json")}
        print(json.dumps({name: line[name] for name in line if name not in ("weights", "measured")}), flush=True)
        row = [limit.name, f"{limit.size_bytes / 1e6:.2f}", best.name]
        row += [interval_text(each.kl_divergence, ".3g") for each in (best, plan)]
        row += [f"{plan.kl_divergence.value / best.kl_divergence.value:.2f}", f"{plan.predicted_kl:.3g}"]
        uncorrected = f"{report.correction.uncorrected_kl:.3g}" if report.correction else ""
        table.add_row(*row, uncorrected, f"{seconds:.0f}")
    Console(width=140).print(table)


def front(bench: Bench, limits: Iterable[Limit], points: list[Point]) -> None:
    """One search with a plan at each limit, each held against the best that is known and takes no more bytes."""
    *others, largest = sorted(limits, key=lambda each: each.size_bytes)
    spec = SearchSpec(
        max_bytes=largest.size_bytes, front=tuple(each.size_bytes for each in reversed(others)), **bench.given
    )
    report = llmcompress.search(bench.source, spec, bench.folder / "front")
    line = report.model_dump(mode="json")
    print(json.dumps({name: line[name] for name in line if name not in ("weights", "measured")}), flush=True)
    found = [*reversed(report.further), report.contenders[0]]
    table = Table("bytes of", "MB", "best other", "its KL", "searched KL", "ratio", "predicted")
    for limit, plan in zip((*others, largest), found, strict=True):
        known = [(kl, name) for name, size, kl in points if size <= limit.size_bytes]
        if limit.kl_divergence is not None:
            known = [(limit.kl_divergence, limit.name)]
        best_kl, best = min(known, default=(float("nan"), "not measured"))
        row = [limit.name, f"{limit.size_bytes / 1e6:.2f}", best, f"{best_kl:.3g}"]
        row += [interval_text(plan.kl_divergence, ".3g"), f"{plan.kl_divergence.value / best_kl:.2f}"]
        table.add_row(*row, f"{plan.predicted_kl:.3g}")
    Console(width=140).print(table)


def predictions(bench: Bench, names: list[str]) -> None:
    """Near each size the best plan and others: predicted with and without corrections, and measured on the verdict's.

    A search at that size measures what corrections come from, on the windows of the sensitivity.
    """
    table, errors = Table("bytes of", "plan", "MB", "uncorrected", "corrected", "measured"), []
    plain = None
    for limit in uniform_limits(bench, names):
        shop = shop_of(bench, limit.size_bytes)
        plain = plain or predicted_table(shop, uncompressed(shop))
        better, _ = corrected_table(shop, plain)
        first = least_damage(better.permitted, limit.size_bytes)
        others = redrawn(better.permitted, limit.size_bytes, 0, REDRAWN_BY)
        plans = [each for each in itertools.chain([first], itertools.islice(others, PLANS_PER_SIZE - 1)) if each]
        for number, (one, true) in enumerate(measured_plans(shop, better, plans)):
            guesses = [table_.predicted(table_.same(one.plan)) for table_ in (plain, better)]
            errors.append([abs(guess / true - 1) for guess in guesses])
            row = (limit.name, "best" if number == 0 else "other", f"{one.size_bytes / 1e6:.2f}")
            print(json.dumps([*row, *guesses, true]), flush=True)
            table.add_row(*row, *(f"{value:.3g}" for value in (*guesses, true)))
    Console(width=140).print(table)
    before, after = np.median(errors, axis=0)
    print(f"{len(errors)} plans, median error {before:.1%} uncorrected, {after:.1%} corrected")


def measured_plans(shop: Workshop, table: Any, plans: Iterable[Plan]) -> Iterator[tuple[Planned, float]]:
    """Each plan as made, and its KL divergence on the windows of the verdict."""
    waiting = iter(plans)
    for some in iter(lambda: list(itertools.islice(waiting, AT_ONCE)), []):
        made = [shop.planned(each, table, Output(shop.place / f"plan-{n}")) for n, each in enumerate(some)]
        for one, scored in zip(made, shop.score([one.directory for one in made], shop.held_out), strict=True):
            scored.cache.forget()
            yield one, float(scored.scores.values["kl"].mean())


def neighbours(bench: Bench, names: list[str]) -> None:
    """Of the best plan at each size what two decoder layers lose together, over the sum of what each loses alone.

    All other weights are at 8 bits, and what a model of 8 bits loses is taken off everything. Pairs next to each other,
    and for comparison pairs that are half of the model apart.
    """
    plain, table = None, Table("bytes of", "layers", "each alone", "together", "over the sum")
    for limit in uniform_limits(bench, names):
        shop = shop_of(bench, limit.size_bytes)
        plain = plain or predicted_table(shop, uncompressed(shop))
        plan = least_damage(plain.permitted, limit.size_bytes)
        assert plan is not None
        backup = {each.weight: each for each in plain.candidates if each.format == BACKUP}
        blocks = {name: int(found[1]) for name in plan if (found := re.search(r"\.(\d+)\.", name))}
        num_blocks = max(blocks.values()) + 1
        firsts = range(0, num_blocks - 1, max(1, num_blocks // NUM_PAIRS))
        pairs = [(n, n + apart) for apart in (1, num_blocks // 2) for n in firsts if n + apart < num_blocks]
        wanted: list[tuple[int, ...]] = [(), *((block,) for block in sorted({*itertools.chain(*pairs)})), *pairs]
        wanted += [tuple(range(num_blocks))]
        plans = [
            {name: each if blocks.get(name) in some else backup.get(name, each) for name, each in plan.items()}
            for some in wanted
        ]
        found = [kl for _, kl in measured_plans(shop, plain, plans)]
        losses = {some: kl - found[0] for some, kl in zip(wanted, found, strict=True)}
        for some in (*pairs, wanted[-1]):
            alone = [losses[(block,)] for block in some if (block,) in losses]
            over = losses[some] / sum(alone) if len(alone) == len(some) else float("nan")
            print(json.dumps([limit.name, some, alone, losses[some], over]), flush=True)
            each_alone = " + ".join(f"{value:.3g}" for value in alone) if len(some) == 2 else ""
            label = ", ".join(map(str, some)) if len(some) == 2 else "all"
            table.add_row(limit.name, label, each_alone, f"{losses[some]:.3g}", f"{over:.3f}")
    Console(width=140).print(table)


def speeds(bench: Bench, names: list[str], phase: Any) -> None:
    """Near each size plans for size and for speed: their time a token, predicted by single products and measured."""
    spec_table, plain, shop = None, None, None
    plans = []
    for limit in uniform_limits(bench, names):
        shop = shop_of(bench, limit.size_bytes)
        plain = plain or predicted_table(shop, uncompressed(shop))
        spec_table = spec_table or timed(plain, shop.loaded, phase, silent)
        best = least_damage(spec_table.permitted, limit.size_bytes)
        assert best is not None
        quick = fastest(spec_table.permitted, 1.05 * total_kl(best), limit.size_bytes)
        drawn = next(redrawn(spec_table.permitted, limit.size_bytes, 0, REDRAWN_BY))
        for name, plan in (("for size", best), ("for speed", quick), ("other", drawn)):
            if plan is not None:
                made = shop.planned(plan, spec_table, Output(shop.place / f"{len(plans)}"))
                plans.append((limit.name, name, made))
    assert spec_table is not None
    # Where a process gets its memory makes more of a difference than the runs in it.
    directories = [made.directory for _, _, made in plans]
    measured = np.median([model_times(directories, phase, QUANTILE) for _ in range(NUM_PROCESSES)], axis=0)
    products = [total_seconds(made.plan) for _, _, made in plans]
    # What a model takes beyond its products is the same for all of them.
    rest = float(np.median(measured - products))
    table = Table("bytes of", "plan", "MB", "KL predicted", "tokens/s predicted", "tokens/s")
    for (limit_name, name, made), product, seconds in zip(plans, products, measured, strict=True):
        rates = [1 / (product + rest), 1 / seconds]
        row = (limit_name, name, f"{made.size_bytes / 1e6:.2f}", f"{spec_table.predicted(made.plan):.3g}")
        print(json.dumps([*row, *rates]), flush=True)
        table.add_row(*row, *(f"{rate:.1f}" for rate in rates))
    Console(width=140).print(table)
    errors = np.abs((np.array(products) + rest) / measured - 1)
    print(f"{len(plans)} plans, median error {np.median(errors):.1%}, beside products {rest * 1e3:.3g} ms")


def shop_of(bench: Bench, size_bytes: int) -> Workshop:
    """Where a search at a limit makes its plans."""
    spec = SearchSpec(max_bytes=size_bytes, **bench.given)
    loaded = load(bench.source)
    place = Path(tempfile.mkdtemp(dir=bench.folder))
    return workshop(loaded, spec, search_windows(loaded.source, spec, offline=True), place, silent)


def grid(bench: Bench, file: Path, methods: list[str], formats: list[str]) -> list[Point]:
    """Names, bytes and KL divergences of NNCF's recipes on the windows of the verdict; what the file lacks is made."""
    known = [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    shop = shop_of(bench, 1)
    for name, weights, needs_data in points(methods, formats):
        if name in {each[0] for each in known} or (needs_data and shop.spec.calibration is None):
            continue
        started = time.perf_counter()
        calibration = shop.spec.calibration if needs_data else None
        recipe = Recipe.model_validate({"name": "point", "weights": weights, "calibration": calibration})
        directory, size = shop.make("point", recipe)
        (scored,) = shop.score([directory], shop.held_out)
        scored.cache.forget()
        known.append((name, size, divergence(scored.scores, shop.spec.confidence).kl_divergence.value))
        with file.open("a") as lines:
            lines.write(json.dumps(known[-1]) + "\n")
        print(f"{name}: {size / 1e6:.2f} MB, {known[-1][2]:.3g}, {time.perf_counter() - started:.0f} s", flush=True)
    return known


def points(methods: list[str], formats: list[str]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The grid: a name, the weights of a recipe, and whether it needs data; what loses least comes first."""
    chosen = [each for each in reversed(METHODS) if each in methods]
    for method, ratio in itertools.product(chosen, (1, 0.8, 0.6, 0.4, 0.2)):
        for text in formats:
            if ratio == 1 or text in ("int4_sym:128", "int4_asym:64"):
                base = uniform(parse_format(text)).model_dump(exclude_defaults=True)
                fields = METHODS[method]
                yield f"{text}, {method}, ratio {ratio}", {**base, **fields, "ratio": float(ratio)}, bool(fields)


if __name__ == "__main__":
    main()
