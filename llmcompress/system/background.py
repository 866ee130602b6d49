"""Work that nobody waits for: a process that outlives its command, takes what is left over, and makes way.

There is one at a time for each cache. It runs at the lowest priority, is the first to go where memory runs out, stands
still while something is measured, and ends where its memory is needed. All of that goes by locks on files of the cache,
which the system releases with the process that holds them: no number of a process is trusted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, NoReturn

from llmcompress.system.cache import LOCKS, cache_dir
from llmcompress.system.memory import memory

LOG = "background.log"
"""In the cache: what the last such process wrote."""
_LOOK_S = 0.1
_PAUSE_WAIT_S = 10.0
_END_WAIT_S = 15.0
_GRACE_S = 10.0
_FIRST_TO_GO = "1000"

_Role = Literal["alive", "running", "pause", "end"]
"""What a lock says: there is work (held by it alone); it is not standing still (likewise); it has to stand still; it
has to end (both held by any number of others)."""


def start_background(function: Callable[..., object], kwargs: Mapping[str, Any], *, what: str) -> bool:
    """Start ``function(**kwargs)`` in a process that goes on when this one has ended; what it returns is lost.

    Args:
        function: Of a module; arguments travel as a pickle.
        kwargs: Its keyword arguments.
        what: What it does, in a few words, for people.

    Returns:
        Whether it was started; not where other work is going on, nor where this system or its cache lacks the means.
    """
    if not _has_locks() or working_on() is not None:
        return False
    lines = [
        f"import sys; sys.path = {sys.path!r}",
        "from llmcompress.system import background",
        "background.carry_out()",
    ]
    try:
        with tempfile.TemporaryFile() as call:
            pickle.dump((what, pickle.dumps((function, dict(kwargs)))), call)
            call.seek(0)
            # A session of its own: a closed terminal or Ctrl-C does not reach it, and no pipe of ours stays open.
            subprocess.Popen(
                [sys.executable, "-P", "-c", "\n".join(lines)],
                stdin=call,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
    except OSError:
        return False
    return True


class BackgroundWork(NamedTuple):
    """What goes on in the background."""

    pid: int
    what: str
    started: float
    """Seconds since 1970."""


def working_on() -> BackgroundWork | None:
    """What goes on in the background at this moment; None: nothing."""
    file = _open("alive")
    if file is None:
        return None
    with file:
        if _take(file, alone=False):
            return None
        try:
            return BackgroundWork(*json.loads(file.read()))
        except (ValueError, TypeError, RecursionError):  # It has not said yet.
            return BackgroundWork(0, "", time.time())


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Have work in the background stand still inside the block, in which something is measured."""
    with contextlib.ExitStack() as stack:
        for role in ("pause", "running"):
            file = _open(role)
            if file is not None:
                stack.enter_context(file)
                # The second is there for us when the work stands still.
                _take(file, alone=False, wait_s=_PAUSE_WAIT_S)
        yield


def available_for(num_bytes: int) -> int:
    """Bytes of memory that can be taken; where that is less than is wanted, work in the background ends first."""
    available = memory().available
    return memory().available if num_bytes > available and end_background() else available


def end_background() -> bool:
    """End work in the background, which leaves nothing; whether there was any, and it has ended."""
    alive, end = _open("alive"), _open("end")
    if alive is None or end is None:
        return False
    with alive, end:
        if _take(alive, alone=False):
            return False
        _take(end, alone=False, wait_s=1.0)
        return _take(alive, alone=False, wait_s=_END_WAIT_S)


def carry_out() -> NoReturn:
    """Be the process that ``start_background`` starts: carry out the call, and watch the locks."""
    what, call = pickle.load(sys.stdin.buffer)
    alive, running = _open("alive"), _open("running")
    if alive is None or running is None or not _take(alive, alone=True, wait_s=1.0):
        os._exit(0)
    alive.truncate()
    alive.write(json.dumps(BackgroundWork(os.getpid(), what, time.time())).encode())
    _write_to_log()
    _await_leave(running)
    parent, worker = os.getpid(), os.fork()
    if worker == 0:
        _work(call, parent)
    signal.signal(signal.SIGTERM, lambda number, frame: _end(worker))
    while os.waitpid(worker, os.WNOHANG) == (0, 0):
        if _is_asked("end"):
            _end(worker)
        if _is_asked("pause"):
            os.kill(worker, signal.SIGSTOP)
            _release(running)
            _await_leave(running)
            os.kill(worker, signal.SIGCONT)
        time.sleep(_LOOK_S)
    os._exit(0)


def _await_leave(running: IO[bytes]) -> None:
    """Wait until nothing is measured, or the work has to end."""
    while not _is_asked("end") and (_is_asked("pause") or not _take(running, alone=True)):
        time.sleep(_LOOK_S)


def _end(worker: int) -> NoReturn:
    """Let the worker clean up, and end with it."""
    for number in (signal.SIGTERM, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, number)
    deadline = time.monotonic() + _GRACE_S
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(worker, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(worker, signal.SIGKILL)
            time.sleep(_LOOK_S)
    os._exit(128 + signal.SIGTERM)


def _work(call: bytes, parent: int) -> NoReturn:
    from llmcompress.system.environment import leave_out_sklearn, quiet_libraries
    from llmcompress.system.worker import die_with_parent, stop

    try:
        die_with_parent(parent)
        _make_way()
        signal.signal(signal.SIGTERM, stop)
        quiet_libraries()
        leave_out_sklearn()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        function, kwargs = pickle.loads(call)
        function(**kwargs)
    except BaseException:
        logging.exception("it ended early")
    finally:
        # Libraries' threads and exit handlers have nothing left to do.
        os._exit(0)


def _make_way() -> None:
    """Take only what nobody else wants: processor, disk, memory."""
    import psutil

    with contextlib.suppress(OSError):
        os.nice(19)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    # Where each session has a share of the processor, being the last counts within one's own alone.
    for name, value in (("autogroup", "19"), ("oom_score_adj", _FIRST_TO_GO)):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(value)


def _write_to_log() -> None:
    with contextlib.suppress(OSError):
        log = os.open(cache_dir() / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)


def _open(role: _Role) -> IO[bytes] | None:
    """The file of a lock; None where there can be none, and so no work."""
    if sys.platform != "linux":
        return None
    path = cache_dir() / LOCKS / f"background-{role}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
    except OSError:
        return None


def _has_locks() -> bool:
    file = _open("alive")
    if file is not None:
        file.close()
    return file is not None


def _take(file: IO[bytes], *, alone: bool, wait_s: float = 0.0) -> bool:
    """Lock a file until it is closed; whether that was possible."""
    import fcntl

    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_S / 4)
        except OSError:
            return False
        else:
            return True


def _release(file: IO[bytes]) -> None:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_UN)


def _is_asked(role: Literal["pause", "end"]) -> bool:
    file = _open(role)
    if file is None:
        return False
    with file:
        return not _take(file, alone=True)
