"""The page: what it says, what it never loads, and that names from models stay names."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from summary_fixture import layer, write_benchmark, write_evaluation, write_family, write_model
from test_summary import FAILED, FIGURES

from llmcompress.cli import run
from llmcompress.errors import UsageError, WriteError
from llmcompress.summary import FailedRow, compare, lines, page, write_page

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}
"""Elements that have no end."""
EVIL = '</title><script>alert(1)</script><img src="https://x.example/a.png" onerror=alert(1)>${x}{{ 7*7 }}$y^2$'


class Page(HTMLParser):
    """Elements in order; fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._open and {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data

    def tagged(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def family(tmp_path: Path) -> list[Path]:
    return write_family(tmp_path, FIGURES)


def check_self_contained(text: str) -> Page:
    """Nothing outside is loaded or run, ids are unique and what refers to one finds it."""
    found = Page(text)
    names = {name for name, _ in found.elements}
    assert not names & {"script", "img", "iframe", "link", "object", "embed", "image", "base", "form", "video"}
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name not in {"src", "srcset", "xlink:href", "action"}
            if name == "href":
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids
            for inside in re.findall(r"url\((.*?)\)", value or ""):
                assert inside.startswith("#")
                assert inside[1:] in ids
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    return found


def test_the_page_is_complete_alone(family: list[Path]) -> None:
    found = check_self_contained(page(compare(family, [FAILED])))
    policies = [meta["content"] for meta in found.tagged("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.tagged("meta")
    assert "prefers-color-scheme: dark" in "".join(found.text)


def test_the_table_is_that_of_the_terminal(family: list[Path]) -> None:
    comparison = compare(family, [FAILED])
    found = Page(page(comparison))
    shown = {row[1]: row[2:] for row in found.rows if len(row) == 2 + len(lines(comparison))}
    for number, row in enumerate(comparison.rows):
        assert shown[row.name] == [line.texts[number] for line in lines(comparison)]
    assert ["✗ tiny | int3", "3", "needs 5 GB of memory, 4 GB are free"] in found.rows


def test_figures_say_in_words_and_tables_what_they_show(family: list[Path]) -> None:
    comparison = compare(family)
    found = Page(page(comparison))
    plots = [svg for svg in found.tagged("svg") if svg["class"] == "plot"]
    # Three trade-offs, one distribution, one latency each.
    assert len(plots) == 3 + 1 + 5
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in plots)
    for row in ("1 tiny-none-ov", "4.00 kB", "the reference"), ("2 tiny-r0-ov", "1 kB", "0.02 [0.018, 0.022]"):
        assert any(cells[0] == row[0] and row[2] in cells for cells in found.rows), row
    assert ["2 tiny-r0-ov", "0.02", "0.01", "0.04", "0.08", "0.16", "0.32"] in found.rows
    # What a pointer on a point shows.
    assert "2 tiny-r0-ov: size 1 kB, KL divergence, nats per token 0.02 [0.018, 0.022]" in found.text
    fronts = [text for text in found.text if text.startswith("On the front")]
    assert len(fronts) == 3
    assert ["0", "4.24", "16.00"] in found.rows
    assert ["0", "530 B", "1 kB"] in found.rows
    assert ["lm_head", "8.04", "2.01 kB", "int8_asym, groups of 128"] in found.rows
    text = "".join(found.text)
    assert "llmcompress eval" in text
    assert "A CPU" in text
    assert ["openvino", "2026.4.1"] in found.rows


def test_points_stand_where_their_figures_are(family: list[Path]) -> None:
    """Read back from the drawing: sizes on a straight axis keep their distances."""
    text = page(compare(family))
    first = text[text.index("<svg") : text.index("</svg>")]
    at = [float(x) for x in re.findall(r'tiny-[^<]*</title>.*?<use [^>]*?x="([\d.]+)"', first, re.DOTALL)]
    sizes = [4000, *(size for size, *_ in FIGURES)]
    assert len(at) == len(sizes)
    assert len(set(at)) == len(sizes)
    scale = (at[0] - at[1]) / (sizes[0] - sizes[1])
    for position, size in zip(at, sizes, strict=True):
        assert position - at[0] == pytest.approx(scale * (size - sizes[0]), abs=0.01)


def test_the_same_comparison_gives_the_same_page(family: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    family = family[:3]
    first = page(compare(family))
    with matplotlib.rc_context({"font.size": 30, "axes.linewidth": 9}):
        assert page(compare(family)) == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert page(compare(family)) == first


def test_names_of_models_and_layers_are_inert(tmp_path: Path) -> None:
    name = EVIL.replace("/", "⁄")
    hostile = [layer(f"self.model.layers.0.{EVIL}\x00\u202e"), layer(EVIL), layer(f"layers.1.{EVIL}", mode=EVIL)]
    directories = [write_model(tmp_path / name, layers=hostile, cpu=EVIL), write_model(tmp_path / "$x^2$")]
    for number, directory in enumerate(directories):
        write_evaluation(directory, 10.0, kl=0.1 + number, reference=directories[0], text="<i>.txt", cpu=EVIL)
        write_benchmark(directory, 10.0 + number, cpu=EVIL)
    text = page(compare(directories, [FailedRow(name=EVIL, reason=EVIL, exit_code=1)]))
    found = check_self_contained(text)
    assert "alert(1)" in "".join(found.text)
    assert "{{ 7*7 }}" in "".join(found.text)
    assert not re.search("[\x00-\x08\u202a-\u202e]", text)
    # No formula is made of a name.
    assert re.search(r"<text[^>]*>2 \$x\^2\$</text>", text)


@pytest.mark.parametrize("num_models", [0, 1, 20])
def test_none_one_and_many_models(tmp_path: Path, num_models: int) -> None:
    figures = [(1000 + 37 * n, 10 + n / 7, 0.001 * 1.4**n, 10.0 + n % 5) for n in range(num_models - 1)]
    directories = write_family(tmp_path, figures) if num_models else []
    found = check_self_contained(page(compare(directories, [FAILED])))
    text = "".join(found.text)
    if num_models < 2:
        assert "No two models were measured on the same basis" in text
    plots = [svg for svg in found.tagged("svg") if svg["class"] == "plot"]
    assert len(plots) == {0: 0, 1: 1, 20: 3 + 1 + 20}[num_models]


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    directories = [write_model(tmp_path / name, layers=()) for name in ("a", "b")]
    found = check_self_contained(page(compare(directories)))
    row = next(row for row in found.rows if row[:2] == ["1", "a"])
    assert row[5:] == ["not measured"] * 11
    text = "".join(found.text)
    assert text.count("Not measured.") == 3
    assert "The manifest lists no weights." in text


def test_reports_without_intervals_histograms_or_decoding(tmp_path: Path) -> None:
    directories = write_family(tmp_path, FIGURES[:2], histogram=False)
    for directory in directories:
        write_benchmark(directory, 10.0, shapes=((16, 1),))
    text = "".join(check_self_contained(page(compare(directories))).text)
    assert "Without a histogram in the report: 2 tiny-r0-ov, 3 tiny-r1-ov." in text


def test_a_page_replaces_a_page_and_nothing_else(family: list[Path], tmp_path: Path) -> None:
    comparison = compare(family[:1])
    target = tmp_path / "compare.html"
    assert write_page(compare([], [FAILED]), target) == target
    assert target.read_text(encoding="utf-8") == page(compare([], [FAILED]))
    write_page(comparison, target)
    assert target.read_text(encoding="utf-8") == page(comparison)
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine</p>")
    with pytest.raises(UsageError, match=r"notes\.html: exists and is no page of llmcompress: it is left as it is"):
        write_page(comparison, notes)
    assert notes.read_text() == "<p>mine</p>"
    with pytest.raises(UsageError, match=r"is a directory\nhint: name a file, such as .*compare\.html"):
        write_page(comparison, tmp_path)
    with pytest.raises(UsageError, match=r"/dev/null: is no regular file\nhint: choose another file for the page"):
        write_page(comparison, "/dev/null")
    with pytest.raises(UsageError, match=r"its directory does not exist\nhint: mkdir -p .*nowhere"):
        write_page(comparison, tmp_path / "nowhere" / "compare.html")
    assert sorted(path.name for path in tmp_path.glob("*.html*")) == ["compare.html", "notes.html"]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_keeps_the_earlier_page(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_page(compare(family[:1]), tmp_path / "compare.html")
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"cannot write: No space left on device"):
        write_page(compare([], [FAILED]), target)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_the_command(family: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "compare.html"
    assert run(["compare", *map(str, family), "--html", str(target)]) == 0
    check_self_contained(target.read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    # Five do not fit beside each other; none is lost.
    assert all(path.name in shown for path in family)
    assert run(["compare", *map(str, family), "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert run(["compare", *map(str, family), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("| model | recipe |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "xml"], "--format: got 'xml'; accepted: table, json, csv, markdown"),
        (["--json", "--format", "csv"], "--json and --format csv contradict each other"),
        (["--html", "."], "is a directory"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Before the directories are read: this one is no artifact.
    assert run(["compare", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("own", [False, True], ids=["cache", "variable"])
def test_the_plots_write_into_the_cache_or_where_their_variable_says(
    own: bool, family: list[Path], tmp_path: Path
) -> None:
    import subprocess
    import sys

    home, cache, named = (tmp_path / name for name in ("home", "kept", "named"))
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    environment |= {"HOME": str(home), "LLMCOMPRESS_CACHE": str(cache)}
    environment |= {"MPLCONFIGDIR": str(named)} if own else {}
    arguments = ["compare", *map(str, family), "--html", str(tmp_path / "page.html")]
    done = subprocess.run([sys.executable, "-m", "llmcompress", *arguments], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
    assert list((named if own else cache / "matplotlib").glob("fontlist-*.json"))
    assert named.exists() == own


def test_help_and_tables_do_without_the_plots(family: list[Path]) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from llmcompress.cli import run; code = run(sys.argv[1:])\n"
        "sys.exit(code or ('matplotlib' in sys.modules) or ('jinja2' in sys.modules))"
    )
    done: Any = subprocess.run([sys.executable, "-c", program, "compare", *map(str, family)], capture_output=True)
    assert done.returncode == 0, done.stderr
