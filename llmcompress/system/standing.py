"""A process that holds one object and is asked about it, function by function."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from llmcompress.system.messages import await_greeting, receive, result_of
from llmcompress.system.starting import start
from llmcompress.system.worker import call_with_held, hold

HeldT = TypeVar("HeldT")
ResultT = TypeVar("ResultT")
ArgumentsP = ParamSpec("ArgumentsP")

_GRACE_S = 5.0
"""For what a function cleans up; less than the supervisor gives the process that started this one."""


class StandingWorker(Generic[HeldT]):
    """One worker process; a context manager that ends it. What it writes to stderr goes where ours goes.

    Raises, as ``ask`` does: whatever the function raised, of a foreign exception its name and message as a
    LlmcompressError; KilledForMemoryError or LlmcompressError where the worker died.
    """

    def __init__(
        self, make: Callable[ArgumentsP, HeldT], *arguments: ArgumentsP.args, **keywords: ArgumentsP.kwargs
    ) -> None:
        self._begin((), make, *arguments, **keywords)

    @classmethod
    def importing_from(
        cls,
        search_path: Sequence[Path],
        make: Callable[ArgumentsP, HeldT],
        *arguments: ArgumentsP.args,
        **keywords: ArgumentsP.kwargs,
    ) -> Self:
        """The same of a process that looks for modules there before it looks where this process does."""
        worker = cls.__new__(cls)
        worker._begin(search_path, make, *arguments, **keywords)
        return worker

    def _begin(self, search_path: Sequence[Path], make: Callable[..., HeldT], *arguments: Any, **keywords: Any) -> None:
        self._started = start(search_path=search_path)
        try:
            assert self._started.process.stdout is not None
            if not await_greeting(self._started.process.stdout):
                raise self._started.death()
            self._answer_to(hold, make, *arguments, **keywords)
        except BaseException:
            self.end(at_once=True)
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._started.process.pid

    def ask(
        self,
        function: Callable[Concatenate[HeldT, ArgumentsP], ResultT],
        *arguments: ArgumentsP.args,
        **keywords: ArgumentsP.kwargs,
    ) -> ResultT:
        """Call a function there with what is held as its first argument; arguments and result travel as pickles."""
        return cast(ResultT, self._answer_to(call_with_held, function, *arguments, **keywords))

    def end(self, *, at_once: bool = False) -> None:
        """End the process; ``at_once`` also where it is at work."""
        process = self._started.process
        if at_once:
            process.terminate()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(at_once=error is not None)

    def _answer_to(self, function: Callable[..., object], *arguments: object, **keywords: object) -> object:
        self._started.call(function, *arguments, **keywords)
        assert self._started.process.stdout is not None
        message = receive(self._started.process.stdout)
        if message is None:
            raise self._started.death()
        return result_of(pickle.loads(message))
