"""The other side of a worker: start it, ask, end it."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmcompress.benchmarking.timing import Run
from llmcompress.benchmarking.worker import MemoryUse, Opened
from llmcompress.errors import KilledForMemoryError, LlmcompressError, UsageError
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.benchmark import Engine, Shape
from llmcompress.system.memory import kill_count

_LAST_CHARS = 600


class Client:
    """One worker process and its model; a context manager that ends it."""

    def __init__(self, directory: Path, engine: Engine, *, name: str) -> None:
        self._name = name
        self._kills_before = kill_count()
        # Not -m, under which the worker's records would be of another module than here.
        command = [sys.executable, "-c", "from llmcompress.benchmarking.worker import main; main()"]
        # What it writes to stderr goes where ours goes: the command line shows that with -v.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._ask("start", str(directory), engine)

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    def open(self, device: str, properties: dict[str, str]) -> Opened:
        """Compile for a device.

        Raises:
            UsageError: The device refuses the model or a property.
        """
        answer: Opened = self._ask("open", device, properties, refused_by=device)
        return answer

    def reopen(self, device: str, properties: dict[str, str]) -> tuple[LoadTime, LoadTime | None]:
        """Open it again, warm and from the model cache, and let it go."""
        answer: tuple[LoadTime, LoadTime | None] = self._ask("reopen", device, properties, refused_by=device)
        return answer

    def run(self, shape: Shape, seed: int) -> Run:
        """One run."""
        answer: Run = self._ask("run", shape, seed, refused_by="the model")
        return answer

    def memory(self) -> MemoryUse:
        """Memory of the worker."""
        answer: MemoryUse = self._ask("memory")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, name: str, *arguments: Any, refused_by: str = "") -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._dead() from None
        if isinstance(answer, RuntimeError):
            text = " ".join(str(answer).split())
            raise UsageError(
                f"{refused_by or 'the worker'} refuses it: {text[:_LAST_CHARS]}",
                where=self._name,
                hint="try another device, fewer tokens, or other properties; llmcompress doctor lists devices",
            )
        return answer

    def _dead(self) -> LlmcompressError:
        code = self._process.wait()
        if code == -9 and kill_count() != self._kills_before:
            return KilledForMemoryError(
                "the operating system killed the worker for its memory",
                where=self._name,
                hint="take a smaller model, batch or depth, or a machine with more memory",
            )
        return LlmcompressError(f"the worker ended with code {code}", where=self._name, hint="run it again with -v")
