"""Runs of a command whose calls to the file system are counted, and of which one meets a fault.

A small library is put in front of libc's (``LD_PRELOAD``): it counts over all processes and threads of a run, which
strace cannot, and costs no time. It is compiled on the spot.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

SOURCE = Path(__file__).with_name("calls.c")
LIMIT_S = 300
GRACE_S = 60
"""In which all processes of a group have to end after the first one."""


class Injection(NamedTuple):
    """What one call meets, and with ``later`` those after it."""

    at: int
    """Counted from 1."""
    act: str
    """As in ``calls.c``: group, self, term, int, short, or an errno."""
    later: bool = False


class Call(NamedTuple):
    """A call that changed something."""

    number: int
    name: str
    path: str


class Ended(NamedTuple):
    """How a run ended; ``returncode`` is minus the signal's number if a signal ended it."""

    returncode: int
    stdout: str
    stderr: str
    outlived: bool
    """Whether a process of its group was still there a while after the first one had ended."""


def why_not() -> str:
    """Why no run can be intercepted here; empty if one can."""
    if os.name != "posix" or not Path("/proc/self/fd").is_dir():
        return "calls are intercepted on Linux"
    return "" if shutil.which("cc") else "there is no C compiler (cc)"


def build(directory: Path, source: Path = SOURCE) -> Path:
    """Compile a library into a directory."""
    library = directory / f"{source.stem}.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wno-format-truncation"]
    subprocess.run(["cc", *options, "-o", str(library), str(source), "-ldl"], check=True)
    return library


def run(
    command: Sequence[str],
    library: Path,
    under: Sequence[Path],
    environment: Mapping[str, str],
    *,
    injection: Injection | None = None,
    copy: str = "",
    cwd: Path | None = None,
) -> tuple[Ended, list[Call]]:
    """Run a command to its end; returns its calls below ``under``, in order, up to the fault.

    ``copy`` is carried out by a shell before each call that makes something last, with the call's number as ``$0``.
    """
    counter, log = library.with_name("counter"), library.with_name("log")
    counter.write_bytes(bytes(8))
    log.unlink(missing_ok=True)
    settings = {
        "LD_PRELOAD": str(library),
        "FAULTS_UNDER": ":".join(map(str, under)),
        "FAULTS_COUNTER": str(counter),
        "FAULTS_LOG": str(log),
    }
    if injection is not None:
        settings |= {"FAULTS_AT": str(injection.at), "FAULTS_ACT": injection.act}
        settings |= {"FAULTS_LATER": "1"} if injection.later else {}
    settings |= {"FAULTS_COPY": copy} if copy else {}
    ended = to_its_end(command, {**environment, **settings}, cwd)
    lines = log.read_text(errors="surrogateescape").splitlines() if log.exists() else []
    calls = [Call(int(number), name, path) for number, name, path in (line.split(" ", 2) for line in lines)]
    return ended, calls


def run_here(arguments: Sequence[str]) -> Ended:
    """Run the command line in this process, whose libraries are imported once."""
    from llmcompress.cli import run as run_command

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_command(list(arguments))
    return Ended(code, out.getvalue(), err.getvalue(), outlived=False)


def to_its_end(
    command: Sequence[str], environment: Mapping[str, str], cwd: Path | None, limit_s: float = LIMIT_S
) -> Ended:
    """Run a command in a group of its own, as a terminal does, until the last process of it has ended."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
        # A sweep that a shell put into the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=_heeding_interrupts,
    )
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except BaseException:  # Too long, or Ctrl-C.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    deadline = time.monotonic() + GRACE_S
    while (outlived := _is_alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if outlived:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"), outlived)


def _heeding_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_alive(group: int) -> bool:
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
