"""Whole runs under faults: the output is absent, the old one or the new one, and the input stays as it is."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_fixture import seed_of, write_artifact
from compress_fixture import (
    RECIPE,
    Undisturbed,
    at_once,
    at_stage,
    command,
    environment,
    kill_both,
    kill_parent,
    kill_worker,
    leftovers,
    reproducible,
    run,
    tree,
    undisturbed,
)
from fault_injection import Ended, read_only_mount, run_and_kill, small_tmpfs

__all__ = ["undisturbed"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

MB = 1_000_000
OLD = 7
"""Seed of the old output that a run replaces."""


@pytest.fixture(autouse=True)
def _inputs_stay(undisturbed: Undisturbed) -> Iterator[None]:
    yield
    assert tree(undisturbed.checkpoint) == undisturbed.checkpoint_tree


def _compress(undisturbed: Undisturbed, output: Path, *more: str) -> list[str | Path]:
    return ["compress", undisturbed.checkpoint, *RECIPE, "-o", output, *more]


def _said(ended: Ended) -> tuple[str, str]:
    """The error and the hint with which a run ended, the last two lines; stdout is empty."""
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines[-2:]] == ["error", "hint"], ended.stderr
    return lines[-2].removeprefix("error: "), lines[-1].removeprefix("hint: ")


@pytest.mark.slow
def test_kills_at_different_moments_leave_nothing_that_a_rerun_does_not_remove(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = _compress(undisturbed, output, "--overwrite")

    ended = at_stage(arguments, "load and trace", kill_worker)
    error, _ = _said(ended)
    # The kernel counts kills for memory on the whole machine, where one may happen meanwhile.
    assert ended.returncode in {1, 10}
    assert error.startswith(("the worker was killed (SIGKILL) in stage '", "the operating system killed the worker"))
    assert list(tmp_path.iterdir()) == []

    ended = at_stage(arguments, "save", kill_parent)
    assert ended.returncode == -signal.SIGKILL
    assert not output.exists()
    assert len([name for name in leftovers(output) if "staging" in name]) == 1

    write_artifact(output, OLD)
    ended = at_stage(arguments, "convert the tokenizer", kill_both)
    assert ended.returncode == -signal.SIGKILL
    if json.loads((output / "llmcompress.json").read_text())["num_parameters"] == 1000:
        assert seed_of(output, (OLD,)) == OLD
    else:
        assert reproducible(output) == reproducible(undisturbed.output)

    with _small_temporary_directory(tmp_path) as temporary:
        rerun = run(*arguments, TMPDIR=temporary)
    assert rerun.returncode == 0, rerun.stderr
    assert reproducible(output) == reproducible(undisturbed.output)
    assert leftovers(output) == []


@contextlib.contextmanager
def _small_temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """Where temporary files go: with room for 64 KB, if a file system may be mounted here."""
    place = tmp_path / "temporary"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_tmpfs(place, "64k"))
        except pytest.skip.Exception:
            place.mkdir(exist_ok=True)
        yield place


@pytest.mark.slow
def test_an_interruption_leaves_nothing_and_says_so(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def terminated() -> Ended:
        # As a batch system does: the parent alone.
        return at_stage(
            _compress(undisturbed, tmp_path / "terminated"),
            "forecast",
            lambda process: os.kill(process.pid, signal.SIGTERM),
        )

    def ctrl_c() -> Ended:
        # As a terminal does: the whole group.
        return at_stage(
            _compress(undisturbed, tmp_path / "ctrl-c"),
            "load and trace",
            lambda process: os.killpg(process.pid, signal.SIGINT),
        )

    for ended, name, code in zip(at_once(terminated, ctrl_c), ("SIGTERM", "Ctrl-C"), (143, 130), strict=True):
        assert ended.returncode == code
        assert _said(ended) == (f"interrupted by {name}; nothing was left behind", "run the same command again")
        assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_neither_an_existing_output_nor_the_input_is_written_to(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_artifact(output, OLD)
    before = tree(output)
    (tmp_path / "link").symlink_to(undisturbed.checkpoint)
    existing, same, inside = at_once(
        lambda: run(*_compress(undisturbed, output)),
        lambda: run(*_compress(undisturbed, tmp_path / "link", "--overwrite")),
        lambda: run(*_compress(undisturbed, tmp_path / "link" / "inside")),
    )
    source = undisturbed.checkpoint.resolve()
    never = "the input is never written to"
    for ended, message in (
        (existing, f"{output}: exists already"),
        (same, f"{source}: is the input itself; {never}"),
        (inside, f"{source / 'inside'}: lies inside the input {source}; {never}"),
    ):
        assert ended.returncode == 2, ended.stderr
        assert _said(ended)[0] == message
    assert _said(existing)[1] == "--overwrite replaces it; or choose another output directory"
    assert tree(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


@pytest.mark.slow
def test_disks_that_are_too_small_fill_up_or_are_read_only(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with (
        small_tmpfs(tmp_path / "tiny", "1m") as tiny,
        small_tmpfs(tmp_path / "filled", "40m") as filled,
        read_only_mount(tmp_path / "fixed") as fixed,
    ):
        refused, stopped, kept_out = at_once(
            lambda: run(*_compress(undisturbed, tiny / "out")),
            lambda: at_stage(_compress(undisturbed, filled / "out"), "forecast", lambda _: _fill(filled, 100_000)),
            lambda: run(*_compress(undisturbed, fixed / "out")),
        )
        assert refused.returncode == 3, refused.stderr
        error, hint = _said(refused)
        assert error == "disk: the output needs 0.03 GB, 0.00 GB are free"
        assert hint.startswith("free some space, give -o on another file system")
        assert list(tiny.iterdir()) == []

        assert stopped.returncode == 8, stopped.stderr
        error, hint = _said(stopped)
        assert error.startswith(f"{filled}/")
        assert ": cannot write: " in error
        assert error.endswith(" bytes free on its file system")
        assert hint == "make room on that file system, or choose an output directory on another one"
        assert [path.name for path in filled.iterdir()] == ["ballast"]

        assert kept_out.returncode == 8, kept_out.stderr
        error, hint = _said(kept_out)
        assert f"{fixed}/" in error
        assert "Read-only file system (EROFS)" in error
        assert hint == "the file system is mounted read-only: choose another output directory"
        assert list(fixed.iterdir()) == []


def _fill(place: Path, free: int) -> None:
    """Take a small file system's room but for ``free`` bytes."""
    left = shutil.disk_usage(place).free - free
    (place / "ballast").write_bytes(b"\0" * left)


@pytest.mark.slow
def test_too_little_memory_is_refused_or_explained(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with _memory_limit("refused", 700 * MB) as join_larger, _memory_limit("killed", 400 * MB) as join_smaller:
        refused, killed = at_once(
            lambda: _limited(join_larger, _compress(undisturbed, tmp_path / "refused")),
            lambda: _limited(join_smaller, _compress(undisturbed, tmp_path / "killed")),
        )
    assert refused.returncode == 3, refused.stderr
    error, hint = _said(refused)
    assert error.startswith("memory: it needs at least 0.")
    assert error.endswith(" GB are available")
    assert "machine with more memory" in hint

    assert killed.returncode == 10, killed.stderr
    error, hint = _said(killed)
    assert error.startswith("the operating system killed the worker for its memory")
    assert ": peak 0." in error
    assert error.endswith(" GB, limit 0.40 GB")
    assert hint.startswith("give it more memory or close other programs; --dry-run predicts the peak")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_that_shrinks_during_the_run(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with _memory_limit("shrinking", 3000 * MB) as join:
        group = join.parent

        def shrink(_: subprocess.Popen[str]) -> None:
            for _attempt in range(20):
                used = int((group / "memory.usage_in_bytes").read_text())
                with contextlib.suppress(OSError):
                    (group / "memory.limit_in_bytes").write_text(str(used + 10 * MB))
                    return

        ended = at_stage(
            _compress(undisturbed, tmp_path / "out"),
            "forecast",
            shrink,
            before_start=functools.partial(_join, join),
        )
    assert ended.returncode == 10, ended.stderr
    assert "killed the worker for its memory in stage '" in _said(ended)[0]
    rerun = run(*_compress(undisturbed, tmp_path / "out"))
    assert rerun.returncode == 0, rerun.stderr
    assert reproducible(tmp_path / "out") == reproducible(undisturbed.output)
    assert leftovers(tmp_path / "out") == []


@contextlib.contextmanager
def _memory_limit(name: str, limit: int) -> Iterator[Path]:
    """A memory control group (version 1); yields the file that takes the processes that join it."""
    group = Path("/sys/fs/cgroup/memory") / f"llmcompress-{name}-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        pytest.skip(f"no writable version 1 memory control group here: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        for _ in range(100):
            if not (group / "cgroup.procs").read_text():
                break
            time.sleep(0.1)
        group.rmdir()


def _join(processes: Path) -> None:
    processes.write_text(str(os.getpid()))


def _limited(processes: Path, arguments: list[str | Path]) -> Ended:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=functools.partial(_join, processes),
        timeout=300,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_file_size_limit_is_an_error_that_names_it(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        command(*_compress(undisturbed, tmp_path / "out")),
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=limit,
    )
    assert done.returncode == 8, done.stderr
    error, hint = _said(Ended(done.returncode, done.stdout, done.stderr))
    assert "file-size limit" in error
    assert "ulimit -f" in hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 5_000, 50_000, 150_000, 230_000, 300_000, 400_000, 430_000, 460_000])
def test_a_disk_that_fills_up_at_any_point(free: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "filled", "40m") as filled:
        arguments = _compress(undisturbed, filled / "out")
        ended = at_stage(arguments, "forecast", lambda _: _fill(filled, free))
        assert ended.returncode == 8, ended.stderr
        assert f"{filled}" in _said(ended)[0]
        assert [path.name for path in filled.iterdir()] == ["ballast"]
        (filled / "ballast").unlink()
        rerun = run(*arguments)
        assert rerun.returncode == 0, rerun.stderr
        assert reproducible(filled / "out") == reproducible(undisturbed.output)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replaced"])
def test_kills_at_random_moments(overwrite: bool, undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = _compress(undisturbed, output, "--overwrite")
    began = time.monotonic()
    assert run(*_compress(undisturbed, tmp_path / "timed")).returncode == 0
    duration_s = time.monotonic() - began
    expected = reproducible(undisturbed.output)
    moments = random.Random(overwrite)
    for _ in range(10):
        if overwrite and not output.exists():
            write_artifact(output, OLD)
        number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        moment = duration_s * moments.uniform(0.3, 1.05)
        ended = run_and_kill(command(*arguments), moment, number=number, env=environment())
        assert len([name for name in leftovers(output) if "staging" in name]) <= 1
        if number != signal.SIGKILL:
            assert leftovers(output) == []
        if output.exists():
            is_old = json.loads((output / "llmcompress.json").read_text())["num_parameters"] == 1000
            assert (seed_of(output, (OLD,)) == OLD) if is_old else (reproducible(output) == expected)
            if not is_old:
                shutil.rmtree(output)
        else:
            assert not overwrite
            assert ended.returncode != 0
    rerun = run(*arguments)
    assert rerun.returncode == 0, rerun.stderr
    assert reproducible(output) == expected
    assert leftovers(output) == []
