"""What all parts of a recipe share: frozen, strict, nothing unknown, and refusals that say what to do."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_COUNT = 2**31 - 1


class Part(BaseModel):
    """A frozen, hashable record that a person writes: unknown fields and wrong types are refused, not converted."""

    # The input stays out of pydantic's messages: it may hold a secret typed into the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class Refusal(NamedTuple):
    """One thing in a recipe that contradicts another or would have no effect."""

    field: str
    """Dotted, relative to the record that refuses."""
    problem: str
    hint: str


def contradiction(refusal: Refusal) -> PydanticCustomError:
    """Return the error for pydantic to raise; ``load_recipe`` reads the field and the hint from its context."""
    return PydanticCustomError("contradiction", "{field}: {problem}; {hint}", refusal._asdict())


def _checked_text(text: str) -> str:
    if not text:
        raise PydanticCustomError("empty_text", "text with at least one character is accepted")
    # Control characters, surrogates, line and paragraph separators: invisible, and no YAML holds them plainly.
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text):
        raise PydanticCustomError("control_character", "one line without control characters is accepted")
    if looks_like_token(text):
        raise PydanticCustomError(
            "token", "this looks like a Hugging Face token, and recipes are saved with the model; remove it"
        )
    return text


def looks_like_token(text: str) -> bool:
    """Whether the text holds what looks like a Hugging Face access token."""
    return re.search(r"hf_[A-Za-z0-9]{24,}", text) is not None


Text = Annotated[str, AfterValidator(_checked_text)]
"""One line of text."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]

Texts = Annotated[tuple[Text, ...], Field(strict=False)]
"""A list of texts in the file, a tuple in the record."""
