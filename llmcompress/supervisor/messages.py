"""What parent and worker say to one another: pickles on the pipes that were the worker's stdin and stdout.

The worker moves both pipes to descriptors of its own before anything else runs, so no library can write into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

GREETING = b"\0llmcompress worker\0"
"""Sent first: whatever came before it, Python's start-up wrote."""


class Job(NamedTuple):
    """The one message to the worker; the pipe then stays open for as long as the parent lives and wants the result."""

    target: str
    """`package.module:function`"""
    kwargs: Mapping[str, Any]
    parent_pid: int


class Done(NamedTuple):
    """The function's result."""

    result: object


class Failed(NamedTuple):
    """The error that the function raised, and its traceback as text."""

    error: BaseException
    traceback: str
