"""Functions that the supervisor's tests run in a worker process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llmcompress.errors import ModelError
from llmcompress.system.progress import Progress, Reporter


class UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def wait_and_make() -> "SlowResult":
    time.sleep(3)
    return SlowResult()


class SlowResult:
    def __reduce__(self) -> tuple[object, ...]:
        return wait_and_make, ()


def slow_result(progress: Reporter) -> SlowResult:
    return SlowResult()


def raise_foreign(directory: Path, progress: Reporter) -> None:
    """Raise what only a library can unpickle that takes longer to import than the parent waits for last words."""
    sys.path.insert(0, str(directory))
    import slow_library

    raise slow_library.ForeignError("the real cause")


def hold(items: list[int]) -> list[int]:
    return items


def append(items: list[int], item: int) -> tuple[int, list[int]]:
    items.append(item)
    return os.getpid(), items


def fail(items: list[int]) -> None:
    raise ValueError(f"it holds {items}")


def print_and_count(items: list[int]) -> int:
    print("on stdout, as libraries do")
    return len(items)


def kill_itself(items: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hold_a_file(items: list[int], directory: Path) -> None:
    write_then_wait(directory, lambda progress: None)


def add(a: int, b: int, progress: Reporter) -> int:
    return a + b


def count(upto: int, progress: Reporter) -> int:
    for done in range(upto):
        progress(Progress("counting", done + 1, upto, "numbers"))
    return os.getpid()


def chatter(progress: Reporter) -> str:
    print("on stdout, as libraries do")
    os.write(1, b"from C, on descriptor 1\n")
    print("on stderr", file=sys.stderr)
    return "result"


def big(num_bytes: int, progress: Reporter) -> bytes:
    return b"x" * num_bytes


def raise_model_error(progress: Reporter) -> None:
    raise ModelError("tensor a has NaN", where="model.safetensors", hint="--allow-nonfinite")


def raise_value_error(progress: Reporter) -> None:
    raise ValueError("from a library")


def raise_unpicklable(progress: Reporter) -> None:
    raise UnpicklableError("cannot travel", "two arguments")


def return_unpicklable(progress: Reporter) -> object:
    return lambda: None


def raise_memory_error(progress: Reporter) -> None:
    raise MemoryError


def raise_refusal(text: str, progress: Reporter) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        raise ModelError("cannot be converted", hint="none") from error


def system_exit(progress: Reporter) -> None:
    sys.exit(5)


def end_with(number: int, progress: Reporter) -> None:
    progress(Progress("scan", 1, 2))
    print("the last words")
    os.kill(os.getpid(), number)
    time.sleep(60)


def abort_for_memory(progress: Reporter) -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def leave(progress: Reporter) -> None:
    os._exit(3)


def leave_a_grandchild(progress: Reporter) -> None:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os._exit(3)


def allocate(num_bytes: int, progress: Reporter) -> int:
    progress(Progress("filling", 0, 1))
    block = bytearray(num_bytes)
    for at in range(0, num_bytes, 4096):
        block[at] = 1
    return len(block)


def write_then_wait(directory: Path, progress: Reporter) -> None:
    """Hold a staging file as a context manager would, for a minute."""
    staging = directory / "staging"
    staging.write_text("half")
    try:
        progress(Progress("waiting", 0, 1))
        (directory / "pid").write_text(str(os.getpid()))
        try:
            time.sleep(60)
        except Exception:
            # What libraries do: a wish to stop must come through it.
            time.sleep(60)
    finally:
        staging.unlink()


def ignore_sigterm(directory: Path, progress: Reporter) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (directory / "pid").write_text(str(os.getpid()))
    time.sleep(60)


def finish_when_told(directory: Path, progress: Reporter) -> str:
    signal.signal(signal.SIGTERM, lambda number, frame: (directory / "told").touch())
    (directory / "pid").write_text(str(os.getpid()))
    while not (directory / "told").exists():
        time.sleep(0.01)
    return "done"


def modules_and_environment(progress: Reporter) -> tuple[object, str | None]:
    return sys.modules.get("openvino_telemetry", "importable"), os.environ.get("HF_HUB_DISABLE_TELEMETRY")


def listen_to_stdin(progress: Reporter) -> str:
    return sys.stdin.read() + subprocess.run([sys.executable, "-c", "print(1)"], check=True, text=True).args[1]
