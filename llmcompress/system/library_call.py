"""A call from Python: silent but for errors and warnings of ours, with bars where a person looks on."""

from __future__ import annotations

import functools
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, ParamSpec, TypeVar

from llmcompress.errors import UsageError
from llmcompress.system.patching import replaced
from llmcompress.system.progress import Progress, Reporter, silent

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")

ProgressOption = Reporter | Literal["auto"] | None
"""``auto``: bars in terminals and notebooks, nothing in scripts whose stderr goes elsewhere. None: nothing."""

_NOISY = {
    "accelerate", "alembic", "datasets", "httpx", "huggingface_hub", "mlflow", "nncf", "optimum", "torch",
    "transformers",
}  # fmt: skip
"""Loggers whose messages below an error are not shown."""

_lock = threading.Lock()
_active = 0
"""Calls that run now, in any thread: the first one silences, the last one lets speak again."""
_silence = ExitStack()
_speaking = False


def let_libraries_speak() -> None:
    """Silence nothing from here on, in a process whose output somebody else sorts."""
    global _speaking
    _speaking = True


def libraries_speak() -> bool:
    """Whether this is such a process."""
    return _speaking


def library_call(verb: Callable[ParametersT, ResultT]) -> Callable[ParametersT, ResultT]:
    """Keep other libraries' bars, tables and warnings from the terminal while a verb works."""

    @functools.wraps(verb)
    def quiet(*arguments: ParametersT.args, **options: ParametersT.kwargs) -> ResultT:
        with _libraries_silenced():
            return verb(*arguments, **options)

    return quiet


def reporter(progress: ProgressOption) -> Reporter:
    """Return what a verb tells its progress to.

    Raises:
        UsageError: ``progress`` is neither a function, ``auto`` nor None.
    """
    if callable(progress):
        return progress
    if progress is None:
        return silent
    if progress != "auto":
        raise UsageError(f"got {progress!r}; accepted: a function, 'auto' or None", where="`progress`")
    return _bars() if _somebody_looks_on() else silent


@contextmanager
def warnings_counted() -> Iterator[list[str]]:
    """Give the warnings of ours that the block writes, as it writes them."""
    found: list[str] = []

    class Counter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, logger = Counter(logging.WARNING), logging.getLogger("llmcompress")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _somebody_looks_on() -> bool:
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def _bars() -> Reporter:
    """A bar for each stage, by tqdm, which has them for terminals and for notebooks."""
    from tqdm.auto import tqdm

    bar_of_ours = type("Bar", (tqdm,), {"ours": True})
    running: dict[str, Any] = {}

    def show(progress: Progress) -> None:
        stage, total = progress.stage, progress.total or None
        if stage not in running:
            # What has a known end may run next to the new stage; the rest ended when this one began.
            for other in [name for name, bar in running.items() if not bar.total]:
                running.pop(other).close()
            unit = "B" if progress.unit == "bytes" else f" {progress.unit}"
            running[stage] = bar_of_ours(desc=stage, total=total, unit=unit, unit_scale=progress.unit == "bytes")
        bar = running[stage]
        bar.total = total
        bar.update(progress.done - bar.n)
        if progress.done >= progress.total > 0:
            running.pop(stage).close()

    return show


@contextmanager
def _libraries_silenced() -> Iterator[None]:
    global _active
    with _lock:
        _active += 1
        if _active == 1 and not _speaking:
            _begin_silence()
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if not _active:
                _silence.close()


def _begin_silence() -> None:
    import tqdm

    show, start = logging.Logger.callHandlers, tqdm.tqdm.__init__

    def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or logger.name.partition(".")[0] not in _NOISY:
            show(logger, record)

    def start_bar(bar: Any, *arguments: Any, **options: Any) -> None:
        start(bar, *arguments, **(options if getattr(bar, "ours", False) else {**options, "disable": True}))

    # NNCF and transformers set the levels of their loggers when they are imported, which may be later.
    _silence.enter_context(replaced(logging.Logger, "callHandlers", call_handlers))
    _silence.enter_context(replaced(tqdm.tqdm, "__init__", start_bar))
    _silence.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
