"""Reports as Python and notebooks print them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmcompress.artifact.verification import Problem, VerifyReport
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.push import PushReport
from llmcompress.report.readable import Readable
from llmcompress.report.tuning import TuneReport
from llmcompress.runner.records import RunReport
from llmcompress.summary import compare

CARDS = Path(__file__).parent.parent / "model_cards"
INT4 = CARDS / "demo-int4-ov"


class Cells(HTMLParser):
    """The texts of a page's cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(kind: type[Readable], name: str) -> tuple[Readable, dict[str, object]]:
    text = (INT4 / name).read_text(encoding="utf-8")
    return kind.model_validate_json(text), json.loads(text)


def test_a_manifest_says_what_it_is_in_eight_lines() -> None:
    report, raw = read(CompressionReport, "llmcompress.json")
    lines = str(report).splitlines()
    assert lines[0] == "CompressionReport"
    assert len(lines) == 9
    assert f"{raw['bits_per_weight']:.2f}" in str(report)
    assert f"{raw['size_bytes'] / 1e6:.3g} MB" in str(report)


def test_an_evaluation_says_its_figures_with_their_intervals() -> None:
    report, raw = read(EvalReport, "eval.json")
    found = raw["divergence"]["kl_divergence"]  # type: ignore[index]
    assert f"{found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]" in str(report)
    assert str(raw["verdict"]) in str(report)
    assert len(str(report).splitlines()) < 12


def test_a_benchmark_says_each_shape() -> None:
    report, raw = read(BenchReport, "bench.json")
    case = raw["cases"][0]  # type: ignore[index]
    assert f"{case['prompt_tokens']}+{case['new_tokens']} tokens" in str(report)
    assert f"{case['decode_tokens_per_s']['p50']:,.0f}" in str(report)


def test_a_comparison_has_a_line_for_each_artifact() -> None:
    lines = str(compare([INT4, CARDS / "demo-int8-ov"])).splitlines()
    assert [line.split()[0] for line in lines] == ["Comparison", "demo-int4-ov", "demo-int8-ov"]


def test_other_reports_list_their_fields() -> None:
    report = VerifyReport(ok=False, directory="out", num_files=1234, problems=(Problem("a", "is gone"),))
    assert str(report).splitlines() == [
        "VerifyReport",
        "  ok         False",
        "  directory  out",
        "  num_files  1,234",
        "  problems   1",
    ]


def test_a_notebook_shows_the_same_and_no_markup_of_others() -> None:
    report = VerifyReport(ok=True, directory="<script>alert(1)</script>", num_files=2, problems=())
    page = report._repr_html_()
    assert "<script>" not in page
    assert Cells(page).texts == [
        "VerifyReport", "ok", "True", "directory", "<script>alert(1)</script>", "num_files", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [CompressionReport, EvalReport, BenchReport, TuneReport, PushReport, RunReport])
def test_every_report_is_readable(kind: type[object]) -> None:
    assert issubclass(kind, Readable)
