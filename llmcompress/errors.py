"""Every error a person can cause, with the exit code the command line ends with.

LlmcompressError            1   something unexpected
├── UsageError              2   an argument or option that cannot be carried out
│   └── RecipeError         2   a recipe that is wrong or contradicts itself
├── ResourceError           3   memory, disk or a library that is not there, refused before the work began
├── ModelError              4   a checkpoint or an OpenVINO model that cannot be used
│   └── ArtifactError       4   an output directory that is not what its manifest says
├── DataError               4   a text or dataset that cannot be used
├── HubError                5   the Hub or the network
├── SecurityError           6   refused: it would run or reach what was not allowed
├── GateError               7   the quality gate was not passed
├── WriteError              8   the output could not be written
├── LockedError             9   another run works on the same output
├── KilledForMemoryError   10   the operating system ended the worker for its memory
└── InterruptedRunError   130   Ctrl-C (130) or SIGTERM (143)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class LlmcompressError(Exception):
    """What went wrong, where, and what to do next.

    Printed as ``error: where: what`` and ``hint: what to run``.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "", quoted: Sequence[str] = ()) -> None:
        """Take the texts; ``quoted`` are lines of another program, which stand below the message."""
        super().__init__(message)
        # What a library or a file says may have line breaks and characters that steer a terminal.
        self.message, self.where, self.hint = map(_in_one_line, (message, where, hint))
        self.message += "".join(f"\n  | {_in_one_line(line)}" for line in quoted)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\nhint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.where, self.hint, self.exit_code)


class UsageError(LlmcompressError):
    """An argument or option that cannot be carried out."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that is wrong or contradicts itself."""


class ResourceError(LlmcompressError):
    """Memory, disk or a library that is not there, refused before the work began."""

    exit_code = 3


class ModelError(LlmcompressError):
    """A checkpoint or an OpenVINO model that cannot be used."""

    exit_code = 4


class ArtifactError(ModelError):
    """An output directory that is not what its manifest says."""


class DataError(LlmcompressError):
    """A text or dataset that cannot be used."""

    exit_code = 4


class HubError(LlmcompressError):
    """The Hub or the network."""

    exit_code = 5


class SecurityError(LlmcompressError):
    """Refused: it would run or reach what was not allowed."""

    exit_code = 6


class GateError(LlmcompressError):
    """The quality gate was not passed."""

    exit_code = 7


class WriteError(LlmcompressError):
    """The output could not be written."""

    exit_code = 8


class LockedError(LlmcompressError):
    """Another run works on the same output."""

    exit_code = 9


class KilledForMemoryError(LlmcompressError):
    """The operating system ended the worker for its memory."""

    exit_code = 10


class InterruptedRunError(LlmcompressError):
    """Ctrl-C or SIGTERM; the exit code is 128 plus the signal's number."""

    exit_code = 130


def last_line(error: BaseException) -> str:
    """What a library says in the end: the lines before it are its own call stack."""
    return str(error).strip().splitlines()[-1]


def one_line(text: object, max_chars: int | None = None) -> str:
    """A text, such as an error's, without its line breaks, and cut off after so many characters."""
    return " ".join(str(text).split())[:max_chars]


def _in_one_line(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > 1:
        text = " ".join(line.strip() for line in lines if line.strip())
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def _rebuild(kind: type[LlmcompressError], message: str, where: str, hint: str, exit_code: int) -> LlmcompressError:
    error = kind(message, where=where, hint=hint)
    error.message, error.exit_code = message, exit_code
    return error
