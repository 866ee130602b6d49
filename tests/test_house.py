"""The house as a whole: its rooms, the way of its imports, and how large its parts may be."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llmcompress"

ROOMS = {
    "artifact", "benchmarking", "cli", "compression", "data", "evaluation", "graph", "hub", "integrations", "loaders",
    "publishing", "report", "runner", "spec", "summary", "system", "tuning",
}  # fmt: skip
TO_COME = {"training", "searching"}
FILES = {"__init__.py", "__main__.py", "errors.py", "py.typed"}

MAX_LINES = 60
MAX_PARAMETERS = 7

PUBLIC_DOORS = {
    "apply_tuning", "benchmark", "check_conversion", "compare", "compress", "evaluate", "load", "push_to_hub",
    "render_card", "run_plan", "search", "tune", "verify", "write_card", "write_page",
}  # fmt: skip
"""Their keyword arguments are promised to users; they build records and call."""

EXECUTED_BY_NUMBA = {"compiled", "njit", "jit", "guvectorize"}
"""Decorators: a kernel's loops stand in one function, and arrays come in by position."""

NNCF_SIGNATURES = {"calculate_quantization_params"}
"""Methods that NNCF calls in place of its own of that name, with its arguments."""

LATE_IMPORTS = {
    "llmcompress/__init__.py": "public names are imported when they are first read, from a table in that file",
    "llmcompress/cli/libraries.py": "the doctor tries to import each library that may be broken",
}
"""Files that import by a name that is not in the source, each with its reason."""


class Function(NamedTuple):
    """One function of the package."""

    path: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    is_method: bool

    @property
    def name(self) -> str:
        return f"{self.path}: {self.node.name}"

    @property
    def num_lines(self) -> int:
        assert self.node.end_lineno is not None
        return self.node.end_lineno - self.node.lineno + 1

    @property
    def num_parameters(self) -> int:
        arguments = self.node.args
        static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in self.node.decorator_list)
        named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        return len(named) - (self.is_method and not static)

    @property
    def decorators(self) -> set[str]:
        calls = [each.func if isinstance(each, ast.Call) else each for each in self.node.decorator_list]
        return {each.id if isinstance(each, ast.Name) else each.attr for each in calls
                if isinstance(each, ast.Name | ast.Attribute)}  # fmt: skip

    @property
    def is_excepted(self) -> bool:
        is_door = self.node.name in PUBLIC_DOORS and not self.is_method
        replaces_nncf = self.node.name in NNCF_SIGNATURES and self.path.startswith("llmcompress/compression/nncf/")
        return is_door or replaces_nncf or self.name in commands() or bool(self.decorators & EXECUTED_BY_NUMBA)


@cache
def commands() -> frozenset[str]:
    """The functions of the commands, where a parameter is an option with its help: "path: name"."""
    from llmcompress.cli.app import COMMANDS, command, load_command

    waiting, found = [command(), *map(load_command, COMMANDS)], set()
    while waiting:
        each = waiting.pop()
        waiting += getattr(each, "commands", {}).values()
        if each.callback is not None:
            function = inspect.unwrap(each.callback)
            found.add(f"{function.__module__.replace('.', '/')}.py: {function.__name__}")
    return frozenset(found)


def lines(found: list[str]) -> str:
    return "\n".join(["", *found])


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[Function]:
    def inside(node: ast.AST, path: str) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(path, child, isinstance(node, ast.ClassDef))
            yield from inside(child, path)

    for path, tree in sources():
        yield from inside(tree, path)


def test_the_rooms_are_those_of_the_design() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    rooms = entries - FILES
    assert entries > FILES
    assert ROOMS <= rooms <= ROOMS | TO_COME
    assert len(rooms) <= 19
    assert all((PACKAGE / room / "__init__.py").is_file() for room in rooms)


def test_imports_go_one_way() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_there_is_no_circle_of_imports() -> None:
    """Neither between rooms nor between files; an import inside a function counts, one for types alone does not.

    Importing a file runs the ``__init__`` of its folders first, so that they count as well.
    """
    import grimp

    graph = grimp.build_graph("llmcompress", cache_dir=None, exclude_type_checking_imports=True)
    files = {name: set(with_folders(name, graph.find_modules_directly_imported_by(name))) for name in graph.modules}
    rooms: dict[str, set[str]] = {}
    for name, others in files.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in others)
    for imported in (files, {room: others - {room} for room, others in rooms.items()}):
        assert {name for name in imported if name in reachable(imported, name)} == set()


def with_folders(name: str, imported: set[str]) -> Iterator[str]:
    """Modules and their packages, without those that hold the importing module too."""
    for each in imported:
        parts = each.split(".")
        folders = (".".join(parts[:length]) for length in range(2, len(parts)))
        yield from (folder for folder in folders if not f"{name}.".startswith(f"{folder}."))
        yield each


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def reachable(imported: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = imported.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_no_function_is_called_by_a_string() -> None:
    found = []
    for path, tree in sources():
        if path in LATE_IMPORTS:
            continue
        modules = modules_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and is_late(node, modules):
                found.append(f"{path}:{node.lineno} {called(node)}")
            if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z_]\w*(\.\w+)+:\w+", str(node.value)):
                found.append(f"{path}:{node.lineno} {node.value}")
    assert not found, lines(found)
    assert all((ROOT / path).is_file() for path in LATE_IMPORTS)


def called(node: ast.Call) -> str:
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def is_late(node: ast.Call, modules: set[str]) -> bool:
    """An import by name, or ``getattr`` on an imported module by a name that is not in the source.

    Of ``signal``, numbers are read whose names are no more than that on systems that lack them.
    """
    if called(node) in {"import_module", "__import__"}:
        return True
    if called(node) != "getattr" or len(node.args) < 2:
        return False
    of, name = node.args[:2]
    return isinstance(of, ast.Name) and of.id in modules - {"signal"} and not isinstance(name, ast.Constant)


def modules_of(tree: ast.Module) -> set[str]:
    """Names that ``import`` binds, and those of our own modules that ``from`` binds."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT / node.module.replace(".", "/")
            names |= {alias.asname or alias.name for alias in node.names if (folder / f"{alias.name}.py").is_file()}
    return names


def test_a_function_is_read_on_one_screen() -> None:
    too_long = [f"{each.name} has {each.num_lines} lines" for each in functions()
                if each.num_lines > MAX_LINES and not each.is_excepted]  # fmt: skip
    assert not too_long, lines(too_long)


def test_a_function_has_few_parameters() -> None:
    too_many = [f"{each.name} has {each.num_parameters} parameters" for each in functions()
                if each.num_parameters > MAX_PARAMETERS and not each.is_excepted]  # fmt: skip
    assert not too_many, lines(too_many)


def test_public_doors_are_public() -> None:
    import llmcompress

    assert set(llmcompress.__all__) >= PUBLIC_DOORS


def test_no_two_public_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_errors_outside_the_command_line_name_no_flag() -> None:
    """A hint may name a whole command with its flags, ``llmcompress eval DIR --reference ORIGINAL``."""
    found = []
    for path, tree in sources():
        if path.startswith("llmcompress/cli/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called(node).endswith("Error"):
                found += [f"{path}:{text.lineno} {flag}" for text in texts(node) for flag in flags_in(text.value)]
    assert not found, lines(found)


def texts(node: ast.Call) -> Iterator[ast.Constant]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part


def flags_in(text: str) -> list[str]:
    if re.search(r"\b(llmcompress|optimum-cli|pip|hf|ray) [a-z]", text):
        return []
    return re.findall(r"(?<![\w-])--[a-z][\w-]*", text)


@pytest.mark.parametrize(("text", "flags"), [("give --offline", ["--offline"]), ("run: llmcompress eval --seed 1", [])])
def test_flags_are_seen(text: str, flags: list[str]) -> None:
    assert flags_in(text) == flags


def test_the_page_on_the_design_names_what_is_there() -> None:
    """Every path, every function and record next to a path, and every room."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ([a-z]+)/ ", page.partition("```text\n")[2].partition("```")[0], re.MULTILINE))
    assert listed == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    paths = re.findall(r"`([a-z_]+/(?:[\w.]+/)*(?:[\w.]+\.\w+)?)`", page.replace("`tests/test_house.py`", ""))
    missing = [path for path in paths if not (PACKAGE / path).exists()]
    named = re.findall(r"`([a-z_]+/[\w/]+\.py)` `(\w+)`", page)
    assert len(named) > 30
    missing += [f"{path} {name}" for path, name in named if path not in missing and name not in defined_in(path)]
    assert not missing, lines(missing)


def defined_in(path: str) -> set[str]:
    body = ast.parse((PACKAGE / path).read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
