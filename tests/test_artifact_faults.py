"""Real faults: after each, the output is absent, the old one or the new one, whole, and the next run works."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_fixture import CHILD, ENV, seed_of, write_artifact
from fault_injection import (
    Call,
    Ended,
    bind_mount,
    needs_strace,
    read_only_mount,
    remount_read_only,
    run_and_kill,
    run_with_fault,
    small_tmpfs,
    system_calls,
)

from llmcompress.artifact import staging, verify, write_errors
from llmcompress.errors import UsageError, WriteError
from llmcompress.system.files import replace_file, replacing

OLD, NEW, NEXT = 1, 2, 3


def run(*arguments: object, before: Callable[[], None] | None = None) -> Ended:
    command = [*CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, preexec_fn=before, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


def check(work: Path, old: int | None, ended: Ended) -> int | None:
    """The output is the old or the new one, and a run without fault then replaces it and leaves nothing else."""
    out = work / "out"
    seed = seed_of(out, (OLD, NEW))
    assert seed in (old, NEW), ended
    if seed is not None:
        assert verify(out).ok
    if ended.returncode == 0:
        assert seed == NEW
    write_artifact(out, NEXT, overwrite=True)
    assert seed_of(out, (NEXT,)) == NEXT
    assert [path.name for path in work.iterdir()] == ["out"], ended
    return seed


def prepare(work: Path, old: int | None) -> None:
    if (work / "out").exists():
        # Under a name that the package does not know, so that nothing of it can help.
        subprocess.run(["rm", "-r", work / "out"], check=True)
    work.mkdir(exist_ok=True)
    if old is not None:
        write_artifact(work / "out", old)


# --- killed


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_signal_at_random_moments(tmp_path: Path, old: int | None, number: signal.Signals) -> None:
    work, moments = tmp_path / "work", random.Random(number)
    command = [*CHILD, str(work / "out"), str(NEW), "--overwrite", "--pause", "0.02"]
    prepare(work, old)
    start = time.monotonic()
    assert run_and_kill(command, 60, env=ENV).returncode == 0
    whole = time.monotonic() - start
    for _ in range(2):
        prepare(work, old)
        ended = run_and_kill(command, whole * moments.uniform(0.3, 1), number=number, env=ENV)
        if number == signal.SIGINT and "staged" in ended.stdout:
            assert not list(work.glob(".out.*")), "an interrupted run removes what it staged"
        check(work, old, ended)


def faults(work: Path, old: int | None, *options: str, every: int) -> tuple[list[str], list[Call]]:
    """The command, and the calls to put a fault at: renames, the last one, and of the others each ``every``-th."""
    prepare(work, old)
    command = [*CHILD, str(work / "out"), str(NEW), *options]
    calls = system_calls(command, work, env=ENV)
    assert {"mkdir", "write", "fsync", "rename", "unlink", "rmdir"} <= {call.name for call in calls}
    deciding = ("rename", "renameat2")
    return command, [
        call
        for place, call in enumerate(calls, start=1)
        if place % every == 0 or call.name in deciding or place == len(calls)
    ]


@pytest.mark.parametrize(
    ("old", "options", "every"),
    [
        (None, (), 15),
        (OLD, ("--overwrite",), 15),
        pytest.param(OLD, ("--overwrite", "--no-exchange"), 25, marks=pytest.mark.slow),
        pytest.param(None, (), 1, marks=pytest.mark.slow),
        pytest.param(OLD, ("--overwrite",), 1, marks=pytest.mark.slow),
        pytest.param(OLD, ("--overwrite", "--no-exchange"), 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_system_call(tmp_path: Path, old: int | None, options: tuple[str, ...], every: int) -> None:
    work = tmp_path / "work"
    command, calls = faults(work, old, *options, every=every)
    outcomes = set()
    for call in calls:
        prepare(work, old)
        ended = run_with_fault(command, call, "signal=KILL", env=ENV)
        assert ended.returncode == -signal.SIGKILL, call
        # Without an exchange there is a moment in which the old output is aside; the next run brings it back.
        if "--no-exchange" in options and not (work / "out").exists():
            with staging(work / "out", overwrite=True):
                pass
        outcomes.add(check(work, old, ended))
    assert outcomes == {old, NEW}


@pytest.mark.parametrize(
    ("fault", "persistent", "every"),
    [
        ("error=ENOSPC", False, 10),
        ("error=EIO", True, 15),
        pytest.param("error=ENOSPC", False, 1, marks=pytest.mark.slow),
        pytest.param("error=ENOSPC", True, 1, marks=pytest.mark.slow),
        pytest.param("error=EIO", False, 1, marks=pytest.mark.slow),
        pytest.param("error=EDQUOT", True, 1, marks=pytest.mark.slow),
    ],
)
def test_an_error_at_a_system_call(tmp_path: Path, fault: str, persistent: bool, every: int) -> None:
    work = tmp_path / "work"
    command, calls = faults(work, OLD, "--overwrite", every=every)
    for call in calls:
        prepare(work, OLD)
        ended = run_with_fault(command, call, fault, persistent=persistent, env=ENV)
        assert ended.returncode in (0, 1, 8), (call, ended)
        # The child writes the model's files without write_errors, and prints: only these may end otherwise.
        if ended.returncode == 1:
            assert "/model/" in call.line or persistent, (call, ended)
            # Where no write works any more, none to stderr does.
            said = "" if persistent and call.name == "write" else "unexpected: OSError"
            assert said in ended.stderr, (call, ended)
            assert bool(said) == bool(ended.stderr), (call, ended)
        if ended.returncode == 8:
            assert f"({fault.removeprefix('error=')})" in ended.stderr, (call, ended)
            assert "bytes free" in ended.stderr
        check(work, OLD, ended)


def test_what_a_killed_process_left_of_a_file_goes_with_the_next(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    abandoned, of_another = tmp_path / ".out.json.out.json-0123abcd", tmp_path / ".out.json-old"
    for path in (abandoned, of_another):
        path.write_bytes(b"half")
    with replacing(target) as file:
        file.write(b"first")
        assert not abandoned.exists()
        # A process that is at work on the same file keeps its own.
        replace_file(target, b"second")
        assert len(list(tmp_path.iterdir())) == 3
    assert target.read_bytes() == b"first"
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", of_another.name}


def test_everything_is_on_the_device_before_it_is_in_place(tmp_path: Path) -> None:
    work = tmp_path / "work"
    prepare(work, OLD)
    command = [*CHILD, str(work / "out"), str(NEW), "--overwrite"]
    calls = system_calls(command, work, ("openat", "fsync", "write", "rename", "renameat2", "unlinkat"), env=ENV)
    lines = [call.line for call in calls]
    place = next(index for index, call in enumerate(calls) if call.name == "renameat2")
    assert "RENAME_EXCHANGE" in lines[place]
    for name in ("openvino_model.bin", "openvino_model.xml", "tokenizer/vocab.json", "tokenizer", "llmcompress.json"):
        synced = [index for index, line in enumerate(lines) if "fsync(" in line and f"/{name}>" in line]
        written = [index for index, line in enumerate(lines) if "write(" in line and f"/{name}>" in line]
        assert synced, f"{name} is never synced"
        assert max(written, default=-1) < synced[0] < place, name
    moved = next(index for index, call in enumerate(calls) if call.name == "rename")
    assert [i for i, line in enumerate(lines) if "fsync(" in line and "/model>" in line and moved < i < place]
    after = [index for index, line in enumerate(lines) if "fsync(" in line and f"<{work}>" in line and index > place]
    removed = next(index for index, call in enumerate(calls) if call.name == "unlinkat")
    assert after[0] < removed, "the old files go only when the new name is on the device"


def test_a_reader_always_finds_a_whole_output(tmp_path: Path) -> None:
    needs_strace()
    out = write_artifact(tmp_path / "out", OLD)
    missing, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not (out / "llmcompress.json").exists():
                missing.append(time.monotonic())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for seed in range(40):
            write_artifact(out, seed, overwrite=True)
    finally:
        stop.set()
        thread.join()
    assert not missing


# --- no room, no permission


@pytest.mark.parametrize("old", [None, OLD])
def test_a_full_file_system(tmp_path: Path, old: int | None) -> None:
    outcomes, messages = set(), []
    for kib in range(8, 100, 4):
        with small_tmpfs(tmp_path / "work", f"{kib}k") as work:
            try:
                if old is not None:
                    write_artifact(work / "out", old)
            except (WriteError, OSError):
                assert not list(work.iterdir())
                continue
            try:
                write_artifact(work / "out", NEW, overwrite=True)
                outcomes.add("written")
            except WriteError as error:
                outcomes.add("refused")
                messages.append(str(error))
            except OSError:
                outcomes.add("a file did not fit")
            written = seed_of(work / "out", (OLD, NEW)) == NEW
            assert written or seed_of(work / "out", (OLD, NEW)) == old
            assert [path.name for path in work.iterdir()] == (["out"] if written or old else [])
    assert outcomes == {"written", "refused", "a file did not fit"}
    for message in messages:
        assert "No space left on device (ENOSPC)" in message
        assert "bytes free on its file system" in message
        assert "hint: make room on that file system" in message


def test_a_full_file_system_ends_a_command_with_exit_code_8(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "work", "4k") as work:
        ended = run(work / "out", NEW)
        assert ended.returncode in (1, 8)
        (work / "filler").write_bytes(b"x" * 4096)
        ended = run(work / "out", NEW)
        assert ended.returncode == 8
        assert "0 bytes free on its file system" in ended.stderr


def test_a_run_finds_room_again_after_one_that_was_killed(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "work", "128k") as work:
        stale = work / ".out.staging-0123abcd"
        (stale / "model").mkdir(parents=True)
        (stale / "owner.json").write_text("")
        with pytest.raises(OSError, match="No space left"):
            (stale / "model" / "openvino_model.bin").write_bytes(b"x" * 200_000)
        write_artifact(work / "out", NEW)
        assert [path.name for path in work.iterdir()] == ["out"]


def test_openvino_on_a_full_file_system(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    import numpy as np

    constant = openvino.opset13.constant(np.zeros(1_000_000, np.float32))
    model = openvino.Model([openvino.opset13.result(constant)], [])
    with small_tmpfs(tmp_path / "work", "64k") as work:
        with pytest.raises(WriteError) as caught, staging(work / "out") as staged, write_errors(staged.path):
            openvino.save_model(model, staged.path / "openvino_model.xml", compress_to_fp16=False)
        assert "most often for a full disk" in caught.value.message
        assert "bytes free" in caught.value.message
        assert not list(work.iterdir())


def test_a_read_only_file_system(tmp_path: Path) -> None:
    with read_only_mount(tmp_path / "work") as work:
        for target in (work / "out", work / "deep" / "out"):
            ended = run(target, NEW)
            assert ended.returncode == 8
            assert "Read-only file system (EROFS)" in ended.stderr
            assert "hint: the file system is mounted read-only: choose another output directory" in ended.stderr


def test_an_old_output_on_a_file_system_that_became_read_only(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "work") as work:
        write_artifact(work / "out", OLD)
        remount_read_only(work)
        assert run(work / "out", NEW, "--overwrite").returncode == 8
        assert seed_of(work / "out", (OLD, NEW)) == OLD


@pytest.mark.parametrize("options", [(), ("--default-sigxfsz",)])
def test_a_file_size_limit(tmp_path: Path, options: tuple[str, ...]) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    work = tmp_path / "work"
    prepare(work, OLD)
    # The model's files fit; the manifest does not.
    ended = run(work / "out", NEW, "--overwrite", "--size", 800, *options, before=limit)
    assert ended.returncode == 8, ended
    assert "File too large (EFBIG)" in ended.stderr
    assert "ulimit -f" in ended.stderr
    assert check(work, OLD, ended) == OLD


def test_a_mount_point_is_no_output(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "volume") as volume:
        with pytest.raises(UsageError, match="is a mount point") as caught:
            write_artifact(volume, NEW, overwrite=True)
        assert str(volume / "model") in caught.value.hint
        write_artifact(volume / "model", NEW)


def test_output_and_input_through_a_bind_mount(tmp_path: Path) -> None:
    source = tmp_path / "models" / "source"
    (source / "sub").mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    seen, parts, above = tmp_path / "seen", tmp_path / "parts", tmp_path / "above"
    with bind_mount(source, seen), bind_mount(source / "sub", parts), bind_mount(tmp_path / "models", above):
        for target, given, message in [
            (seen / "out", source, "lies inside the input"),
            (source / "out", seen, "lies inside the input"),
            (parts / "out", source, "lies inside the input"),
            (above / "source", source, "is the input itself"),
            (above / "source" / "out", source, "lies inside the input"),
        ]:
            with pytest.raises(UsageError, match=message):
                write_artifact(target, NEW, overwrite=True, inputs=(given,))
        write_artifact(above / "out", NEW, inputs=(source,))
        with pytest.raises(UsageError, match="contains the input"):
            write_artifact(tmp_path / "models", NEW, overwrite=True, inputs=(above / "source",))
    assert sorted(path.name for path in source.iterdir()) == ["model.safetensors", "sub"]


# --- two runs at once


@pytest.mark.parametrize("options", [(), ("--flock-always-succeeds",)])
def test_the_second_of_two_runs_is_refused_and_names_the_first(tmp_path: Path, options: tuple[str, ...]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    command = [*CHILD, str(work / "out"), str(NEW), "--pause", "0.1", *options]
    first = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(work.glob(".out.staging-*/model/openvino_model.bin")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # However long the second takes to start.
    second = run(work / "out", OLD, "--overwrite", *options)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 9
    assert f"another run (process {first.pid} on " in second.stderr
    assert "hint: wait until it ends" in second.stderr
    assert first.wait(60) == 0, first.communicate()
    assert check(work, None, Ended(0, "", "")) == NEW


def test_many_runs_at_once_end_in_one_whole_output(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    commands = [
        [*CHILD, str(work / "out"), str(seed), "--overwrite", "--pause", "0.005"] for seed in (OLD, NEW, OLD, NEW)
    ]
    runs = [subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True) for command in commands]
    ended = [Ended(process.wait(60), "", process.communicate()[1]) for process in runs]
    assert {one.returncode for one in ended} <= {0, 9}, ended
    assert any(one.returncode == 0 for one in ended)
    assert seed_of(work / "out", (OLD, NEW)) is not None
    assert [path.name for path in work.iterdir()] == ["out"]


def test_a_run_starts_at_once_after_one_that_was_killed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen([*CHILD, str(work / "out"), str(NEW), "--pause", "5"], env=ENV)
    while not list(work.glob(".out.staging-*/model/openvino_model.bin")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(list(work.glob(".out.*"))) == 2, "the lock file and the staging directory"
    write_artifact(work / "out", NEW)
    assert [path.name for path in work.iterdir()] == ["out"]
