"""What a person sees of pages and cards, in a real browser, at the widths of a phone, a laptop and a large screen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from summary_fixture import write_evaluation, write_family, write_model
from test_summary import FIGURES

import llmcompress
from llmcompress.summary import compare, write_page

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "model_cards"
NAMES = ("demo-none-ov", "demo-int8-ov", "demo-int8-ptq-ov", "demo-int4-ov", "demo-int4-mixed-ov")
WIDTHS = (390, 1280, 1920)
DECISIVE = {
    "size", "perplexity", "perplexity of the original", "KL divergence", "verdict", "ttft", "prefill tokens/s",
    "decode tokens/s", "peak memory",
}  # fmt: skip
FOLDED = {"bits per weight", "top-1 agreement", "tpot", "runtime options"}

# The titles of the columns that are in sight as a whole, and whether every cell holds its own text.
COLUMNS = """(() => {
  const table = document.querySelector('.figures-of-all');
  const room = table.parentElement.getBoundingClientRect();
  const [head, ...rows] = [...table.rows].map(row => [...row.cells]);
  const inside = cell => { const box = cell.getBoundingClientRect();
    return box.width > 0 && box.left >= room.left - 1 && box.right <= Math.min(room.right, innerWidth) + 1; };
  return {
    shown: head.filter((_, n) => [head, ...rows].every(row => inside(row[n]))).map(cell => cell.textContent),
    cut: rows.flat().filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent),
    wider: document.documentElement.scrollWidth - innerWidth,
  };
})()"""
# Labels, which alone are written this small, that lie on each other or on a point.
OVERLAPS = """[...document.querySelectorAll('svg.plot')].slice(0, 3).map(svg => {
  const box = element => element.getBoundingClientRect();
  const over = (a, b) => a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  const labels = [...svg.querySelectorAll('text[style*="10px"]')];
  const points = [...svg.querySelectorAll('title')].map(title => title.parentElement);
  const found = labels.flatMap((one, n) => [...labels.slice(n + 1), ...points].filter(two => over(box(one), box(two)))
    .map(two => [one.textContent, two.textContent]));
  return {labels: labels.length, points: points.length, found};
})"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from browser import chromium, find_chromium

        program = find_chromium()
        if program is None:
            pytest.skip("there is no Chromium here, which shows the pages: apt install chromium")
        with chromium(program) as found:
            yield found


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real reports of five recipes, whose original is none of the rows."""
    return write_page(compare([EXAMPLES / name for name in NAMES]), tmp_path_factory.mktemp("page") / "compare.html")


@pytest.mark.parametrize("width", WIDTHS)
def test_size_quality_speed_and_memory_are_in_sight(tab: Any, comparison_page: Path, width: int) -> None:
    tab.open(comparison_page, width)
    seen = tab.evaluate(COLUMNS)
    # The page itself never scrolls sideways, and no text runs out of its cell.
    assert seen["wider"] <= 0
    assert seen["cut"] == []
    shown = set(seen["shown"])
    assert {"model", "size"} <= shown
    if width >= 1280:
        assert shown >= DECISIVE
    assert (shown >= FOLDED) == (width == 1920)


def test_the_name_stays_when_the_table_is_moved(tab: Any, comparison_page: Path) -> None:
    tab.open(comparison_page, 390)
    moved = """(() => { const room = document.querySelector('.figures-of-all').parentElement;
      room.scrollLeft = 10000;
      const box = document.querySelector('.figures-of-all tbody th').getBoundingClientRect();
      return [room.scrollLeft > 300, box.left >= 0, box.right < 200,
              document.elementFromPoint(box.left + 20, box.top + 10).closest('th') != null]; })()"""
    assert tab.evaluate(moved) == [True, True, True, True]
    assert "peak memory" in tab.evaluate(COLUMNS)["shown"]


def test_groups_of_columns_fold_without_a_script(tab: Any, comparison_page: Path) -> None:
    tab.open(comparison_page, 1280)
    folded = """[...document.querySelectorAll('.figures-of-all thead th')]
      .filter(cell => getComputedStyle(cell).display == 'none').map(cell => cell.textContent)"""
    assert set(tab.evaluate(folded)) == FOLDED
    tab.evaluate("document.querySelector('label[for=all-quality]').click()")
    assert set(tab.evaluate(folded)) == FOLDED - {"top-1 agreement"}
    tab.evaluate("document.querySelector('label[for=all-quality]').click()")
    assert set(tab.evaluate(folded)) == FOLDED
    assert tab.evaluate("document.scripts.length") == 0


@pytest.mark.parametrize("num_models", [5, 20])
def test_no_label_lies_on_a_point_or_on_another_label(tab: Any, tmp_path: Path, num_models: int) -> None:
    # All in one corner, next to a reference that is far away.
    figures = [(1000 + 7 * n, 10 + n % 7 / 100, 0.02 + 1e-4 * (7 * n % 11), 10.0 + n % 5) for n in range(num_models)]
    tab.open(write_page(compare(write_family(tmp_path, figures)), tmp_path / "page.html"), 1280)
    for seen in tab.evaluate(OVERLAPS):
        assert seen["found"] == []
        assert seen["points"] == num_models + 1
        # Most of a crowd is named all the same.
        assert seen["labels"] > 0.6 * num_models


@pytest.mark.parametrize("name", NAMES)
def test_the_details_of_a_card_begin_within_two_screens(tab: Any, tmp_path: Path, name: str) -> None:
    import screenshots

    page = tmp_path / "card.html"
    page.write_text(screenshots.card_page(llmcompress.render_card(EXAMPLES / name, repo_id=f"acme/{name}")))
    tab.open(page, 1280)
    seen = tab.evaluate("""(() => { const heads = [...document.querySelectorAll('h2')];
      const details = heads.find(head => head.textContent == 'Details');
      const box = details.getBoundingClientRect();
      return {top: box.top, open: document.querySelectorAll('details[open]').length,
        heads: heads.map(head => head.textContent),
        tables: [...document.querySelectorAll('table')].filter(table => table.getBoundingClientRect().height > 0
          && table.checkVisibility()).length, bottom: document.documentElement.scrollHeight}; })()""")
    assert seen["heads"] == ["How to run it", "Quality", "Speed and memory", "Details", "Limits", "License"]
    assert seen["open"] == 0
    assert seen["tables"] == 2
    assert seen["top"] < 2 * 900


def test_settings_have_their_names_in_full() -> None:
    from llmcompress.summary.charts import trade_off_chart
    from llmcompress.summary.trade_offs import Point, TradeOff

    names = [
        "default",
        "dynamic quantization 128, keys u8, values u4, execution bf16",
        "dynamic quantization 64, keys u8, values u4, execution bf16",
    ]
    points = tuple(
        Point(row=row, x=1 + row / 5, x_low=None, x_high=None, y=0.01 * 3**row, y_low=None, y_high=None, on_front=True)
        for row in range(3)
    )
    chart = trade_off_chart(TradeOff(x="gain", y="kl_divergence", bases=(), points=points), names, "x", "x", wide=True)
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert [text for text in shown if text[2:] in names] == [f"{row + 1} {name}" for row, name in enumerate(names)]


def test_the_original_is_named_where_it_is_no_row(tmp_path: Path) -> None:
    from llmcompress.summary import lines

    family = write_family(tmp_path, FIGURES)
    assert "perplexity of the original" not in {line.title for line in lines(compare(family))}
    alone = write_model(tmp_path / "alone")
    write_evaluation(alone, 11.0)
    (line,) = [line for line in lines(compare([*family[1:], alone])) if line.title == "perplexity of the original"]
    assert line.texts == ("10 [9, 11]",) * 4 + ("not measured",)


def test_sizes_that_hardly_differ_are_one_size_for_the_front(tmp_path: Path) -> None:
    # The third is smaller by less than 0.1 % and worse; the fourth by more.
    figures = [(3000, 11.0, 0.01, 40.0), (2998, 11.5, 0.03, 41.0), (2990, 11.6, 0.02, 42.0)]
    found = compare(write_family(tmp_path, figures)).trade_offs
    on_front = {
        trade_off.y: [point.on_front for point in trade_off.points]
        for trade_off in found
        if trade_off.x == "size_bytes"
    }
    assert on_front == {"perplexity": [True, True, False, True], "kl_divergence": [True, True, False, True]}
    (speed,) = [trade_off for trade_off in found if trade_off.x != "size_bytes"]
    assert [point.on_front for point in speed.points] == [True, True, False, True]


def test_the_pictures_in_the_docs_are_there_and_small() -> None:
    shown = {
        name for path in (ROOT / "docs").glob("*.md") for name in re.findall(r"images/([\w-]+\.png)", path.read_text())
    }
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    assert set(pictures) == shown
    assert shown >= {*(f"compare-{width}.png" for width in WIDTHS), "card.png"}
    assert max(pictures.values()) < 300_000
