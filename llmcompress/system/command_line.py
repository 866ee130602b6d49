"""A command as a person can paste it into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def arguments(command: Sequence[str], operands: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The words of a command; after ``--`` where what it works on would be taken for an option."""
    if any(operand.startswith("-") for operand in operands):
        return [*command, *options, "--", *operands]
    return [*command, *operands, *options]


def command_line(command: Sequence[str], operands: Sequence[str], options: Sequence[str] = ()) -> str:
    """The same in one line, quoted."""
    return shlex.join(arguments(command, operands, options))
