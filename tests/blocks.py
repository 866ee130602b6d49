"""The blocks of code of the documentation, by what each is.

A block's kind is its language:

    sh       commands, one in each line
    console  commands behind ``$``, and what they print
    bash     a script as it lies in a file
    python   statements
    yaml     a recipe or a plan, or a part of a recipe
    jinja    the template of a model card
    json     lines of a file of questions about pictures
    text     the rooms of the package, which ``test_house.py`` compares
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASE.md")] + sorted((ROOT / "docs").glob("*.md"))
KINDS = {"sh", "console", "bash", "python", "yaml", "jinja", "json", "text"}
DIRECTIVE = re.compile(r"\{[\w-]+\}")
"""What Sphinx makes something of, such as a table of contents."""


class Block(NamedTuple):
    """A block of code of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def name(self) -> str:
        """The page with the first line that says something: what stays when lines move."""
        return f"{self.page} {self.text.strip().splitlines()[0][:60]}"


class Command(NamedTuple):
    """A command as its words, and the lines that are shown below it."""

    words: list[str]
    output: list[str]


def blocks_of(page: Path) -> list[Block]:
    """Every block of a page, fenced or indented, but for directives."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Block(page.name, (token.map or [0])[0] + 1, (token.info.split() or [""])[0], token.content)
        for token in tokens
        if token.type in ("fence", "code_block") and not DIRECTIVE.match(token.info)
    ]


ALL = [block for page in PAGES for block in blocks_of(page)]


def of_kind(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


def commands_of(block: Block) -> list[Command]:
    """The commands of a block in their order, of a script those of ours; what ``&&`` joins is several."""
    found: list[Command] = []
    for line in block.text.splitlines():
        if block.language == "console" and not line.startswith("$ "):
            assert found, f"{block.place}: the first line is no command"
            found[-1].output.append(line)
        elif line.strip() if block.language != "bash" else re.match(r"(srun )?llmcompress ", line):
            found += [Command(words, []) for words in _split(line.removeprefix("$ "))]
    return found


def _split(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word == "&&":
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def spans_of(page: Path) -> list[str]:
    """What stands in the typeface of code inside the text and the tables of a page."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8"))
    inline = (child for token in tokens for child in token.children or ())
    return [child.content for child in inline if child.type == "code_inline"]


def shape(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """What stays of a report when its figures change: the heads of tables, and what begins each line."""
    found: list[tuple[str, ...]] = []
    for line, below in zip(lines, [*lines[1:], ""], strict=False):
        cells = re.split(r"\s{2,}", line.strip())
        if below.startswith("───"):
            found.append(tuple(cells))
        elif cells[0] and not line.startswith(("─", " " * 8)):
            found.append((re.sub(r"[\d.,]+", "0", cells[0].split(": ")[0]),))
    return found
