"""The library names parameters, in backticks; the command line says the flags that set them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_FLAGS: ContextVar[Mapping[str, str]] = ContextVar("_FLAGS")


@contextmanager
def own_flags() -> Iterator[None]:
    """The command that the block runs is not known outside of it."""
    token = _FLAGS.set({})
    try:
        yield
    finally:
        _FLAGS.reset(token)


def name_flags(command: Any) -> None:
    """From here on this command is the one that runs."""
    _FLAGS.set(flags_of(command))


def current_flags() -> Mapping[str, str]:
    """Return the parameters of the command that runs, with their flags; another thread does not know them."""
    return _FLAGS.get({})


def flags_of(command: Any) -> dict[str, str]:
    """Return the parameters of a command and of its subcommands with their flags, an argument with its metavar."""
    flags = {}
    for each in (command, *getattr(command, "commands", {}).values()):
        for parameter in each.params:
            is_option = parameter.param_type_name == "option"
            flag = max(parameter.opts, key=len) if is_option else (parameter.metavar or parameter.name.upper())
            flags[parameter.name.removeprefix("no_")] = flag
    return flags


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Write each parameter that the text names in backticks, alone or as ``name=value``, as the flag that sets it."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip("\"'")
        if name not in flags:
            return found[0]
        return flags[name] if value in ("", "True", "False") else f"{flags[name]} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", flag, text)
