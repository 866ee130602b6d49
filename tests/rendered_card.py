"""A model card as a reader gets it: front matter apart, the rest as HTML of a GitHub-like renderer."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import yaml
from markdown_it import MarkdownIt

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def front_matter(card: str) -> str:
    found = _FRONT_MATTER.match(card)
    assert found is not None
    return found[1]


def metadata(card: str) -> Any:
    return yaml.safe_load(front_matter(card))


class Page(HTMLParser):
    """Tags in order, with the attributes that do not hold text; text in order; the cells of every table."""

    def __init__(self, card: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.blocks: list[str] = []
        self._in_cell = self._in_block = False
        body = _FRONT_MATTER.sub("", card)
        self.html = MarkdownIt("gfm-like", {"html": True}).render(body)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(attrs))))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        elif tag == "pre":
            self.blocks.append("")
            self._in_block = True

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", ()))
        if tag in ("td", "th"):
            self._in_cell = False
        elif tag == "pre":
            self._in_block = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data
        if self._in_block:
            self.blocks[-1] += data

    def table(self, heading: str) -> dict[str, list[str]]:
        """The rows of the tables whose heading has a cell of this text, by their first cell; no two tables have one."""
        tables = [{row[0]: row[1:] for row in table[1:]} for table in self.tables if heading in table[0]]
        assert tables
        found = {name: cells for table in tables for name, cells in table.items()}
        assert len(found) == sum(map(len, tables))
        return found
