"""The front door: the README fits a screen or two, the reference holds what the code has, links lead somewhere."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt

import llmcompress
from llmcompress import errors
from llmcompress.cli.app import COMMANDS, load_command
from llmcompress.spec import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURE = re.compile(r"[*+-]*\d[\d.,e-]*\**( (s|ms|min|GB|MB|%|±|→)|\s*\[|$)")
"""A cell that holds something measured: a number with its unit, deviation or interval."""


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The module that makes the reference; it lies beside the pages, in no package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages_directory(reference: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference") / "reference"
    reference.write(directory)
    return directory


@pytest.fixture(scope="module")
def pages(pages_directory: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in pages_directory.iterdir()}


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 12_000


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_link_leads_to_a_file_and_a_heading_in_it(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        # The reference is made when the site is.
        if "://" not in link and not link.startswith("reference/"):
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not heading or heading in anchors_of(target), link


def anchors_of(page: Path) -> set[str]:
    """What the headings of a page are linked by, as GitHub and the site make it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_table_of_figures_has_its_script(page: Path) -> None:
    """In its section stands what is to be run to make it again."""
    assert [line for line, scripts in tables_of_figures(page) if not scripts] == []


def tables_of_figures(page: Path) -> list[tuple[int, set[str]]]:
    """Each table with four figures or more: its line, and the scripts that its section names."""
    found, scripts, figures = [], set[str](), 0
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8"))
    for token in tokens:
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            scripts = set()
        elif token.type == "table_open":
            figures, line = 0, (token.map or [0])[0] + 1
        elif token.type == "inline":
            figures += bool(FIGURE.match(token.content))
            spans = [child.content for child in token.children or () if child.type == "code_inline"]
            scripts.update(
                each for span in spans for each in re.findall(r"\b(?:benchmarks|tests|tests/faults)/\w+\.py", span)
            )
        elif token.type == "table_close" and figures >= 4:
            found.append((line, scripts))
    return found


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} <= set(contents)


def test_every_command_and_option_is_in_the_reference(pages: dict[str, str]) -> None:
    for name in COMMANDS:
        command = load_command(name)
        for each in (command, *getattr(command, "commands", {}).values()):
            (text,) = re.findall(
                rf"^#+ `llmcompress {name}`$.*?(?=^## |\Z)", pages["commands"], re.MULTILINE | re.DOTALL
            )
            flags = [flag for option in each.params if not option.hidden for flag in option.opts if "--" in flag]
            assert flags
            assert [flag for flag in flags if flag not in text] == []


@pytest.mark.parametrize("page", ["recipe", "plan", "specifications", "reports"])
def test_every_field_is_in_the_reference(page: str, reference: ModuleType, pages: dict[str, str]) -> None:
    roots = reference.WRITTEN[page][2] if page in reference.WRITTEN else tuple(reference.REPORTED.values())
    known: dict[str, set[str]] = {}
    for root in roots:
        # What pydantic itself finds below it.
        schema = root.model_json_schema()
        for name, each in {root.__name__: schema, **schema.get("$defs", {})}.items():
            if "properties" in each:
                known.setdefault(name, set()).update(each["properties"])
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages[page], re.MULTILINE | re.DOTALL))
    assert known
    for name, fields in known.items():
        assert fields <= set(re.findall(r"^\| `([^`]+)` \|", sections[name], re.MULTILINE)), name


def test_every_public_name_and_exit_code_is_in_the_reference(pages: dict[str, str]) -> None:
    named = {line.rpartition(".")[2] for line in re.findall(r"auto(?:function|class):: (\S+)", pages["python"])}
    assert named == set(llmcompress.__all__) - {"__version__"}
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, errors.LlmcompressError):
            (line,) = [line for line in pages["exit-codes"].splitlines() if line.startswith(f"| {value.exit_code} |")]
            assert f"`{value.__name__}`" in line


def test_a_second_run_writes_nothing(reference: ModuleType, pages_directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in pages_directory.iterdir()}
    reference.write(pages_directory)
    assert {path: path.stat().st_mtime_ns for path in pages_directory.iterdir()} == before


def test_types_are_told_in_words(reference: ModuleType) -> None:
    assert reference.type_text(str | None) == "text"
    assert reference.type_text(tuple[int, ...]) == "list of integer"
    assert reference.type_text(dict[str, float]) == "mapping of text to number"
    assert reference.type_text(int | Recipe) == "integer or [Recipe](#recipe)"
