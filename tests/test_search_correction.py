"""What predictions are off by: found from a few measured plans, and gone from the predictions of others."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmcompress.evaluation.statistics import TokenScores
from llmcompress.searching.candidates import BACKUP, Candidate, Growth, Table
from llmcompress.searching.contest import AT_ONCE, Output, Planned
from llmcompress.searching.correction import corrected, kind_of, probes, traits
from llmcompress.searching.solver import Plan, least_damage, total_kl
from llmcompress.spec.search import Format
from llmcompress.system.progress import silent

NAMES = [
    f"model.layers.{block}.{kind}.weight" for block in range(6) for kind in ("attn.q", "attn.o", "mlp.up", "mlp.down")
]
NAMES += ["model.embed_tokens.weight"]
FORMATS = (Format("int2_sym", 32), Format("int4_sym", 32), Format("int4_sym", 32, "gptq"), BACKUP)
GROWTH = Growth(0.4, 0.02)


def _table(seed: int) -> Table:
    random = np.random.default_rng(seed)
    found = []
    for name in NAMES:
        scale = random.exponential(1e-1)
        for each in FORMATS:
            bits = int(each.mode[3])
            lost = scale * 4.0**-bits * (0.5 if each.method == "gptq" else 1.0)
            found.append(Candidate(name, each, 800, 100 * bits, float(lost)))
    return Table(found, FORMATS, frozenset(), frozenset(), 100)


class _Shop:
    """Measures what is true: factors of methods, kinds and blocks on what is predicted, and the growth of the whole."""

    at_once = AT_ONCE

    def __init__(self, place: Path, seed: int, num_probes: int) -> None:
        random = np.random.default_rng(seed)
        every = sorted(
            {trait for name in NAMES for each in FORMATS for trait in traits(Candidate(name, each, 1, 1, 0.0))}
        )
        self.factors = dict(zip(every, np.exp(random.normal(0.1, 0.15, len(every))), strict=True))
        self.place, self.spec, self.progress = place, SimpleNamespace(num_probes=num_probes), silent
        self.looked_at, self.made, self.forgotten = "looked at", {}, 0
        self.made: dict[Path, Plan] = {}

    def lost(self, plan: Plan) -> float:
        alone = (
            each.kl_divergence * math.prod(self.factors[trait] for trait in traits(each)) for each in plan.values()
        )
        return GROWTH.of_sum(sum(alone))

    def planned(self, plan: Plan, table: Table, output: Output) -> Planned:
        output.directory.mkdir()
        self.made[output.directory] = plan
        return Planned(plan, None, output.directory, 0, 0)  # type: ignore[arg-type]

    def score(self, directories: list[Path], windows: object) -> tuple[Any, ...]:
        assert windows == "looked at"
        return tuple(
            SimpleNamespace(
                scores=TokenScores({"kl": np.full(8, self.lost(self.made[each]))}, np.arange(8)),
                cache=SimpleNamespace(forget=self._forget),
            )
            for each in directories
        )

    def _forget(self) -> None:
        self.forgotten += 1


@pytest.mark.parametrize("seed", range(3))
def test_predictions_are_right_after_a_few_plans_were_measured(tmp_path: Path, seed: int) -> None:
    table, shop = _table(seed), _Shop(tmp_path, seed, 8)
    plans = [least_damage(table.permitted, size) for size in (9000, 7000)]
    after, record = corrected(shop, table, plans)  # type: ignore[arg-type]
    assert record.num_measured == shop.forgotten == len(shop.made) <= 8
    assert not list(tmp_path.iterdir())
    errors = []
    for size in range(6200, 12_000, 400):
        # A plan that is the best by what is known by now, and one that is not.
        for candidates in (after.permitted, table.permitted):
            plan = least_damage(candidates, size)
            assert plan is not None
            true = shop.lost(table.same(plan))
            errors.append([abs(each.predicted(each.same(plan)) / true - 1) for each in (table, after)])
    before, now = np.median(errors, axis=0)
    assert before > 0.15
    assert now < 0.06
    assert record.error_after < 0.05 < record.error_before


def test_what_costs_most_is_measured_first() -> None:
    table = _table(0)
    plan = least_damage(table.permitted, 8000)
    assert plan is not None
    found = probes(table, [plan, plan], 4)
    assert found[0] == plan
    assert len(found) == 4
    losses = []
    for each in found[1:]:
        (kind,) = {kind_of(name) for name in each if each[name].format != BACKUP}
        losses.append(sum(plan[name].kl_divergence for name in plan if kind_of(name) == kind))
        assert all(each[name] == plan[name] for name in plan if kind_of(name) == kind)
    assert losses == sorted(losses, reverse=True)
    assert kind_of("model.layers.11.mlp.down.weight") == kind_of("model.layers.2.mlp.down.weight")


def test_growth_is_undone() -> None:
    for growth in (Growth(), Growth(0.3, 0.01), Growth(-0.2, 0.01)):
        for alone in (1e-6, 1e-3, 1e-2, 1.0):
            assert growth.sum_of(growth.of_sum(alone)) == pytest.approx(alone)
    assert Growth(0.4, 0.01).of_sum(0.01) == pytest.approx(0.012)
    plan = {"a": Candidate("a", BACKUP, 1, 1, 0.01)}
    assert _table(0)._replace(growth=Growth(0.4, 0.01)).predicted(plan) == pytest.approx(1.2 * total_kl(plan))
