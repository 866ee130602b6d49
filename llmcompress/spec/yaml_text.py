"""YAML that means what it looks like: what a person would misread is refused with its line and column.

The syntax is PyYAML's; the values are those of the YAML 1.2 core schema. Refused: duplicate keys, keys that are not
text, anchors, aliases, merge keys, tags, directives, several documents, a tab as indentation, and plain scalars that
YAML versions read differently (``no``, ``0777``, ``1:30``, ``2024-01-01``). Depth, size and time are bounded.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, NoReturn, TypeAlias

import yaml

from llmcompress.errors import RecipeError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_INTEGER_DIGITS = 18

Location: TypeAlias = tuple[str | int, ...]
"""Keys and list indexes from the document's root to a value."""

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")
_NUMBER_LIKE = re.compile(
    r"[-+]?(?:0[0-9_]+|0[xXoObB][0-9a-fA-F_]*|[0-9]+(?:_[0-9]*)+|[0-9_]*[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]*)?)"
)
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TRUE = frozenset(["True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"])
_FALSE = frozenset(["False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"])
_NULL = frozenset(("", "~", "null"))
_BAD_CHARACTER = re.compile(f"[\x85\u2028\u2029\ufeff]|{yaml.reader.Reader.NON_PRINTABLE.pattern}")


class Document(NamedTuple):
    """A parsed document and where its parts stand."""

    value: object
    positions: dict[Location, tuple[int, int]]
    """Line and column, from 1, of every key and list item; the empty path is the root."""
    end: int
    """Index in the text behind the document's last character."""


def load_yaml(text: str, *, where: str) -> object:
    """Return the value of one YAML document: None, bool, int, float, str, list or dict with text keys.

    ``where`` names the source in errors. Raises RecipeError with ``where:LINE:COLUMN`` and what to write instead.
    """
    return read_document(text, where=where).value


def read_document(text: str, *, where: str) -> Document:
    """Like :func:`load_yaml`, with the position of every key and list item."""
    text = text.removeprefix("\ufeff")
    # Before encoding anything: a text of this many characters has at least as many bytes.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RecipeError(f"more than {MAX_BYTES // 1024} KiB of YAML", where=where, hint="write a smaller file")
    if found := _BAD_CHARACTER.search(text):
        # Some of them are line breaks for YAML 1.1 only, which would also shift the lines of every other error.
        position = _line_column(text, found.start())
        _refuse(f"the invisible character U+{ord(found[0]):04X}", where, position, "delete it")
    loader = BoundedLoader(text, where)
    try:
        return _Reader(loader).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or loader.get_mark()
        _refuse(error.problem or error.context or "not YAML", where, _position(mark), _syntax_hint(text, mark))
    except (ValueError, OverflowError, IndexError):
        # PyYAML lets these through, for example for the escape "\UFFFFFFFF".
        _refuse("not YAML", where, _position(loader.get_mark()), "check the escapes of this text")
    finally:
        loader.dispose()


def dump_yaml(data: object, *, quote: str = "'", flow_lists: bool = True) -> str:
    """Return YAML that readers of 1.1 and of 1.2 take for the same values, with quotes around what they could misread.

    Args:
        data: Plain values.
        quote: The quotes; only double ones hold what cannot be printed.
        flow_lists: Write each list on one line.
    """

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: Dumper, value: str) -> yaml.Node:
        try:
            plain = (quote == "'" or value.isprintable()) and resolve_plain(value) == value
        except ValueError:
            plain = False
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else quote)

    def items(dumper: Dumper, values: list[object]) -> yaml.Node:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow_lists)

    Dumper.add_representer(str, text)
    Dumper.add_representer(list, items)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def resolve_plain(text: str) -> object:
    """Return the value of an unquoted scalar; ValueError says what to write where its meaning is not certain."""
    if text in _NULL:
        return None
    if text in ("true", "false"):
        return text == "true"
    if text in _TRUE or text in _FALSE:
        raise ValueError(f"write {'true' if text in _TRUE else 'false'}, or '{text}' in quotes for the text")
    if text in ("Null", "NULL", "None"):
        raise ValueError(f"write null, or '{text}' in quotes for the text")
    if text in ("<<", "="):
        raise ValueError("write every key out; merge keys are not read")
    if _INTEGER.fullmatch(text):
        if len(text.lstrip("+-")) > MAX_INTEGER_DIGITS:
            raise ValueError(f"write a number of at most {MAX_INTEGER_DIGITS} digits, or the text in quotes")
        return int(text)
    if _FLOAT.fullmatch(text):
        if not math.isfinite(number := float(text)):
            raise ValueError("write a finite number, or the text in quotes")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("write a finite number, or the text in quotes")
    if _NUMBER_LIKE.fullmatch(text):
        raise ValueError("write a plain decimal number without leading zeros, or the text in quotes")
    if _SEXAGESIMAL.fullmatch(text) or _DATE.fullmatch(text):
        raise ValueError(f"write '{text}' in quotes: unquoted, YAML 1.1 reads it as a number or a date")
    return text


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's scanner, which looks 1024 characters ahead, stopped before it collects as many open brackets."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where = where

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Refuse one open bracket too many."""
        if self.flow_level >= MAX_DEPTH:
            _refuse_depth(self.where, _position(self.get_mark()))
        super().fetch_flow_collection_start(token)


class _Reader:
    """Makes values of the parser's events; its calls nest as the values do, ``MAX_DEPTH`` at most."""

    def __init__(self, loader: BoundedLoader) -> None:
        self._loader, self._where = loader, loader.where
        self._positions: dict[Location, tuple[int, int]] = {}
        self._num_nodes = self._end = 0

    def document(self) -> Document:
        root: object = None
        num_documents = 0
        while self._loader.check_event():
            if self._loader.check_event(yaml.NodeEvent):
                root = self._value(())
                continue
            event: yaml.Event = self._loader.get_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.DocumentStartEvent):
                at = _position(event.start_mark)
                num_documents += 1
                if num_documents > 1:
                    _refuse("a second document", self._where, at, "keep one document; remove the line '---'")
                if event.version or event.tags:
                    _refuse("a directive", self._where, at, "remove the line that starts with %")
        return Document(root, self._positions, self._end)

    def _value(self, path: Location) -> object:
        event, at = self._node(path)
        self._positions.setdefault(path, at)
        if isinstance(event, yaml.ScalarEvent):
            self._note_end(event)
            return _scalar(event, self._where, at)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[object] = []
            while not self._loader.check_event(yaml.SequenceEndEvent):
                items.append(self._value((*path, len(items))))
            self._note_end(self._loader.get_event())  # type: ignore[no-untyped-call]
            return items
        fields: dict[str, object] = {}
        while not self._loader.check_event(yaml.MappingEndEvent):
            key = self._key(path, fields)
            fields[key] = self._value((*path, key))
        self._note_end(self._loader.get_event())  # type: ignore[no-untyped-call]
        return fields

    def _key(self, path: Location, fields: dict[str, object]) -> str:
        event, at = self._node((*path, ""))
        key = _scalar(event, self._where, at) if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(key, str):
            _refuse("a key that is not text", self._where, at, "write a name before the ':', in quotes where needed")
        if key in fields:
            _refuse(f"the key '{_short(key)}' a second time", self._where, at, "keep one of the two")
        self._positions[*path, key] = at
        return key

    def _node(self, path: Location) -> tuple[yaml.NodeEvent, tuple[int, int]]:
        """Take the next node, which is a scalar or begins a list or mapping."""
        event: yaml.NodeEvent = self._loader.get_event()  # type: ignore[no-untyped-call]
        at = _position(event.start_mark)
        self._num_nodes += 1
        if isinstance(event, yaml.AliasEvent):
            _refuse("an alias", self._where, at, "write the value out; for text that starts with *, use quotes")
        if event.anchor is not None:
            _refuse("an anchor", self._where, at, "write the value out; for text that starts with &, use quotes")
        if getattr(event, "tag", None) is not None:
            _refuse("a tag", self._where, at, "remove it; for text that starts with !, use quotes")
        if self._num_nodes > MAX_NODES:
            _refuse(f"more than {MAX_NODES} values", self._where, at, "write a smaller file")
        if len(path) >= MAX_DEPTH:
            _refuse_depth(self._where, at)
        return event, at

    def _note_end(self, event: yaml.Event) -> None:
        self._end = event.end_mark.index if event.end_mark else self._end


def _refuse_depth(where: str, at: tuple[int, int]) -> NoReturn:
    _refuse(f"more than {MAX_DEPTH} levels", where, at, "nest less deeply")


def _scalar(event: yaml.ScalarEvent, where: str, at: tuple[int, int]) -> object:
    text: str = event.value
    if any("\ud800" <= character <= "\udfff" for character in text):
        _refuse("half of a surrogate pair", where, at, r"write the character itself, or \U and eight digits")
    if event.style is not None:
        return text
    try:
        return resolve_plain(text)
    except ValueError as error:
        _refuse(f"'{_short(text)}' without quotes has no certain meaning", where, at, str(error))


def _refuse(message: str, where: str, at: tuple[int, int], hint: str) -> NoReturn:
    raise RecipeError(message, where=f"{where}:{at[0]}:{at[1]}", hint=hint) from None


def _position(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _line_column(text: str, index: int) -> tuple[int, int]:
    before = text[:index]
    return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1


def _syntax_hint(text: str, mark: yaml.Mark) -> str:
    if text[mark.index : mark.index + 1] == "\t":
        return "indent and separate with spaces instead of tabs"
    return "check the indentation, and put text with special characters in quotes"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
