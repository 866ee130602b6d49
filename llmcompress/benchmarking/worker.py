"""A process that holds one model and nothing else, and runs it when told to.

Requests and answers are pickles on stdin and stdout. It ends when its stdin does, so it never outlives the process that
started it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.benchmarking.genai_engine import GenaiEngine
from llmcompress.benchmarking.runtime_engine import RuntimeEngine
from llmcompress.benchmarking.timing import Run
from llmcompress.report.benchmark import LoadTime
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML
from llmcompress.spec.benchmark import Shape
from llmcompress.system.memory import peak_rss_bytes


class Opened(NamedTuple):
    """A model that was compiled."""

    cold: LoadTime
    properties: dict[str, str]
    weight_bytes: int
    """Read for every token."""
    cache_elements_per_token: int


class MemoryUse(NamedTuple):
    """Of this process."""

    peak_rss_bytes: int
    steady_rss_bytes: int


class Worker:
    """What a request can name."""

    def __init__(self, directory: str, engine: str) -> None:
        self._directory = Path(directory)
        self._engine: RuntimeEngine | GenaiEngine = (
            RuntimeEngine(self._directory) if engine == "openvino" else GenaiEngine(self._directory)
        )

    def open(self, device: str, properties: dict[str, str]) -> Opened:
        """Open the model as after a restart of the machine; it is kept and run."""
        self._engine.close()
        forget_pages(self._directory)
        cold = self._engine.open(device, properties)
        compiled = self._engine.compiled()
        weight_bytes, elements = self._sizes()
        if compiled is None:
            return Opened(cold, dict(properties), weight_bytes, elements)
        from llmcompress.graph.device import effective_properties

        return Opened(cold, effective_properties(compiled), weight_bytes, elements)

    def reopen(self, device: str, properties: dict[str, str]) -> tuple[LoadTime, LoadTime | None]:
        """Open it warm and from OpenVINO's model cache; nothing is kept."""
        self._engine.close()
        warm = self._engine.open(device, properties)
        cached = None
        if self._engine.has_model_cache:
            with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder, contextlib.suppress(RuntimeError):
                with_cache = {**properties, "CACHE_DIR": folder}
                self._engine.open(device, with_cache)
                if any(Path(folder).iterdir()):
                    cached = self._engine.open(device, with_cache)
                self._engine.close()
        self._engine.close()
        return warm, cached

    def run(self, shape: Shape, seed: int) -> Run:
        """One run."""
        return self._engine.run(shape, seed)

    def memory(self) -> MemoryUse:
        """Memory of this process, now and at its most."""
        import psutil

        steady = int(psutil.Process().memory_info().rss)
        # The kernel brings its record of the peak up to date some pages late.
        return MemoryUse(max(peak_rss_bytes(os.getpid()), steady), steady)

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the constants that every token needs, and elements that a token adds to the cache."""
        import openvino as ov

        model = ov.Core().read_model(self._directory / MODEL_XML)
        total = 0
        for op in model.get_ops():
            if op.get_type_name() == "Constant" and not _only_looked_up(op):
                total += op.get_byte_size()
        elements = 0
        for variable in model.get_variables():
            shape = variable.info.data_shape
            if len(shape) == 4 and shape[1].is_static and shape[3].is_static:
                elements += int(shape[1].get_length()) * int(shape[3].get_length())
        return total, elements


def _only_looked_up(constant: Any) -> bool:
    """Whether a constant is a table of which a token needs one row: an embedding, perhaps compressed."""
    for _ in range(8):
        targets = [port.get_node() for port in constant.output(0).get_target_inputs()]
        kinds = {node.get_type_name() for node in targets}
        if kinds == {"Gather"}:
            return True
        if len(targets) != 1 or not kinds <= {"Convert", "Subtract", "Multiply", "Reshape"}:
            return False
        constant = targets[0]
    return False


def forget_pages(directory: Path) -> None:
    """Ask the system to give up its file cache of a model, so that the next one to read it reads the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in (directory / name for name in (MODEL_XML, MODEL_BIN)):
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Answer requests until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What libraries print must not get between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker: Worker | None = None
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            if worker is None:
                worker = Worker(*arguments)
                answer: Any = None
            else:
                answer = getattr(worker, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - travels to the other side, which words it
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()
