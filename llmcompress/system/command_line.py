"""A command as a person can paste it into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command_line(command: Sequence[str], operands: Sequence[str], options: Sequence[str] = ()) -> str:
    """The words of a command, quoted; after ``--`` where what it works on would be taken for an option."""
    if any(operand.startswith("-") for operand in operands):
        return shlex.join([*command, *options, "--", *operands])
    return shlex.join([*command, *operands, *options])
