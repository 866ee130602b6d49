"""What the README of a source states about its license and language, read as data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from llmcompress.errors import ModelError, RecipeError
from llmcompress.report.file_names import CARD
from llmcompress.report.record import SourceCard
from llmcompress.spec.yaml_text import BoundedLoader

MAX_BYTES = 16_000_000
MAX_FRONT_MATTER_CHARS = 256 * 1024
MAX_VALUE_CHARS = 1000
MAX_VALUES = 500

_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t\r]*$", re.DOTALL | re.MULTILINE)
_WANTED = frozenset(("license", "license_name", "license_link", "language"))
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


def read_source_card(directory: Path) -> SourceCard | None:
    """Read the front matter of the README in ``directory``; None where there is no README.

    Every value is the text that stands there: the language ``no`` is Norwegian, not false. What is no YAML, or too
    much of it, becomes the record's ``problem``: a page is no reason to refuse a model.

    Raises:
        ModelError: The file cannot be read.
    """
    path = directory / CARD
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path), hint="check its permissions") from error
    digest = hashlib.sha256(content).hexdigest()
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        stated = _stated(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return SourceCard(problem="it is not UTF-8", sha256=digest)
    except ValueError as error:
        return SourceCard(problem=str(error), sha256=digest)
    return SourceCard(
        license=stated.get("license", ()),
        license_name=next(iter(stated.get("license_name", ())), None),
        license_link=next(iter(stated.get("license_link", ())), None),
        language=stated.get("language", ()),
        sha256=digest,
    )


def gguf_card(general: Mapping[str, Any]) -> SourceCard:
    """What a GGUF file states of the same, in its metadata's ``general`` part."""

    def texts(value: object) -> tuple[str, ...]:
        values = value if isinstance(value, list) else [] if value is None else [value]
        return tuple(text for text in values if isinstance(text, str) and 0 < len(text) <= MAX_VALUE_CHARS)

    return SourceCard(
        license=texts(general.get("license")),
        license_name=next(iter(texts(general.get("license.name"))), None),
        license_link=next(iter(texts(general.get("license.link"))), None),
        language=texts(general.get("languages")),
        sha256=hashlib.sha256(json.dumps(general, sort_keys=True).encode()).hexdigest(),
    )


def _stated(readme: str) -> dict[str, tuple[str, ...]]:
    found = _FRONT_MATTER.match(readme)
    if found is None:
        return {}
    text = found[1]
    if len(text) > MAX_FRONT_MATTER_CHARS:
        raise ValueError(f"its front matter has more than {MAX_FRONT_MATTER_CHARS} characters")
    stated: dict[str, tuple[str, ...]] = {}
    try:
        for key, values in _top_level(BoundedLoader(text, CARD)):
            if key in stated:
                raise ValueError(f"its front matter has the key {key!r} twice")
            stated[key] = values
    except RecipeError as error:
        raise ValueError(f"its front matter has {error.message}") from None
    except yaml.YAMLError:
        raise ValueError("its front matter is not YAML") from None
    return stated


def _top_level(loader: BoundedLoader) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The wanted keys of a mapping with their scalars; aliases and what is nested are passed over, not expanded."""
    events = _events(loader)
    if not isinstance(next(events, None), yaml.MappingStartEvent):
        return
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            return
        key = _texts(event, events)
        values = _texts(next(events), events)
        if len(key) == 1 and key[0] in _WANTED:
            if any(len(value) > MAX_VALUE_CHARS for value in values) or len(values) > MAX_VALUES:
                raise ValueError(f"the {key[0]} in its front matter is too long")
            yield key[0], values


def _events(loader: BoundedLoader) -> Iterator[yaml.Event]:
    try:
        while loader.check_event():
            event: yaml.Event = loader.get_event()  # type: ignore[no-untyped-call]
            if not isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
                yield event
    except (ValueError, OverflowError, IndexError):
        # PyYAML lets these through, for example for the escape "\UFFFFFFFF".
        raise yaml.YAMLError from None
    finally:
        loader.dispose()


def _texts(event: yaml.Event, events: Iterator[yaml.Event]) -> tuple[str, ...]:
    """The scalars of a value that begins with ``event``, those directly in it; leaves ``events`` behind it."""
    texts = []
    depth = 0
    while True:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and depth <= 1 and not (event.style is None and event.value in _NULLS):
            # Half of a surrogate pair, which YAML can escape, fits in no file.
            texts.append(event.value.encode("utf-8", "replace").decode().strip())
        if depth == 0:
            return tuple(text for text in texts if text)
        event = next(events)
