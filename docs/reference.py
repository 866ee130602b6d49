"""The reference, made of the code: commands, Python, fields of what is written and of what is reported, exit codes."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer import Context
from typer.cli import get_docs_for_click

import llmcompress
from llmcompress import errors
from llmcompress.cli.app import COMMANDS, load_command
from llmcompress.spec.plan import Plan
from llmcompress.spec.validation import descriptions

WRITTEN = {
    "recipe": (
        "Fields of a recipe",
        "`llmcompress recipes show NAME` prints a recipe that has them.",
        (llmcompress.Recipe,),
    ),
    "plan": ("Fields of a plan", "What `llmcompress run` reads.", (Plan,)),
    "specifications": (
        "Specifications",
        "What the functions of evaluation, benchmark, tuning and search are given; the commands have options for them.",
        (llmcompress.EvalSpec, llmcompress.BenchSpec, llmcompress.TuneSpec, llmcompress.SearchSpec),
    ),
}
REPORTED = {
    "llmcompress.json": llmcompress.CompressionReport,
    "eval.json": llmcompress.EvalReport,
    "bench.json": llmcompress.BenchReport,
    "tune.json": llmcompress.TuneReport,
    "search.json": llmcompress.SearchReport,
    "summary of a plan": llmcompress.RunReport,
    "push --json": llmcompress.PushReport,
}


def write(directory: Path) -> None:
    """Write every page of the reference into a directory, and nothing where it is there already."""
    pages = {"commands": _commands(), "python": _python(), "exit-codes": _exit_codes(), "reports": _reports()}
    for name, (title, about, roots) in WRITTEN.items():
        pages[name] = "\n".join([f"# {title}", "", about, "", *_records(roots)])
    directory.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = directory / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _commands() -> str:
    lines = [
        "# Command line",
        "",
        "What is the same for every command is said in [On the terminal](../terminal.md).",
        "",
    ]
    for name in COMMANDS:
        command: Any = load_command(name)
        text = get_docs_for_click(obj=command, ctx=Context(command, info_name=name), name=f"llmcompress {name}")
        lines.append(_examples(re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE)))
    return "\n".join(lines)


def _examples(text: str) -> str:
    """Examples, which the terminal prints below a bold word, as a block of code; and links to pages as links."""
    found = re.sub(r"\[bold\]Examples\[/bold\]\n(.+?)\n\n", r"```console\n\1\n```\n\n", text, flags=re.DOTALL)
    return re.sub(r"^Docs: docs/(\S+)$", r"See [\1](../\1).", found, flags=re.MULTILINE).replace(
        "Docs: README.md\n", ""
    )


def _python() -> str:
    lines = ["# Python", "", "Everything is imported from `llmcompress`, and loaded when it is first used.", ""]
    for title, names in _public().items():
        lines += [f"## {title}", ""]
        for name in names:
            value = getattr(llmcompress, name)
            kind = "autofunction" if inspect.isroutine(value) else "autoclass"
            lines += ["```{eval-rst}", f".. {kind}:: {value.__module__}.{name}"]
            lines += ["   :members:", "   :exclude-members: model_config"] if name in _WITH_MEMBERS else []
            lines += ["```", ""]
    return "\n".join(lines)


_WITH_MEMBERS = ("OVModelForCausalLM", "OVRecipeConfig")


def _public() -> dict[str, list[str]]:
    names = [name for name in llmcompress.__all__ if name != "__version__"]
    values = {name: getattr(llmcompress, name) for name in names}
    functions = [name for name, value in values.items() if inspect.isroutine(value)]
    failures = [name for name, value in values.items() if inspect.isclass(value) and issubclass(value, Exception)]
    others = [name for name in names if name not in functions and name not in failures]
    return {"Functions": functions, "Classes": others, "Errors": failures}


def _exit_codes() -> str:
    codes: dict[int, list[str]] = {}
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, errors.LlmcompressError):
            first = inspect.getdoc(value) or ""
            codes.setdefault(value.exit_code, []).append(f"`{value.__name__}`: {first.splitlines()[0]}")
    lines = ["# Exit codes", "", "| code | error |", "|---|---|", "| 0 | done |"]
    lines += [f"| {code} | {'<br>'.join(names)} |" for code, names in sorted(codes.items())]
    lines.append("| 143 | `InterruptedRunError`: SIGTERM |")
    return "\n".join([*lines, ""])


def _reports() -> str:
    lines = ["# Report files", "", "Fields of the JSON files of an output directory, and of what `--json` prints.", ""]
    lines += ["| file | record |", "|---|---|"]
    lines += [f"| `{name}` | [{root.__name__}](#{root.__name__.lower()}) |" for name, root in REPORTED.items()]
    return "\n".join([*lines, "", *_records(REPORTED.values())])


def _records(roots: Iterable[type[BaseModel]]) -> Iterator[str]:
    for record in records_below(roots):
        yield from (f"## {record.__name__}", "", inspect.getdoc(record) or "", "")
        yield from ("| field | type | default | meaning |", "|---|---|---|---|")
        said = descriptions(record)
        for name, field in record.model_fields.items():
            default = "" if field.default is PydanticUndefined else f"`{_cell(_default(field.default))}`"
            kind = _cell(type_text(field.annotation))
            yield f"| `{field.alias or name}` | {kind} | {default} | {_cell(said.get(name, ''))} |"
        yield ""


def records_below(roots: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    """Records and those that their fields hold, each once, in the order in which a reader meets them."""
    found: list[type[BaseModel]] = []
    waiting = list(roots)
    while waiting:
        record = waiting.pop(0)
        if record not in found:
            found.append(record)
            inner = (each for field in record.model_fields.values() for each in _named_in(field.annotation))
            waiting = [*dict.fromkeys(inner), *waiting]
    return found


def _named_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _named_in(inner)


def type_text(annotation: Any) -> str:
    """A type as a person reads it: ``one of int8, int4``, ``list of texts``."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(each) for each in inner if each is not type(None))
    if origin is tuple and (len(inner) != 2 or inner[1] is not ...):
        return f"list of {len(inner)}: {', '.join(type_text(each) for each in inner)}"
    if origin is not None and inner:
        names = [type_text(each) for each in inner if each is not ...]
        plain = {tuple: "list of ", list: "list of ", frozenset: "set of "}.get(origin)
        return f"{plain}{names[0]}" if plain else f"mapping of {' to '.join(names)}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation) or getattr(
        annotation, "__name__", str(annotation)
    )


def _default(value: object) -> str:
    return value.__class__.__name__ if isinstance(value, BaseModel) else "null" if value is None else str(value)


def _cell(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")
