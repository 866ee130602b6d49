"""Options made from the fields of a record, whose types, defaults, choices and descriptions are written there alone."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from llmcompress.cli.options import put_into_panels, take_options
from llmcompress.errors import UsageError
from llmcompress.report.options import option_name
from llmcompress.spec import Calibration, RuntimeProfile, load_profile
from llmcompress.spec.validation import DescribedModel, StrictModel, descriptions, from_options

Reader = Callable[[Any], Any]


class Flag(NamedTuple):
    """How a field is written on the command line, as far as the field does not say it."""

    short: str = ""
    """Next to the long one, which ``option_name`` has."""
    metavar: str | None = None
    default: Any = None
    """As a person would type it; the field's own default otherwise."""
    read: Reader | None = None
    """Makes the field's value of what was typed."""


def with_fields(panels: Mapping[str, str], **flags: Flag) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of the records that it takes, and make the records of what was typed.

    Args:
        panels: What `--help` shows together and in this order: names of parameters and fields, with spaces between.
        flags: How fields are written, by their names.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        records: dict[str, type[DescribedModel]] = {}
        parameters: dict[str, inspect.Parameter] = {}
        read: dict[str, Reader] = {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            record = parameter.annotation
            if not (isinstance(record, type) and issubclass(record, DescribedModel)):
                parameters[parameter.name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                continue
            records[parameter.name] = record
            texts = descriptions(record)
            for name, field in record.model_fields.items():
                parameters[name], read[name] = _option(name, field, texts.get(name, ""), flags.get(name, Flag()))

        @functools.wraps(function)
        def command(**values: Any) -> None:
            for argument, record in records.items():
                typed = {name: values.pop(name) for name in record.model_fields}
                given = {name: read[name](value) for name, value in typed.items() if value is not None}
                values[argument] = _record(record, given)
            function(**values)

        take_options(command, put_into_panels(parameters, panels))
        return command

    return decorate


def _record(record: type[StrictModel], values: Mapping[str, Any]) -> StrictModel:
    try:
        return from_options(record, values)
    except UsageError as error:
        error.where = re.sub(r"^\w+", r"`\g<0>`", error.where)
        raise


def _option(name: str, field: FieldInfo, text: str, flag: Flag) -> tuple[inspect.Parameter, Reader]:
    """Return a field as a parameter for typer, and what makes its value of what was typed."""
    kind, implied = _implied(name, field)
    if flag.read is not None and get_origin(_plain(field.annotation)) is tuple:
        kind = list[str]
    if isinstance(flag.default, str) or (flag.read is not None and kind in (int, float)):
        kind = str
    default = implied.default if flag.default is None else flag.default
    option = typer.Option(
        *filter(None, (option_name(name), flag.short)),
        metavar=flag.metavar or implied.metavar,
        show_default=default is not None,
        help=text.replace("\n", " ") + (" May be repeated." if kind == list[str] else ""),
    )
    annotation = Annotated[kind if default is not None else kind | None, option]  # type: ignore[valid-type]
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    return parameter, flag.read or implied.read or (lambda typed: typed)


def _implied(name: str, field: FieldInfo) -> tuple[Any, Flag]:
    """Return the type that typer is to read a field as, and how the field is written."""
    kind = _plain(field.annotation)
    default = None if field.is_required() else field.default
    if get_origin(kind) is Literal:
        return str, Flag(metavar="|".join(get_args(kind)), default=default)
    if get_origin(kind) is Union:
        words = [word for each in get_args(kind) for word in get_args(each)]
        return str, Flag(metavar="|".join(["N", *words]), default=default, read=number_or_word)
    if kind is Calibration:
        return str, Flag(metavar="FILE", read=_text_of_file)
    if kind is RuntimeProfile:
        return Path, Flag(metavar="FILE", read=load_profile)
    if get_origin(kind) is tuple:
        texts = [str(each) for each in default or ()]
        if _plain(get_args(kind)[0]) is int:
            return str, Flag(metavar="N,...", default=",".join(texts) or None, read=functools.partial(_numbers, name))
        return list[str], Flag(default=texts or None, read=tuple)
    return kind, Flag(default=default)


def _plain(annotation: Any) -> Any:
    """Return a type without its constraints, and without None as a member."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    members = get_args(annotation)
    return _plain(next(each for each in members if each is not NoneType)) if NoneType in members else annotation


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        problem = f"got {text!r}; whole numbers with commas between are accepted"
        raise UsageError(problem, where=f"`{name}`") from None


def absolute_file(text: str) -> str:
    """Return a file's absolute path, since a worker may not share the working directory; any other text as it is."""
    return str(Path(text).absolute()) if Path(text).is_file() else text


def _text_of_file(text: str) -> Calibration:
    return from_options(Calibration, {"dataset": absolute_file(text)})


def number_or_word(text: str) -> int | str:
    """Return a whole number as one; any other text as it is, for the record to take or refuse."""
    return int(text) if text.strip().isdecimal() else text


DATASET = Flag(metavar="NAME|FILE", read=absolute_file)
DEVICE = Flag("-d")
