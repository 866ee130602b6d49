"""Hostile and odd inputs: a valid one with some bytes changed, or with some of its JSON values."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, -1, 1, 2, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e308)
TEXTS = (
    "",
    " ",
    "\0",
    "-",
    "null",
    "1e999",
    "../../outside/planted",
    "/outside/planted",
    "~root",
    "a" * 5000,
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "{% for x in range(10**9) %}x{% endfor %}",
    "\u202e\u0000\x1b[31m",
    "\ud800",
    "namespace/name@" + "0" * 40,
    "x.safetensors",
    "custom.py",
)
CHUNKS = (b"\xef\xbb\xbf", b"\0", b"\xff\xfe", b"[" * 20_000, b"{" * 5_000, b'"', b"NaN", b"1e999", b"&a *a", b"!!x ")

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
    | st.integers()
    | st.floats()
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed_document(draw: st.DrawFn, document: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, moved, renamed or added."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            return draw(_values)
        container, key = draw(st.sampled_from(places))
        other, other_key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "replace", "remove", "move", "wrap", "add"))):
            case "replace":
                container[key] = draw(_values)
            case "remove":
                del container[key]
            case "move":
                container[key] = copy.deepcopy(other[other_key])
            case "wrap":
                container[key] = [container[key]]
            case "add" if isinstance(container, dict):
                container[draw(st.sampled_from(TEXTS) | st.text(max_size=8))] = draw(_values)
            case "add":
                container.append(draw(_values))
    return changed


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    """The content with one to four spans flipped, removed, doubled, replaced or added to."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice((0, 1, 2, 8, 64, 1000)))
        span = content[start:end]
        match chance.choice(("flip", "remove", "double", "chunk", "random", "cut", "number", "text", "encoding")):
            case "flip":
                span = bytes(byte ^ (1 << chance.randrange(8)) for byte in span)
            case "remove":
                span = b""
            case "double":
                span *= chance.choice((2, 3, 100))
            case "chunk":
                span += chance.choice(CHUNKS)
            case "random":
                span = chance.randbytes(len(span) + 1)
            case "cut":
                return content[:start]
            case "number":
                content, start, end, span = _replaced(content, rb"-?\d+", str(chance.choice(NUMBERS)), chance)
            case "text":
                quoted = json.dumps(chance.choice(TEXTS))
                content, start, end, span = _replaced(content, rb'"[^"\n]{0,80}"', quoted, chance)
            case "encoding":
                return content.decode("latin-1").encode(chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")))
        content = content[:start] + span + content[end:]
    return content


def _replaced(content: bytes, pattern: bytes, value: str, chance: random.Random) -> tuple[bytes, int, int, bytes]:
    found = list(re.finditer(pattern, content[:200_000]))
    match = chance.choice(found) if found else None
    return (content, 0, 0, b"") if match is None else (content, match.start(), match.end(), value.encode())
