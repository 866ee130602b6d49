"""The text of the bundled model: the documentation that every Python installation carries.

Nothing but `pydoc_data.topics` is imported for it: the standard library's docstrings are parsed from its files, the
built-in types are there anyway. It depends on the Python version only.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, NamedTuple

DOCUMENT_BREAK = "\n\n\n"  # no document holds two empty lines in a row
HELD_OUT_ONE_IN = 32
SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "idlelib"),
    *("site-packages", "dist-packages", "pydoc_data", "__pycache__"),
}


class Document(NamedTuple):
    """One topic or docstring: its dotted name, the heading that pydoc would print, and the text."""

    name: str
    heading: str
    body: str

    @property
    def text(self) -> str:
        """The heading, an empty line, the text."""
        return f"{self.heading}\n\n{self.body}" if self.heading else self.body


def tidy(text: str) -> str:
    """Unindented, without trailing blanks, never two empty lines in a row."""
    lines = "\n".join(line.rstrip() for line in inspect.cleandoc(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def topics() -> Iterator[Document]:
    """The language reference as `help()` shows it."""
    from pydoc_data.topics import topics as pages

    for name, page in sorted(pages.items()):
        yield Document(name, "", tidy(page))


def module_docstrings(node: Any, name: str) -> Iterator[Document]:
    """The docstrings of a parsed module, class or function and of everything inside it."""
    body = ast.get_docstring(node)
    if body:
        if isinstance(node, ast.Module):
            heading = f"module {name}"
        elif isinstance(node, ast.ClassDef):
            heading = f"class {name}"
        else:
            heading = f"{name}({ast.unparse(node.args)})"
        yield Document(name, heading, tidy(body))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from module_docstrings(child, f"{name}.{child.name}")


def library() -> Iterator[Document]:
    """Every docstring of the standard library's Python files, parsed, not imported."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS & set(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        yield from module_docstrings(tree, ".".join(part for part in parts if part != "__init__"))


def built_ins() -> Iterator[Document]:
    """The docstrings of the built-in functions and types, and of the types' members."""
    for name, thing in sorted(vars(builtins).items()):
        if not isinstance(thing, type | BuiltinFunctionType) or not isinstance(thing.__doc__, str):
            continue
        yield Document(name, f"class {name}" if isinstance(thing, type) else f"{name}()", tidy(thing.__doc__))
        for member, value in sorted(vars(thing).items()) if isinstance(thing, type) else ():
            if isinstance(getattr(value, "__doc__", None), str) and not isinstance(value, str):
                yield Document(f"{name}.{member}", f"{name}.{member}", tidy(value.__doc__))


def documents() -> list[Document]:
    """All documents of at least 30 characters; the first of those with the same text."""
    first: dict[str, Document] = {}
    for document in (*topics(), *built_ins(), *library()):
        if len(document.body) >= 30:
            first.setdefault(document.body, document)
    return list(first.values())


def split(corpus: list[Document]) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, by a hash of the name; what repeats other documents' lines is never held out."""
    lines = [{line.strip() for line in document.body.split("\n") if len(line.strip()) >= 30} for document in corpus]
    count = Counter(line for own in lines for line in own)
    train: list[Document] = []
    held_out: list[Document] = []
    for document, own in zip(corpus, lines, strict=True):
        chosen = int(hashlib.sha256(document.name.encode()).hexdigest()[:8], 16) % HELD_OUT_ONE_IN == 0
        alone = bool(own) and sum(count[line] > 1 for line in own) <= 0.1 * len(own)
        (held_out if chosen and alone and len(document.body) <= 8000 else train).append(document)
    return train, held_out


def answer(document: Document) -> str:
    """The first paragraph of prose in a document, "" when there is none of a fitting length."""
    paragraphs = document.body.split("\n\n")
    prose = [p for p in paragraphs if p[:1].isalnum() and not re.search(r"^(\*+|=+|-+)$", p, re.MULTILINE)]
    return prose[0] if prose and 20 <= len(prose[0]) <= 500 else ""
