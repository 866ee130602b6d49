"""One small change of a module's source at a time, as a slip of the hand or a hasty edit would make it.

What only words say is not changed: annotations, docstrings, what an error or the log says, and every text with a blank.
"""

from __future__ import annotations

import ast
import copy
import zlib
from collections import Counter
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
# Not the slash, which joins paths.
COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
LOGGED = frozenset({"_log", "logging", "warnings"})
WORDS = frozenset({"hint", "where", "message", "detail"})
"""Arguments that a person reads."""


class Mutant(NamedTuple):
    """A module with one change."""

    name: str
    """The function, what stood there, and what stands there now; unique in the module."""
    line: int
    holder: ast.AST
    field: str
    index: int | None
    node: ast.AST | list[ast.stmt]

    @property
    def number(self) -> int:
        """By which it is asked for; it stays where other lines of the module change."""
        return zlib.crc32(self.name.encode())


class Module:
    """The source of a module, and every mutant of it."""

    def __init__(self, source: str, file: str) -> None:
        self.file = file
        self.tree = ast.parse(source)
        self.mutants = list(_named(_Finder().found(self.tree)))

    def code(self, mutant: Mutant) -> CodeType:
        """Compile a mutant; every line keeps its number."""
        held = getattr(mutant.holder, mutant.field)
        if mutant.index is None:
            setattr(mutant.holder, mutant.field, mutant.node)
        else:
            replacing = mutant.node if isinstance(mutant.node, list) else [mutant.node]
            setattr(mutant.holder, mutant.field, [*held[: mutant.index], *replacing, *held[mutant.index + 1 :]])
        try:
            return compile(ast.fix_missing_locations(self.tree), self.file, "exec")
        finally:
            setattr(mutant.holder, mutant.field, held)


class _Found(NamedTuple):
    where: str
    old: ast.AST
    mutant: Mutant


def _named(found: Iterator[_Found]) -> Iterator[Mutant]:
    """Give each a name: the same change twice in one function is told apart by a number."""
    counts: Counter[str] = Counter()
    for where, old, mutant in found:
        new = mutant.node
        after = "nothing" if isinstance(new, ast.Pass) else _short(new)
        name = f"{where}: {_short(old)} -> {after}"
        counts[name] += 1
        yield mutant._replace(name=name if counts[name] == 1 else f"{name} #{counts[name]}")


def _short(node: ast.AST | list[ast.stmt]) -> str:
    nodes = node if isinstance(node, list) else [node]
    text = "; ".join(" ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(each))).split()) for each in nodes)
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-36:]}"


class _Finder:
    """Walks a tree and yields what may be changed in it, with the function it stands in."""

    def __init__(self) -> None:
        self.where: list[str] = []

    def found(self, tree: ast.Module) -> Iterator[_Found]:
        yield from self._below(tree)

    def _below(self, node: ast.AST) -> Iterator[_Found]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
                continue
            if isinstance(value, list):
                for index, each in enumerate(value):
                    if isinstance(each, ast.AST):
                        yield from self._at(node, field, index, each)
            elif isinstance(value, ast.AST):
                yield from self._at(node, field, None, value)

    def _at(self, holder: ast.AST, field: str, index: int | None, node: ast.AST) -> Iterator[_Found]:
        if _is_words(holder, field, node):
            return
        where = ".".join(self.where) or "module"
        for new in _changed(holder, field, node):
            mutant = Mutant("", getattr(node, "lineno", getattr(holder, "lineno", 1)), holder, field, index, new)
            yield _Found(where, node, mutant)
        if isinstance(node, ast.Raise | ast.JoinedStr):
            return  # What it says is words.
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if named:
            self.where.append(node.name)
        yield from self._below(node)
        if named:
            self.where.pop()


def _is_words(holder: ast.AST, field: str, node: ast.AST) -> bool:
    """Whether a node says something to a reader or to the type checker, or has no effect."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal | ast.Assert):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Assign) and any(_name(each) in ("__all__", "_log") for each in node.targets):
        return True
    if isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Constant):
            return True  # A docstring, or an ellipsis.
        if isinstance(node.value, ast.Call) and _name(node.value.func).split(".")[0] in LOGGED:
            return True
    if isinstance(node, ast.keyword):
        # That of zip asserts what must be so.
        return node.arg in WORDS or node.arg == "strict"
    if isinstance(node, ast.Call):
        return _name(node.func) in ("TypeVar", "ParamSpec", "cast", "super")
    # A record's fields are no arithmetic.
    return isinstance(holder, ast.ClassDef) and isinstance(node, ast.AnnAssign)


def _name(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _changed(holder: ast.AST, field: str, node: ast.AST) -> Iterator[Any]:
    match node:
        case ast.Compare(ops=[operation]) if type(operation) in COMPARED:
            yield ast.Compare(node.left, [COMPARED[type(operation)]()], node.comparators)
        case ast.Compare():
            for index, operation in enumerate(node.ops):
                ops = [*node.ops[:index], COMPARED[type(operation)](), *node.ops[index + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.UnaryOp(op=ast.USub()):
            yield node.operand
        case ast.BinOp() if type(node.op) in COUNTED and not _is_text(node):
            yield ast.BinOp(node.left, COUNTED[type(node.op)](), node.right)
        case ast.AugAssign() if type(node.op) in COUNTED:
            yield ast.AugAssign(node.target, COUNTED[type(node.op)](), node.value)
        case ast.Constant():
            yield from _constants(holder, node)
        case ast.Call():
            yield from _calls(node)
        case ast.stmt():
            yield from _statements(node)
    if field in ("test", "ifs") and not isinstance(node, ast.Compare | ast.UnaryOp | ast.BoolOp | ast.Constant):
        yield ast.UnaryOp(ast.Not(), node)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and isinstance(each.value, str))
        for each in (node.left, node.right)
    )


def _constants(holder: ast.AST, node: ast.Constant) -> Iterator[ast.expr]:
    match node.value:
        case bool():
            yield ast.Constant(not node.value)
        case int():
            yield ast.Constant(node.value + 1)
        case float():
            yield ast.Constant(node.value * 2 + 1)
        case str() if node.value and " " not in node.value and isinstance(holder, ast.Compare | ast.Call | ast.Tuple):
            yield ast.Constant(f"{node.value}_x")


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    plain = [not isinstance(each, ast.Starred) for each in node.args]
    in_any_order = _name(node.func).rpartition(".")[2] in ("min", "max", "suppress")
    if (
        not in_any_order
        and len(node.args) > 1
        and all(plain[:2])
        and ast.unparse(node.args[0]) != ast.unparse(node.args[1])
    ):
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
    for index, keyword in enumerate(node.keywords):
        is_truth = isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)
        if keyword.arg not in (None, "strict", *WORDS) and not is_truth:
            yield ast.Call(node.func, node.args, [*node.keywords[:index], *node.keywords[index + 1 :]])


def _statements(node: ast.stmt) -> Iterator[ast.stmt | list[ast.stmt]]:
    match node:
        case ast.Expr(value=ast.Call() | ast.YieldFrom()) | ast.Raise():
            yield ast.Pass()
        # A truth is changed as the constant that it is.
        case ast.Return(value=ast.expr() as value) if not (
            isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool))
        ):
            yield ast.Return(ast.Constant(None))
        case ast.Return(value=None):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
            yield ast.Pass()
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.With():
            yield from _without_managers(node)
        case ast.Try():
            yield from _without_handling(node)


def _without_managers(node: ast.With) -> Iterator[ast.stmt | list[ast.stmt]]:
    for index, item in enumerate(node.items):
        if item.optional_vars is None:
            items = [*node.items[:index], *node.items[index + 1 :]]
            yield ast.With(items, node.body) if items else node.body


def _without_handling(node: ast.Try) -> Iterator[ast.stmt]:
    if node.finalbody and node.handlers:
        yield ast.Try(node.body, node.handlers, node.orelse, [])
    elif node.finalbody:
        yield ast.If(ast.Constant(True), [*node.body, *node.orelse], [])
    for index, handler in enumerate(node.handlers):
        others = [*node.handlers[:index], *node.handlers[index + 1 :]]
        if others or node.finalbody:
            yield ast.Try(node.body, others, node.orelse if others else [], node.finalbody)
        else:
            yield ast.If(ast.Constant(True), [*node.body, *node.orelse], [])
        if isinstance(handler.type, ast.Tuple):
            for at in range(len(handler.type.elts)):
                kinds = ast.Tuple([*handler.type.elts[:at], *handler.type.elts[at + 1 :]], ast.Load())
                narrowed = ast.ExceptHandler(kinds, handler.name, handler.body)
                handlers = [*node.handlers[:index], narrowed, *node.handlers[index + 1 :]]
                yield ast.Try(node.body, handlers, node.orelse, node.finalbody)
