"""strict_yaml against a corpus of what people write by mistake, against json, and against its own limits."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcompress.errors import RecipeError
from llmcompress.spec.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES, load_yaml, read_document

REFUSED = [
    # text, line, column, part of the message, part of the hint
    ("mode: no", 1, 7, "'no' without quotes has no certain meaning", "write false, or 'no' in quotes"),
    ("mode: Yes", 1, 7, "'Yes'", "write true, or 'Yes' in quotes"),
    ("mode: on", 1, 7, "'on'", "write true"),
    ("mode: OFF", 1, 7, "'OFF'", "write false"),
    ("mode: y", 1, 7, "'y'", "write true"),
    ("mode: True", 1, 7, "'True'", "write true"),
    ("mode: None", 1, 7, "'None'", "write null"),
    ("a: 1\non: 2", 2, 1, "'on'", "write true, or 'on' in quotes"),
    ("a: 0777", 1, 4, "'0777'", "without leading zeros"),
    ("a: -007", 1, 4, "'-007'", "without leading zeros"),
    ("a: 0o17", 1, 4, "'0o17'", "plain decimal number"),
    ("a: 0x1F", 1, 4, "'0x1F'", "plain decimal number"),
    ("a: 0b11", 1, 4, "'0b11'", "plain decimal number"),
    ("a: 1_000", 1, 4, "'1_000'", "plain decimal number"),
    ("a: 01.5", 1, 4, "'01.5'", "plain decimal number"),
    ("a: 1:30", 1, 4, "'1:30'", "write '1:30' in quotes"),
    ("a: 190:20:30.5", 1, 4, "'190:20:30.5'", "in quotes"),
    ("a: 2024-01-01", 1, 4, "'2024-01-01'", "in quotes"),
    ("a: 2024-01-01 10:00:00", 1, 4, "'2024-01-01 10:00:00'", "in quotes"),
    ("a: .inf", 1, 4, "'.inf'", "finite number"),
    ("a: -.INF", 1, 4, "'-.INF'", "finite number"),
    ("a: .NaN", 1, 4, "'.NaN'", "finite number"),
    ("a: 1e999", 1, 4, "'1e999'", "finite number"),
    ("a: " + "9" * 30, 1, 4, "'999", "at most 18 digits"),
    ("a: 1\nb: 2\na: 3", 3, 1, "the key 'a' a second time", "keep one"),
    ("x: {b: 1, b: 2}", 1, 11, "the key 'b' a second time", "keep one"),
    ("a: &x 1", 1, 4, "an anchor", "write the value out"),
    ("a: 1\nb: *a", 2, 4, "an alias", "quotes"),
    ("patterns: [*.weight]", 1, 13, "expected alphabetic or numeric", "quotes"),
    ("<<: {a: 1}", 1, 1, "'<<'", "merge keys"),
    ("a: !!python/object/apply:os.system [ls]", 1, 4, "a tag", "remove it"),
    ("a: !!str 1", 1, 4, "a tag", "remove it"),
    ("a: ! 1", 1, 4, "a tag", "remove it"),
    ("!!map {a: 1}", 1, 1, "a tag", "remove it"),
    ("%YAML 1.1\n---\na: 1", 1, 1, "a directive", "%"),
    ("%TAG ! tag:x,2000:\n---\na: 1", 1, 1, "a directive", "%"),
    ("a: 1\n---\nb: 2", 2, 1, "a second document", "one document"),
    ("a:\n\t- b", 2, 1, r"found character '\t'", "spaces instead of tabs"),
    ("a: b\t", 1, 5, r"found character '\t'", "spaces instead of tabs"),
    ("a: \ufeffb", 1, 4, "U+FEFF", "delete it"),
    ("\ufeffa: 1\nb: \ufeff", 2, 4, "U+FEFF", "delete it"),
    ("a: x\u2028b: y", 1, 5, "U+2028", "delete it"),
    ("a: 1\nb: \x00", 2, 4, "U+0000", "delete it"),
    ("a: \ud800", 1, 4, "U+D800", "delete it"),
    (r'a: "\ud800"', 1, 4, "half of a surrogate pair", "character itself"),
    (r'a: "\UFFFFFFFF"', 1, 7, "not YAML", "escapes"),
    ("1: x", 1, 1, "a key that is not text", "quotes"),
    ("[1]: x", 1, 1, "a key that is not text", "quotes"),
    ("? {a: 1}\n: x", 1, 3, "a key that is not text", "quotes"),
    ("null: x", 1, 1, "a key that is not text", "quotes"),
    ("a: b: c", 1, 5, "mapping values are not allowed here", "quotes"),
    ("a: @x", 1, 4, "found character '@'", "quotes"),
    ("a: 'x", 1, 6, "found unexpected end of stream", "quotes"),
    ("{a: 1", 1, 6, "expected ',' or '}'", "quotes"),
    ("[" * 20_000, 1, MAX_DEPTH + 1, f"more than {MAX_DEPTH} levels", "nest less deeply"),
    ("- " * 20_000, 1, 2 * MAX_DEPTH + 1, f"more than {MAX_DEPTH} levels", "nest less deeply"),
    ("- a\n" * (MAX_NODES + 1), MAX_NODES, 3, f"more than {MAX_NODES} values", "smaller file"),
]


@pytest.mark.parametrize(("text", "line", "column", "message", "hint"), REFUSED, ids=lambda value: repr(value)[:30])
def test_refused_with_line_and_column(text: str, line: int, column: int, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_yaml(text, where="my.yaml")
    assert caught.value.where == f"my.yaml:{line}:{column}"
    assert message in caught.value.message
    assert hint in caught.value.hint


READ = [
    ("a: 1e2", {"a": 100.0}),
    ("a: 1E+2", {"a": 100.0}),
    ("a: 2e-5", {"a": 2e-5}),
    ("a: .5", {"a": 0.5}),
    ("a: -0.25", {"a": -0.25}),
    ("a: -1", {"a": -1}),
    ("a: 0", {"a": 0}),
    ("a: true\nb: false", {"a": True, "b": False}),
    ("a: null\nb: ~\nc:", {"a": None, "b": None, "c": None}),
    ("a: 'no'\nb: \"0777\"\nc: '1:30'", {"a": "no", "b": "0777", "c": "1:30"}),
    ("a: 1.2.3\nb: 1e\nc: x:1", {"a": "1.2.3", "b": "1e", "c": "x:1"}),
    (r"a: C:\data\text.txt", {"a": r"C:\data\text.txt"}),
    ("a: namespace/name@0123456789", {"a": "namespace/name@0123456789"}),
    ("a: [.*lm_head.*, 'b # c']  # note", {"a": [".*lm_head.*", "b # c"]}),
    ("- {a: 1}\n- [2, [3]]", [{"a": 1}, [2, [3]]]),
    ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
    ("---\na: 1\n...\n", {"a": 1}),
    ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ("\ufeffa: 1", {"a": 1}),
    ("", None),
    ("# nothing\n", None),
]


@pytest.mark.parametrize(("text", "value"), READ)
def test_read_as_a_person_expects(text: str, value: object) -> None:
    got = load_yaml(text, where="my.yaml")
    assert got == value
    assert repr(got) == repr(value)  # 1, 1.0 and True are equal, and must not be confused


def test_size_is_limited_in_bytes() -> None:
    with pytest.raises(RecipeError, match=f"more than {MAX_BYTES // 1024} KiB") as caught:
        load_yaml("é" * (MAX_BYTES // 2 + 1), where="my.yaml")
    assert caught.value.where == "my.yaml"
    assert "smaller file" in caught.value.hint
    assert load_yaml("a" * MAX_BYTES, where="my.yaml") == "a" * MAX_BYTES


def test_positions_of_keys_and_items() -> None:
    document = read_document("a: 1\nb:\n  - x\n  - {c: z}\n  # end\n", where="my.yaml")
    assert document.positions == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", 0): (3, 5),
        ("b", 1): (4, 5),
        ("b", 1, "c"): (4, 6),
    }


def test_end_is_where_the_value_ends() -> None:
    for value in ("abc", "'a # b'", "[1, 2]", "{a: 1}"):
        text = f"{value} # note"
        assert read_document(text, where="x").end == len(value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18) + 1, 10**18 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values)
def test_reads_json_as_json_does(value: object) -> None:
    # YAML 1.2 contains JSON; characters beyond 16 bits are pairs of escapes there, and plain here.
    text = json.dumps(value, ensure_ascii=False)
    text = "".join(rf"\u{ord(c):04x}" if not c.isprintable() and ord(c) < 0x10000 else c for c in text)
    assert load_yaml(text, where="x") == json.loads(text)


yaml_like = st.text(st.sampled_from("ab1e.0:-?[]{},#&*!|>'\"%@`~ \n\t\\_=<\ufeff\x00\ud800é"), max_size=60)


@settings(deadline=None)
@given(yaml_like | st.text(max_size=60))
@example('"\\U00110000"')
@example("%YAML " + "9" * 5000 + ".1\n---\na")
def test_any_text_is_a_value_or_a_recipe_error(text: str) -> None:
    try:
        value = load_yaml(text, where="x")
    except RecipeError as error:
        assert (error.where[0], bool(error.hint)) == ("x", True)  # noqa: PT017 - both outcomes are right
    else:
        check_plain(value)


def check_plain(value: object) -> None:
    assert type(value) in (type(None), bool, int, float, str, list, dict)
    if isinstance(value, float):
        assert math.isfinite(value)
    if isinstance(value, list):
        for item in value:
            check_plain(item)
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        for item in value.values():
            check_plain(item)


SLOW_FOR_PYYAML = {
    "open brackets": "[" * 20_000,
    "open braces": "{a: " * 15_000,
    "alias bomb": "a: &a [x, x]\n"
    + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)),
    "words": "a: " + "x " * 30_000,
    "items": "a: [" + "1," * 30_000 + "]",
    "lines": "\n" * 60_000 + "a: 1",
    "comment": "#" * 60_000,
    "escapes": 'a: "' + r"\x41" * 15_000 + '"',
    "100 MB": "a" * 100_000_000,
}


@pytest.mark.parametrize("text", SLOW_FOR_PYYAML.values(), ids=SLOW_FOR_PYYAML)
def test_time_is_bounded(text: str) -> None:
    start = time.process_time()
    try:
        load_yaml(text, where="x")
    except RecipeError as error:
        assert error.hint  # noqa: PT017 - refusing and reading are both right
    assert time.process_time() - start < 2
