"""Real faults for tests: small and read-only file systems, a kill at a moment, a fault at a chosen system call.

What needs root or strace skips the test with the reason where they are not there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

CHANGES = ("openat", "write", "fsync", "rename", "renameat2", "mkdir", "unlink", "unlinkat", "rmdir")
"""The system calls that change a file system; ``openat`` only where it creates or writes."""


class Ended(NamedTuple):
    """How a process ended; ``returncode`` is minus the signal's number if a signal ended it."""

    returncode: int
    stdout: str
    stderr: str


class Call(NamedTuple):
    """The ``index``-th system call of this name in a process, counted from 1."""

    name: str
    index: int
    line: str


@contextmanager
def small_tmpfs(path: Path, size: str | int = "1m") -> Iterator[Path]:
    """A file system of its own at ``path`` with room for ``size`` bytes (``1m``, ``64k``, or a number)."""
    path.mkdir(parents=True, exist_ok=True)
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield path


@contextmanager
def read_only_mount(path: Path) -> Iterator[Path]:
    """An empty read-only file system at ``path``: unlike permissions, it also stops root."""
    with small_tmpfs(path):
        remount_read_only(path)
        yield path


@contextmanager
def bind_mount(source: Path, path: Path) -> Iterator[Path]:
    """``source`` seen a second time at ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    with _mounted(path, "--bind", str(source)):
        yield path


def remount_read_only(path: Path) -> None:
    """Make a mounted file system read-only, with what it holds."""
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True, capture_output=True)


@contextmanager
def _mounted(path: Path, *arguments: str) -> Iterator[None]:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root on Linux")
    done = subprocess.run(["mount", *arguments, str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        if subprocess.run(["umount", str(path)], capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def run_and_kill(
    command: Sequence[str | Path],
    after_s: float,
    *,
    number: signal.Signals = signal.SIGKILL,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Ended:
    """Run a command and send it and its children a signal after ``after_s`` seconds, unless it ended before."""
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
        cwd=cwd,
    )
    try:
        stdout, stderr = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)
        stdout, stderr = process.communicate(timeout=60)
    return Ended(process.returncode, stdout, stderr)


def needs_strace() -> str:
    """The path of strace; skips the test where it is missing or may not trace."""
    found = shutil.which("strace")
    if not found:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-qq", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace processes here")
    return found


def system_calls(
    command: Sequence[str | Path], under: Path, names: Sequence[str] = CHANGES, *, env: dict[str, str] | None = None
) -> list[Call]:
    """Run a command to its end and return, in order, its calls that change something below ``under``.

    For a process without threads and children: strace counts calls per process.
    """
    log = under.parent / f"{under.name}.strace"
    options = ["-f", "-qq", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(names)}"]
    command = [needs_strace(), *options, *command]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = {}
    calls = []
    for line in log.read_text().splitlines():
        if not (match := re.match(r"\d+ +(\w+)\(", line)):
            continue
        name = match[1]
        counts[name] = counts.get(name, 0) + 1
        changes = name != "openat" or "O_CREAT" in line or "O_WRONLY" in line or "O_RDWR" in line
        if str(under) in line and changes:
            calls.append(Call(name, counts[name], line))
    log.unlink()
    return calls


def run_with_fault(
    command: Sequence[str | Path],
    call: Call,
    fault: str,
    *,
    persistent: bool = False,
    env: dict[str, str] | None = None,
) -> Ended:
    """Run a command with ``signal=KILL``, ``error=ENOSPC``, ... at one system call; ``persistent``: and all later."""
    when = f"{call.index}{'+' if persistent else ''}"
    inject = f"inject={call.name}:{fault}:when={when}"
    options = ["-f", "-qq", "-o", os.devnull, "-e", f"trace={call.name}", "-e", inject]
    # A filter in the kernel stops the process only at these calls, much faster; strace then injects no signals.
    if fault.startswith("error="):
        options.append("--seccomp-bpf")
    command = [needs_strace(), *options, *command]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)
