"""Whole runs of ``llmcompress compress`` as processes: disturbed at a stage, and two undisturbed ones to compare."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import pytest
from fault_injection import Ended
from tiny_models import build_checkpoint

ROOT = Path(__file__).parent.parent
STAGES = (
    "read the configuration",
    "forecast",
    "check weights",
    "load and trace",
    "applying weight compression",
    "save",
    "convert the tokenizer",
)
"""What a run reports, in the order in which the stages end."""

TRACED = "network,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,write,writev,pwrite64,pwritev"
RECIPE = ("-r", "int4", "--set", "weights.group_size=32")

_T = TypeVar("_T")


class Undisturbed(NamedTuple):
    """Two whole runs of equal input and recipe, in different places."""

    checkpoint: Path
    checkpoint_tree: dict[str, bytes]
    """The input as it was before any run."""
    output: Path
    json_text: str
    """stdout of the first run, with --json."""
    terminal: str
    """What the terminal received from the first run: its stderr."""
    rival: Ended
    """A second run to the same output while the first was at work."""
    other_place: Path
    """Working directory of the second run."""
    other_source: str
    other_output: Path
    """Where the second run wrote without being told."""
    report: Ended
    """stdout and stderr of the second run, both pipes."""
    trace: Path | None
    """System calls of the second run; None where strace cannot be used."""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "llmcompress", *map(str, arguments)]


def environment(**changes: str | Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}}
    return kept | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in changes.items()}


def run(*arguments: str | Path, cwd: Path | None = None, **changes: str | Path) -> Ended:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=cwd, env=environment(**changes), timeout=300
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def at_stage(
    arguments: Sequence[str | Path],
    stage: str,
    act: Callable[[subprocess.Popen[str]], None],
    *,
    before_start: Callable[[], None] | None = None,
    **changes: str | Path,
) -> Ended:
    """Run with -v and call ``act`` with the process when ``stage`` has ended; returns when all of it has ended."""
    process = subprocess.Popen(
        command(*arguments, "-v"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**changes),
        start_new_session=True,
        preexec_fn=before_start,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    lines = []
    acted = False
    for line in process.stderr:
        lines.append(line)
        if not acted and line.startswith(f"{stage}: "):
            act(process)
            acted = True
    stdout = process.stdout.read()
    process.wait(timeout=60)
    assert acted, f"stage {stage!r} did not end:\n{''.join(lines)}"
    for _ in range(300):
        if not _group(process.pid):
            break
        time.sleep(0.1)
    assert not _group(process.pid), "the worker outlived its parent"
    return Ended(process.returncode, stdout, "".join(lines))


def kill_worker(process: subprocess.Popen[str]) -> None:
    for child in psutil.Process(process.pid).children():
        child.kill()


def kill_parent(process: subprocess.Popen[str]) -> None:
    process.kill()


def kill_both(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def reproducible(output: Path) -> dict[str, object]:
    """An output's files, of the manifest all but ``measured``, after its own check found nothing wrong."""
    from llmcompress.artifact import verify

    report = verify(output)
    assert report.ok, report.problems
    files: dict[str, object] = dict(tree(output))
    manifest = json.loads((output / "llmcompress.json").read_bytes())
    assert manifest.pop("measured")["duration_s"] > 0
    return files | {"llmcompress.json": manifest}


def leftovers(output: Path) -> list[str]:
    """What lies beside an output and belongs to its runs."""
    return sorted(path.name for path in output.parent.iterdir() if path.name.startswith(f".{output.name}."))


def at_once(*jobs: Callable[[], _T]) -> list[_T]:
    """Run jobs side by side; most of a run is one thread that imports libraries."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return _undisturbed(tmp_path_factory.getbasetemp())


@functools.cache
def _undisturbed(base: Path) -> Undisturbed:
    # Places of its own each time: a call that failed is not remembered, and the next one shows the same failure.
    place = Path(tempfile.mkdtemp(prefix="undisturbed-", dir=base))
    checkpoint = build_checkpoint(place / "checkpoint", num_hidden_layers=1)
    before = tree(checkpoint)
    output = place / "output"
    other_place = Path(tempfile.mkdtemp(prefix="elsewhere-", dir=base))
    other_source = "Модель of mine"
    shutil.copytree(checkpoint, other_place / other_source)

    arguments = command("compress", checkpoint, *RECIPE, "-o", output, "--json")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(_on_a_terminal, arguments, output)
        report, trace = _second(other_place, other_source)
        json_text, terminal, rival = first.result()
    return Undisturbed(
        checkpoint=checkpoint,
        checkpoint_tree=before,
        output=output,
        json_text=json_text,
        terminal=terminal,
        rival=rival,
        other_place=other_place,
        other_source=other_source,
        other_output=other_place / f"{other_source}-int4-ov",
        report=report,
        trace=trace,
    )


def _on_a_terminal(arguments: list[str], output: Path) -> tuple[str, str, Ended]:
    """A run with a terminal of 80 columns as stderr, held while a second one tries to write the same output."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment(TERM="xterm-256color"),
        start_new_session=True,
    )
    os.close(theirs)
    received = bytearray()
    reader = threading.Thread(target=_drain, args=(ours, received))
    reader.start()
    with _held(process, until=f".{output.name}.staging-*/model", beside=output):
        rival = run(*arguments[3:])
    stdout, _ = process.communicate(timeout=300)
    reader.join()
    assert process.returncode == 0, received.decode()
    return stdout, received.decode(), rival


@contextlib.contextmanager
def _held(process: subprocess.Popen[str], until: str, beside: Path) -> Iterator[None]:
    while not list(beside.parent.glob(until)):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def _second(place: Path, source: str) -> tuple[Ended, Path | None]:
    """The same from a relative path in another working directory, with empty directories for what libraries keep."""
    changes = {"HOME": "home", "TMPDIR": "tmp", "HF_HOME": "hf", "LLMCOMPRESS_CACHE": "cache"}
    for name in changes.values():
        (place / name).mkdir()
    arguments = command("compress", source, *RECIPE)
    trace = place / "trace" if _can_trace() else None
    if trace is not None:
        # -y names the file behind each descriptor; the filter in the kernel stops the run at these calls only.
        options = ["-f", "--seccomp-bpf", "-qq", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={TRACED}"]
        arguments = ["strace", *options, *arguments]
    changed = environment(**{name: place / path for name, path in changes.items()})
    changed.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=place, env=changed, timeout=300)
    return Ended(done.returncode, done.stdout, done.stderr), trace


def _can_trace() -> bool:
    strace = shutil.which("strace")
    probe = ["-f", "--seccomp-bpf", "-qq", "-o", os.devnull, "true"]
    return strace is not None and subprocess.run([strace, *probe], capture_output=True).returncode == 0


def _drain(descriptor: int, received: bytearray) -> None:
    # The terminal's end is an error on Linux.
    with contextlib.suppress(OSError):
        while block := os.read(descriptor, 65536):
            received += block
    os.close(descriptor)


def _group(pid: int) -> list[psutil.Process]:
    """The processes of a group that still hold something, such as a lock: one that died may be a zombie for ever."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            dead = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
            if os.getpgid(process.pid) == pid and not dead:
                found.append(process)
    return found
