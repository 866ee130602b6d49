"""What a machine runs models best with and a model cannot hold: properties for the device, as a file of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llmcompress.errors import RecipeError
from llmcompress.spec.validation import Location, Refusal, StrictModel, Text, Texts, dotted, validated

MAX_BYTES = 100_000


class RuntimeProfile(StrictModel):
    """Properties of a device that no plugin reads from a model: threads, pinning, inference precision and the like."""

    name: Text
    device: Text
    cpu: Text
    """Where they were found to be best."""
    platform: Text
    properties: Texts
    """``KEY=VALUE`` for the device."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from pair_refusals(self.properties)

    def as_properties(self) -> dict[str, str]:
        """Names and values."""
        return split_pairs(self.properties)


def load_profile(path: str | Path) -> RuntimeProfile:
    """Read a profile that ``tune`` wrote, or a person.

    Raises:
        RecipeError: It cannot be read, or a field is not accepted.
    """
    where = str(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        fields = json.loads(content)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=where, hint="give a runtime profile") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"is no runtime profile: {error}", where=where, hint="llmcompress tune writes one") from None

    def place(location: Location) -> str:
        return f"{where}: {dotted(location)}" if location else where

    return validated(RuntimeProfile, fields, place)


def pair_refusals(texts: tuple[str, ...]) -> Iterator[Refusal]:
    """Yield which are not ``KEY=VALUE``."""
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            yield Refusal("properties", f"got {text!r}; KEY=VALUE is accepted", "write such a pair")


def split_pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` as names and values."""
    pairs = (text.partition("=") for text in texts)
    return {name: value for name, _, value in pairs}
