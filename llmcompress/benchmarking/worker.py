"""In the worker, which holds one model's runtime and nothing else: what it is asked to do with it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.benchmarking.genai_runtime import GenaiRuntime
from llmcompress.benchmarking.genai_vision_runtime import GenaiVisionRuntime
from llmcompress.benchmarking.openvino_runtime import OpenvinoRuntime
from llmcompress.benchmarking.timing import Run
from llmcompress.benchmarking.vision_runtime import VisionRuntime
from llmcompress.errors import LlmcompressError, UsageError, one_line
from llmcompress.graph.device import effective_properties
from llmcompress.graph.joining import read_decoder
from llmcompress.graph.recurrence import find_recurrence
from llmcompress.loaders.layout import VISION_XML, ir_files, names_in
from llmcompress.report.benchmark import LoadTime
from llmcompress.spec.benchmark import RuntimeName, Shape
from llmcompress.spec.evaluation import Backend
from llmcompress.system.memory import peak_rss_bytes

if TYPE_CHECKING:
    import openvino as ov

_LAST_CHARS = 600


class Opened(NamedTuple):
    """A model that was compiled."""

    cold: LoadTime
    properties: dict[str, str]
    weight_bytes: int
    """Read for every token."""
    cache_elements_per_token: int
    is_recurrent: bool = False
    """As in ``BenchSetting``."""


class MemoryUse(NamedTuple):
    """Of this process."""

    peak_rss_bytes: int
    steady_rss_bytes: int


Runtime = OpenvinoRuntime | VisionRuntime | GenaiRuntime | GenaiVisionRuntime


def runtime_of(
    directory: Path, name: RuntimeName, backend: Backend | None = None, trust_remote_code: bool = False
) -> Runtime:
    """What runs a model; nothing is opened yet.

    Args:
        directory: Of the model.
        name: Of the runtime.
        backend: None: the runtime's default.
        trust_remote_code: The model's own code may run, which pictures take in the runtime openvino.
    """
    sees = (directory / VISION_XML).is_file()
    how = {} if backend is None else {"backend": backend}
    if name == "genai":
        return GenaiVisionRuntime(directory, **how) if sees else GenaiRuntime(directory, **how)
    return VisionRuntime(directory, trusted=trust_remote_code, **how) if sees else OpenvinoRuntime(directory, **how)


def open_model(runtime: Runtime, device: str, properties: dict[str, str]) -> Opened:
    """Open the model as after a restart of the machine; it is kept and run.

    Raises:
        UsageError: The device refuses the model or a property.
    """
    with _refused_by(device):
        runtime.close()
        forget_pages(runtime.directory)
        cold = runtime.open(device, properties)
        compiled = runtime.compiled()
        model = read_decoder(runtime.directory)
        effective = dict(properties) if compiled is None else effective_properties(compiled)
        return Opened(cold, effective, *_sizes(model), find_recurrence(model) is not None)


def reopen_model(runtime: Runtime, device: str, properties: dict[str, str]) -> tuple[LoadTime, LoadTime | None]:
    """Open it warm and from OpenVINO's model cache; nothing is kept.

    Raises:
        UsageError: The device refuses the model or a property.
    """
    with _refused_by(device):
        runtime.close()
        warm = runtime.open(device, properties)
        cached = None
        if runtime.has_model_cache:
            with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder, contextlib.suppress(RuntimeError):
                with_cache = {**properties, "CACHE_DIR": folder}
                runtime.open(device, with_cache)
                if any(Path(folder).iterdir()):
                    cached = runtime.open(device, with_cache)
                runtime.close()
        runtime.close()
        return warm, cached


def run_model(runtime: Runtime, shape: Shape, seed: int) -> Run:
    """One run. Raises UsageError where the model refuses it."""
    with _refused_by("the model"):
        return runtime.run(shape, seed)


def memory_use(runtime: Runtime) -> MemoryUse:
    """Memory of this process, now and at its most."""
    import psutil

    steady = int(psutil.Process().memory_info().rss)
    # The kernel brings its record of the peak up to date some pages late.
    return MemoryUse(max(peak_rss_bytes(os.getpid()), steady), steady)


@contextlib.contextmanager
def _refused_by(what: str) -> Iterator[None]:
    try:
        yield
    except LlmcompressError:
        raise
    except Exception as error:
        raise UsageError(
            f"{what} refuses it: {one_line(f'{type(error).__name__}: {error}', _LAST_CHARS)}",
            hint="try another device, fewer tokens, or other properties; llmcompress doctor lists devices",
        ) from error


def _sizes(model: ov.Model) -> tuple[int, int]:
    """Bytes of the constants that every token needs, and elements that a token adds to the cache."""
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
    for path in (directory / name for name in ir_files(names_in(directory))):
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
