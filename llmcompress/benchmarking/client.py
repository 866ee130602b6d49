"""The other side of a worker that holds a model: start it, ask, end it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from llmcompress.benchmarking.timing import Run
from llmcompress.benchmarking.worker import (
    MemoryUse,
    Opened,
    Runtime,
    memory_use,
    open_model,
    reopen_model,
    run_model,
    runtime_of,
)
from llmcompress.errors import KilledForMemoryError, LlmcompressError
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.benchmark import RuntimeName, Shape
from llmcompress.spec.evaluation import Backend
from llmcompress.system.background import undisturbed
from llmcompress.system.standing import StandingWorker


class Client:
    """One worker process and its model; a context manager that ends it. Its errors name the model.

    As long as there is one, work of ours in the background stands still.
    """

    def __init__(
        self,
        directory: Path,
        runtime: RuntimeName,
        *,
        name: str,
        backend: Backend | None = None,
        search_path: Sequence[Path] = (),
        trust_remote_code: bool = False,
    ) -> None:
        """Start it; it looks for modules in ``search_path`` first."""
        self._name = name
        with self._named(), ExitStack() as stack:
            stack.enter_context(undisturbed())
            self._worker: StandingWorker[Runtime] = StandingWorker.importing_from(
                search_path, runtime_of, directory, runtime, backend, trust_remote_code
            )
            self._undisturbed = stack.pop_all()

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._worker.pid

    def open(self, device: str, properties: dict[str, str]) -> Opened:
        """As ``open_model``."""
        with self._named():
            return self._worker.ask(open_model, device, properties)

    def reopen(self, device: str, properties: dict[str, str]) -> tuple[LoadTime, LoadTime | None]:
        """As ``reopen_model``."""
        with self._named():
            return self._worker.ask(reopen_model, device, properties)

    def run(self, shape: Shape, seed: int) -> Run:
        """As ``run_model``."""
        with self._named():
            return self._worker.ask(run_model, shape, seed)

    def memory(self) -> MemoryUse:
        """As ``memory_use``."""
        with self._named():
            return self._worker.ask(memory_use)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._undisturbed:
            self._worker.end(at_once=error is not None)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except LlmcompressError as error:
            error.where = error.where or self._name
            if isinstance(error, KilledForMemoryError):
                error.hint = "take a smaller model, batch or depth, or a machine with more memory"
            raise
