"""Repair of a plan by measurements, the texts of a search, and its page."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmcompress.data.protocols import EvaluationWindows, Window
from llmcompress.errors import DataError, UsageError
from llmcompress.evaluation.statistics import TokenScores
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import TextRecord
from llmcompress.report.search import Contender, FrontPoint, WeightChoice
from llmcompress.searching.candidates import Candidate, Table
from llmcompress.searching.contest import AT_ONCE, Output, Planned
from llmcompress.searching.page import search_page
from llmcompress.searching.repair import repaired, swaps
from llmcompress.searching.solver import Plan, least_damage, total_bytes, total_kl
from llmcompress.searching.windows import require_apart
from llmcompress.spec.search import Format, SearchSpec
from llmcompress.spec.validation import from_options
from llmcompress.system.progress import silent

BITS = (2, 4, 8)
MAX_BYTES = 5 * 400
REST = 100
"""Of the file that is no weight of the plan's."""


def _candidates(seed: int) -> tuple[list[Candidate], dict[tuple[str, Format], float]]:
    """What five weights are predicted to lose, and what they lose."""
    random = np.random.default_rng(seed)
    found, truth = [], {}
    for name in "abcde":
        scale, error = random.exponential(1e-2), np.exp(0.5 * random.standard_normal())
        for bits in BITS:
            each = Candidate(name, Format(f"int{bits}_sym", 32), 800, 100 * bits, float(scale * 4.0**-bits))
            found.append(each)
            truth[name, each.format] = each.kl_divergence * error
    return found, truth


class _Shop:
    """Makes nothing, and measures what is true, with noise that all plans have in common."""

    at_once = AT_ONCE

    def __init__(self, place: Path, truth: dict[tuple[str, Format], float]) -> None:
        self.place, self.truth = place, truth
        self.spec, self.progress, self.looked_at = SimpleNamespace(confidence=0.95), silent, None
        self.made: dict[Path, Plan] = {}
        self.forgotten = 0

    def planned(self, plan: Plan, table: Table | None, output: Output) -> Planned:
        output.directory.mkdir()
        self.made[output.directory] = plan
        size = total_bytes(plan) + REST
        return Planned(plan, None, output.directory, size, size)  # type: ignore[arg-type]

    def lost(self, plan: Plan) -> float:
        return sum(self.truth[name, each.format] for name, each in plan.items())

    def score(self, directories: list[Path], windows: object) -> tuple[Any, ...]:
        noise = np.random.default_rng(0).exponential(1.0, 400)
        found = []
        for each in directories:
            scores = TokenScores({"kl": self.lost(self.made[each]) * noise}, np.repeat(np.arange(8), 50))
            found.append(SimpleNamespace(scores=scores, cache=SimpleNamespace(forget=self._forget)))
        return tuple(found)

    def _forget(self) -> None:
        self.forgotten += 1


def _table(candidates: list[Candidate]) -> Table:
    formats = tuple(dict.fromkeys(each.format for each in candidates))
    return Table(candidates, formats, frozenset(), frozenset(), 100)


@pytest.mark.parametrize("seed", range(3))
def test_a_repaired_plan_is_the_best_of_all_by_measurement(tmp_path: Path, seed: int) -> None:
    candidates, truth = _candidates(seed)
    shop, plan = _Shop(tmp_path, truth), least_damage(candidates, MAX_BYTES)
    assert plan is not None
    first = shop.planned(plan, None, Output(tmp_path / "first"))._replace(max_bytes=MAX_BYTES + REST)
    best, record = repaired(shop, _table(candidates), first, 20.0)  # type: ignore[arg-type]
    by_weight = [[each for each in candidates if each.weight == name] for name in "abcde"]
    every = [dict(zip("abcde", chosen, strict=True)) for chosen in itertools.product(*by_weight)]
    least = min(shop.lost(each) for each in every if total_bytes(each) <= MAX_BYTES)
    assert shop.lost(best.plan) <= min(1.1 * least, shop.lost(plan))
    assert best.size_bytes <= MAX_BYTES + REST == best.max_bytes
    assert best.directory.is_dir()
    assert {each.name for each in tmp_path.iterdir()} == {"first", best.directory.name}
    assert (record.gain is not None) == (record.num_kept > 0) == (shop.lost(best.plan) < shop.lost(plan))
    assert record.num_measured >= record.num_kept
    assert shop.forgotten > record.num_measured


def test_without_time_nothing_is_measured(tmp_path: Path) -> None:
    candidates, truth = _candidates(0)
    shop, plan = _Shop(tmp_path, truth), least_damage(candidates, MAX_BYTES)
    assert plan is not None
    first = shop.planned(plan, None, Output(tmp_path / "first"))._replace(max_bytes=MAX_BYTES + REST)
    best, record = repaired(shop, _table(candidates), first, 1e-9)  # type: ignore[arg-type]
    assert best is first
    assert (record.num_measured, record.num_kept, record.gain) == (0, 0, None)


def test_no_round_begins_that_memory_is_not_there_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, truth = _candidates(1)
    shop, plan = _Shop(tmp_path, truth), least_damage(candidates, 2400)
    assert plan is not None
    first = shop.planned(plan, None, Output(tmp_path / "first"))._replace(max_bytes=2400 + REST)
    held = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr("llmcompress.searching.repair.own_bytes", lambda: next(held))
    monkeypatch.setattr("llmcompress.searching.repair.memory", lambda: SimpleNamespace(available=2 * 10**6))
    record = repaired(shop, _table(candidates), first, 20.0)[1]  # type: ignore[arg-type]
    assert 0 < record.num_measured <= 4


def test_swaps_keep_the_bytes_and_come_by_what_they_may_gain() -> None:
    candidates, _ = _candidates(1)
    plan = least_damage(candidates, 2400)
    assert plan is not None
    found = swaps(candidates, plan, 2400)
    assert found
    for each in found:
        changed = [name for name in plan if each[name] != plan[name]]
        assert len(changed) == 2
        assert total_bytes(each) <= 2400
        sizes = sorted(each[name].size_bytes - plan[name].size_bytes for name in changed)
        assert sizes[0] < 0 < sizes[1]
    # What is predicted to cost far more than predictions are off by comes last.
    assert total_kl(found[0]) < total_kl(found[-1])


def test_texts_with_64_tokens_in_common_are_refused() -> None:
    random = np.random.default_rng(0)
    text = random.integers(0, 500, 1000)
    record = TextRecord.model_construct(dataset="text.txt")

    def windows(*starts: int) -> EvaluationWindows:
        made = [Window(text[start : start + 100], 50, number) for number, start in enumerate(starts)]
        return EvaluationWindows(made, record)  # type: ignore[arg-type]

    require_apart(text[:300].reshape(3, 100), windows(300, 450, 37 + 263), "the calibration", "the verdict")
    message = "1 of 2 windows of the verdict have a sequence of 64 tokens in common with those of the calibration"
    with pytest.raises(DataError, match=message):
        require_apart(text[:300].reshape(3, 100), windows(230, 500), "the calibration", "the verdict")


def test_a_budget_is_for_a_limit_of_bytes() -> None:
    assert SearchSpec(max_bytes=10, budget_s=60.0).budget_s == 60
    with pytest.raises(UsageError, match=r"budget_s.*has no effect with `max_kl`"):
        from_options(SearchSpec, {"dataset": "bundled", "max_kl": 0.1, "budget_s": 60.0})


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_page_shows_each_weight_in_each_format_and_the_front() -> None:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, standard_error=0.05 * value, low=0.9 * value, high=1.1 * value)

    def contender(name: str, kind: Any, size: int, lost: float) -> Contender:
        figures = {"kl_divergence": estimate(lost), "top1_agreement": estimate(0.9)}
        return Contender(name=name, kind=kind, size_bytes=size, predicted_kl=lost, **figures)

    predicted = {"int2_sym:32": 1e-2, "int4_sym:32+gptq": 1e-3}
    weights = [
        WeightChoice(name=name, num_parameters=8, format=chosen, size_bytes=4, kl_divergence=1e-3, predicted=given)
        for name, chosen, given in (
            ("a.weight", "int2_sym:32", predicted),
            ("<b>.weight", "int4_sym:32+gptq", {"int4_sym:32+gptq": 0.0}),
        )
    ]
    report = SimpleNamespace(
        num_parameters=16,
        num_sensitivity_tokens=100,
        text=SimpleNamespace(dataset="text.txt", num_scored_tokens=200),
        chosen="searched",
        reason="it loses less",
        contenders=[contender("searched", "searched", 900, 1e-3), contender("int4_sym:32", "uniform", 1000, 2e-3)],
        further=[],
        front=[FrontPoint(size_bytes=800, kl_divergence=2e-3), FrontPoint(size_bytes=1200, kl_divergence=1e-4)],
        weights=weights,
    )
    text = search_page(report)  # type: ignore[arg-type]
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert ["a.weight", "[1.0e-02]", "1.0e-03"] in page.rows
    assert ["<b>.weight", "", "[0.0e+00]"] in page.rows
    assert ["int2_sym:32", "1", "4 B", "0.001"] in page.rows
    assert text.count("predicted: size") == 2
