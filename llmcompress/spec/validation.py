"""What all parts of a recipe share: frozen, strict, nothing unknown, and refusals that say what to do."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import re
import sys
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from llmcompress.errors import RecipeError, UsageError

MAX_COUNT = 2**31 - 1


class Refusal(NamedTuple):
    """One thing in a recipe that contradicts another or would have no effect."""

    field: str
    """Dotted, relative to the record that refuses."""
    problem: str
    hint: str


class StrictModel(BaseModel):
    """A frozen, hashable record that a person writes: unknown fields and wrong types are refused, not converted."""

    # The input stays out of pydantic's messages: it may hold a secret typed into the wrong place.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        # Most commands use few of these records.
        defer_build=True,
    )

    def _refusals(self) -> Iterator[Refusal]:
        """Yield what its fields say against each other; the first one is the error."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for refusal in self._refusals():
            raise refusal_error(refusal)
        return self


def descriptions(record: type[BaseModel]) -> dict[str, str]:
    """What is written below the fields of a record in its source, by their names."""
    found: dict[str, str] = {}
    for each in reversed(record.__mro__[: record.__mro__.index(BaseModel)]):
        try:
            tree = ast.parse(inspect.getsource(sys.modules[each.__module__]))
        except (OSError, TypeError):  # There is no source, as in an interactive session.
            continue
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == each.__name__)
        for node, below in itertools.pairwise(body):
            match node, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
                case ast.AnnAssign(target=ast.Name(id=name)), _:
                    found.pop(name, None)
    return {name: text for name, text in found.items() if name in record.model_fields}


class DescribedModel(StrictModel):
    """A record whose fields are described by what is written below them: in its JSON schema and on the command line.

    Pydantic's ``use_attribute_docstrings`` reads the sources whenever the class is made, which every command would
    wait for.
    """

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, text in descriptions(cls).items():
            properties[name]["description"] = text
        return schema


def refusal_error(refusal: Refusal) -> PydanticCustomError:
    """Return the error for pydantic to raise; ``load_recipe`` reads the field and the hint from its context."""
    return PydanticCustomError("refusal_error", "{field}: {problem}; {hint}", refusal._asdict())


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


def _count_or_all(value: object) -> object:
    if value == "all" or (type(value) is int and 1 <= value <= MAX_COUNT):
        return value
    raise PydanticCustomError("count_or_all", "a whole number from 1 up, or all, is accepted")


CountOrAll = Annotated[int | Literal["all"], BeforeValidator(_count_or_all)]


def _checked_group_size(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("group_size", "a positive number or -1 (one group per channel) is accepted")
    return value


GroupSize = Annotated[int, Field(ge=-1, le=MAX_COUNT), AfterValidator(_checked_group_size)]
"""Weights along the input channels that share a scale; -1: all of an output channel."""


def is_pattern(text: str) -> bool:
    """Whether it is a Python regular expression."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


Texts = Annotated[tuple[Text, ...], Field(strict=False)]
"""A list of texts in the file, a tuple in the record."""


Location = tuple[str | int, ...]
PartT = TypeVar("PartT", bound=StrictModel)

_ACCEPTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "fields with values",
    "model_attributes_type": "fields with values",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' (at most 64, the first a letter or digit)",
}


def validated(part: type[PartT], fields: object, where: Callable[[Location], str]) -> PartT:
    """Make a record of the fields that a person wrote.

    Args:
        part: The record's class.
        fields: A dictionary, unless the person got it wrong.
        where: Names the place of a field in the user's terms.

    Raises:
        RecipeError: The first problem.
    """
    try:
        return part.model_validate(fields)
    except ValidationError as error:
        raise _recipe_error(error, part, where) from None


def from_options(spec: type[PartT], options: Mapping[str, object]) -> PartT:
    """Make a record of options; what is None is left at its default.

    Raises:
        UsageError: The first problem, and the option's name.
    """
    try:
        return validated(spec, {name: value for name, value in options.items() if value is not None}, dotted)
    except RecipeError as error:
        raise UsageError(error.message, where=error.where, hint=error.hint) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known name, or nothing."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name[:100].lower(), by_lower_case, n=1)
    return f"did you mean {by_lower_case[nearest[0]]}?" if nearest else ""


def dotted(location: Location) -> str:
    """Return a location as it is written after ``--set``, list items in brackets."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def field_names(root: type[BaseModel], location: Location) -> list[str]:
    """Return the names of the fields of the record at a location, in a list or not; empty where there is no record."""
    model: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part)) if model else None
        model = _record_in(field.annotation) if field else None
    return list(model.model_fields) if model else []


def shown(value: object) -> str:
    """Return a value for a message: short, and never a token."""
    text = repr(value)
    if looks_like_token(text):
        return "(hidden: it looks like a token)"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _recipe_error(error: ValidationError, root: type[BaseModel], where: Callable[[Location], str]) -> RecipeError:
    details = error.errors(include_url=False)
    first = details[0]
    location: Location = first["loc"]
    if first["type"] == "refusal_error":
        context = first["ctx"]
        parts = filter(None, context["field"].split("."))
        location = (*location, *(int(part) if part.isdecimal() else part for part in parts))
        message, hint = context["problem"], context["hint"]
    elif first["type"] == "extra_forbidden":
        name, known = str(location[-1]), field_names(root, location[:-1])
        message = f"unknown key {shown(name)}; accepted: {', '.join(known)}"
        hint = did_you_mean(name, known) or "remove it"
    else:
        message, hint = _value_problem(first)
    if len(details) > 1:
        message = f"{message} (and {len(details) - 1} more)"
    return RecipeError(message, where=where(location), hint=hint)


def _record_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _value_problem(detail: ErrorDetails) -> tuple[str, str]:
    kind = detail["type"]
    if kind == "missing":
        return "is missing", "add it"
    value = detail["input"]
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        hint = did_you_mean(value, expected.split(", ")) if isinstance(value, str) else ""
        return f"got {shown(value)}; accepted: {expected}", hint or "write one of these"
    if kind == "token":
        return detail["msg"], "remove it, and revoke the token if the file was shared"
    names = {list: "a list", dict: "fields with values", type(None): "null"}
    got = f"got {names.get(type(value)) or shown(value)}"
    message = detail["msg"]
    accepted = _ACCEPTED.get(kind) or (message[0].lower() + message[1:]).removeprefix("input should be ")
    if accepted.endswith((" is accepted", " are accepted")):
        return f"{got}; {accepted}", "write one of these"
    return f"{got}; accepted: {accepted}", "write such a value"
