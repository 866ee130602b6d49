"""A search that goes by time: its products, its plans against all plans, its limit, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llmcompress
from llmcompress import SearchSpec
from llmcompress.errors import ModelError, UsageError
from llmcompress.searching import planning, speed
from llmcompress.searching.candidates import BACKUP, Candidate, Table
from llmcompress.searching.contest import Output, Planned
from llmcompress.searching.planning import planned_for
from llmcompress.searching.solver import Plan, fastest, least_damage_in_time, total_bytes, total_kl, total_seconds
from llmcompress.searching.speed import Product, measure, product_times, timed
from llmcompress.spec.search import Format
from llmcompress.spec.validation import from_options
from llmcompress.system.progress import silent

FORMATS = [Format("int4_sym", size) for size in (32, 64, 128, -1)]


def _candidates(seed: int) -> list[Candidate]:
    random = np.random.default_rng(seed)
    return [
        Candidate(name, each, 100, int(random.integers(50, 500)), *map(float, random.exponential((1e-4, 1e-3))))
        for name in "abcd"
        for each in FORMATS
    ]


@pytest.mark.parametrize("seed", range(2))
def test_plans_by_time_are_the_best_of_all(seed: int) -> None:
    """Against every plan of four weights in four formats."""
    candidates = _candidates(seed)
    by_weight = [[each for each in candidates if each.weight == name] for name in "abcd"]
    every = [dict(zip("abcd", plan, strict=True)) for plan in itertools.product(*by_weight)]
    least = min(map(total_seconds, every))
    for most in (1.5 * least, 3 * least):
        best = min(total_kl(plan) for plan in every if total_seconds(plan) <= most)
        plan = least_damage_in_time(candidates, most)
        assert plan is not None
        assert total_seconds(plan) <= most * (1 + 1e-6)
        assert total_kl(plan) == pytest.approx(best, rel=2e-3)
    assert least_damage_in_time(candidates, 0.5 * least) is None
    assert least_damage_in_time(candidates, -1.0) is None
    loss, size = 2 * min(map(total_kl, every)), 2 * min(map(total_bytes, every))
    quick = min(total_seconds(plan) for plan in every if total_kl(plan) <= loss and total_bytes(plan) <= size)
    plan = fastest(candidates, loss, size)
    assert plan is not None
    assert total_seconds(plan) == pytest.approx(quick, rel=0.01)
    assert total_seconds(fastest(candidates) or {}) == pytest.approx(least, rel=0.01)
    assert fastest(candidates, 1e-9) is None


def test_products_are_timed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (Product(rows, 256, 2, Format("int8_asym", -1), 1, 0) for rows in (64, 16384))
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path))
    asked: list[list[Product]] = []

    def here(function: Any, given: dict[str, Any], *, progress: Any) -> list[float]:
        assert function is measure
        asked.append(given["products"])
        return measure(**given, progress=progress)

    monkeypatch.setattr(speed, "run_supervised", here)
    found = product_times([small], silent)
    assert product_times([small, large], silent)[small] == found[small]
    assert asked == [[small], [large]]
    assert product_times([large], silent)[large] > 0
    (file, _) = sorted(tmp_path.rglob("*.json"))
    file.write_text("{}")
    assert len(product_times([small, large], silent)) == 2
    assert len(asked) == 3


def test_what_else_the_machine_does_is_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    products = [Product(rows, 256, 2, Format("int8_asym", -1), 1, 0) for rows in (64, 128)]
    random = np.random.default_rng(0)

    def run(product: Product) -> float:
        delay = float(random.exponential(10)) if random.random() < 0.5 else 0.0
        return product.num_copies * product.num_rows * 1e-6 + delay

    monkeypatch.setattr(speed, "_request", lambda product: product)
    monkeypatch.setattr(speed, "_run", run)
    assert measure(products, silent) == pytest.approx([64e-6, 128e-6])


def test_each_weight_has_the_time_of_its_shape_and_format(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Any = llmcompress.load(demo_checkpoint, tokenizer=False)
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"]
    formats = (BACKUP, Format("int4_sym", 64), Format("int4_sym", 64, "gptq"))
    candidates = [Candidate(name, each, 1, 1, 0.0) for name in names for each in formats]
    table = Table(candidates, formats, frozenset(names[:2]), frozenset(names[:1]), 1)

    def known(products: list[Product], progress: Any) -> dict[Product, float]:
        return {each: each.num_rows * each.num_tokens * (8 if each.format == BACKUP else 4) for each in products}

    monkeypatch.setattr(speed, "product_times", known)
    for phase, of_head in (("decode", 1.0), ("prefill", 1 / 512)):
        found = {(each.weight, each.format): each.seconds for each in timed(table, loaded, phase, silent).candidates}  # type: ignore[arg-type]
        config = loaded.source.config
        assert {found[names[0], each] for each in formats} == {0.0}
        assert [found[names[2], each] / config["intermediate_size"] for each in formats] == [8, 4, 4]
        assert [found[names[1], each] / config["vocab_size"] for each in formats] == pytest.approx(
            [8 * of_head, 4 * of_head, 4 * of_head]
        )
    stacks = SimpleNamespace(name=f"self.{names[2]}", shape=(4, 8, 8))
    monkeypatch.setattr(speed, "layer_table", lambda model: [stacks])
    with pytest.raises(ModelError, match="a token takes a few of its experts, whose time cannot be predicted"):
        timed(table._replace(candidates=candidates[-1:]), loaded, "decode", silent)


class _Shop:
    """A model takes a millisecond beside its products, and somewhat more the better it is."""

    def __init__(self, place: Path, **spec: Any) -> None:
        self.place, self.spec = place, SearchSpec(**spec)
        self.made: dict[Path, Plan] = {}

    def planned(self, plan: Plan, table: Table, output: Output) -> Planned:
        self.made[output.directory] = plan
        return Planned(plan, None, output.directory, total_bytes(plan), 0)  # type: ignore[arg-type]

    def times(self, directories: list[Path], phase: str) -> list[float]:
        assert phase == "decode"
        return [1e-3 + 1.1 * total_seconds(self.made[each]) for each in directories]


def test_the_limit_of_speed_is_held_as_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = _candidates(0)
    table = Table(candidates, tuple(FORMATS), frozenset(), frozenset(), 1)
    least = total_seconds(fastest(candidates) or {})
    for factor in (1.3, 3.0):
        shop = _Shop(tmp_path, min_decode=1 / (1e-3 + factor * least))
        monkeypatch.setattr(planning, "model_times", shop.times)
        planned = planned_for(shop, table)  # type: ignore[arg-type]
        (seconds,) = shop.times([planned.directory], "decode")
        assert seconds <= 1e-3 + factor * least
        assert total_kl(planned.plan) <= total_kl(fastest(candidates) or {})
    shop = _Shop(tmp_path, min_decode=2000.0)
    monkeypatch.setattr(planning, "model_times", shop.times)
    with pytest.raises(UsageError, match=r"no plan of these formats decodes 2000 tokens/s here; the fastest does \d+"):
        planned_for(shop, table)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_decode": 20.0, "max_kl": 0.1}, "got `max_kl` and `min_decode` of `max_bytes`"),
        ({"min_decode": 20.0, "optimize_for": "prefill"}, "prefill has no effect with `min_decode`"),
        ({"min_decode": 20.0, "budget_s": 60.0}, "has no effect where a plan goes by time"),
        ({"max_bytes": 20, "optimize_for": "decode", "budget_s": 60.0}, "has no effect where a plan goes by time"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_options(SearchSpec, {"dataset": "bundled", **given})


def test_a_plan_goes_by_the_time_that_is_asked_for() -> None:
    assert SearchSpec(max_kl=0.1).phase is None
    assert SearchSpec(max_kl=0.1, optimize_for="prefill").phase == "prefill"
    assert SearchSpec(min_decode=20.0).phase == "decode"


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"max_kl": 0.05, "optimize_for": "prefill"}, {"min_decode": 5.0}])
def test_a_search_by_time_says_what_its_plan_takes(
    demo_checkpoint: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    few = ("int4_sym:128", "int4_asym:32", "int8_asym")
    options = {"seq_len": 64, "num_samples": 4, "num_windows": 8, "num_probes": 0, "candidates": few}
    spec = SearchSpec(dataset=str(text), **options, **given)
    report = llmcompress.search(demo_checkpoint, spec, tmp_path / "out")
    assert report.speed is not None
    assert report.speed.phase == spec.phase
    assert report.speed.tokens_per_s > 5
    assert report.speed.for_size_tokens_per_s > 5
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == ["out"]
