"""A task and what came of it; and this machine, which does one after the other: no benchmark runs next to our work."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

from llmcompress.errors import InterruptedRunError
from llmcompress.system.process import end_waiting
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


class LocalExecutor:
    """Carries a task out when it is waited for, in the caller's thread, which Ctrl-C reaches."""

    def __init__(self, tell: Callable[[TaskEvent], None], logs: Callable[[str], None] | None = None) -> None:
        self._tell, self._logs = tell, logs
        self._task: Task | None = None

    @property
    def busy(self) -> bool:
        """Whether there is something to wait for."""
        return self._task is not None

    def has_room(self, task: Task) -> bool:
        """Whether the task may be started now."""
        return self._task is None

    def start(self, task: Task) -> str:
        """Take the task; returns where it runs."""
        self._task = task
        return platform.node()

    def wait(self) -> Finished:
        """Carry it out. Raises InterruptedRunError."""
        task, self._task = self._task, None
        assert task is not None
        where = platform.node()

        def progress(step: Progress) -> None:
            self._tell(TaskEvent("progress", task, where, step))

        try:
            result = task.function(**task.kwargs, progress=progress, logs=self._logs)
        except InterruptedRunError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever ends a task is its outcome
            return Finished(task, where, None, error)
        return Finished(task, where, result, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._task = None
        end_waiting()
