"""What is to be called, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from llmcompress.system.progress import Progress


class Task(NamedTuple):
    """One call; it travels to other machines as a pickle."""

    label: str
    """For people; no two tasks of a run have the same."""
    function: Callable[..., object]
    """It takes ``progress`` and ``logs``; a pickle names it by its module."""
    kwargs: Mapping[str, Any]
    memory_bytes: int
    """What it is predicted to need at least."""


class Finished(NamedTuple):
    """A task that ended."""

    task: Task
    where: str
    result: object
    error: Exception | None


class TaskEvent(NamedTuple):
    """Something about a task that is running."""

    kind: Literal["progress", "lost"]
    task: Task
    where: str
    progress: Progress | None = None
    text: str = ""
