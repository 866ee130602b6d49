"""Text of others on a Markdown page: shown as it is, and neither markup nor HTML nor a link.

The rules are those of CommonMark and of GitHub's tables and bare links (https://github.github.com/gfm). What these
functions return is ``Markup``, which the template leaves as it is; every other text goes through ``prose``.
"""

from __future__ import annotations

import json
import re
import shlex

from markupsafe import Markup

MAX_CHARS = 300
"""Of one text on the page; the metadata hold it whole."""

_ENTITIES = {character: f"&#{ord(character)};" for character in "&<>\"'`|\\"}
_ESCAPES = {character: f"\\{character}" for character in "*_[]~$"}
_PROSE = str.maketrans(_ENTITIES | _ESCAPES)
# A list, a heading, or the line under one; other blocks begin with a character that is escaped anyway.
_BLOCK_START = re.compile(r"\A(\d{1,9}(?=[.)](?:\s|\Z))|(?=(?:[-+]|#{1,6})(?:\s|\Z))|(?=[-=]+\s*\Z))")
_BARE_LINK = re.compile(r"(?<=/)(?=/)|(?<=\w)(?=\.[^\W\d])|(?=@)")
_NOTHING = "<!-- -->"


def prose(value: object) -> Markup:
    """A value as running text, on one line."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("not measured")
    if isinstance(value, int) and not isinstance(value, bool):
        return Markup(f"{value:,}")
    text = _one_line(str(value)).translate(_PROSE)
    return Markup(_unlinked(_BLOCK_START.sub(r"\1\\", text)))


def code(value: object) -> Markup:
    """A value in the typeface of code, on one line, in running text and in a table's cell alike."""
    text = _one_line(str(value))
    if text and not set("`|\\") & set(text):
        return Markup(f"`{text}`")
    # A backslash before a pipe, and a backtick inside backticks, are read differently by different renderers.
    inert = "".join(c if c.isalnum() or c == " " or ord(c) > 127 else f"&#{ord(c)};" for c in text)
    return Markup(f"<code>{_unlinked(inert.replace('&#58;', ':').replace('&#47;', '/'))}</code>")


def fence(value: object, language: str = "") -> Markup:
    """A text of several lines as a block of code."""
    text = "\n".join(_visible(line) for line in str(value).strip("\n").split("\n"))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return Markup(f"{marks}{language}\n{text}\n{marks}")


def python_text(value: str) -> Markup:
    """A text as Python writes it; for a block of code only."""
    return Markup(json.dumps(str(value)))


def shell_word(value: str) -> Markup:
    """A text as one word of a shell; for a block of code only."""
    return Markup(shlex.quote(str(value)))


def chat_request(model: str) -> Markup:
    """A request for a chat completion (https://platform.openai.com/docs/api-reference/chat) in one line of JSON."""
    messages = [{"role": "user", "content": "What is OpenVINO?"}]
    return Markup(json.dumps({"model": str(model), "messages": messages}))


def _one_line(text: str) -> str:
    text = _visible(" ".join(text.split()))
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"


def _visible(text: str) -> str:
    """Control characters, and marks that turn the direction of reading, by their number."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _unlinked(text: str) -> str:
    """Renderers make links of bare addresses; a comment between their parts is seen by nobody and stops that."""
    return _BARE_LINK.sub(_NOTHING, text)
