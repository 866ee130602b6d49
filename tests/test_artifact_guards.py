"""Each condition of what guards an output directory, alone: where another one would hold in its place, too."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from artifact_fixture import manifest_for, write_artifact
from filelock import FileLock

from llmcompress.artifact import (
    output,
    read_manifest,
    remove_artifact,
    remove_leftovers,
    staging,
    verify,
    write_errors,
)
from llmcompress.artifact.failures import size_limit_as_error
from llmcompress.artifact.manifest import is_sealed_wrong
from llmcompress.artifact.placement import checked_output, refuse_existing, refuse_overlap, resolve_output
from llmcompress.errors import ArtifactError, LockedError, UsageError, WriteError

# --- may the output go there


@pytest.mark.parametrize("error", [OSError("no"), RuntimeError("no"), ValueError("no")])
def test_a_path_that_cannot_be_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(self: Path) -> Path:
        raise error

    monkeypatch.setattr(Path, "resolve", refuse)
    with pytest.raises(UsageError, match="cannot be an output directory: no"):
        resolve_output(tmp_path)


def test_a_mount_point_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(UsageError, match="is a mount point"):
        resolve_output(tmp_path)


def test_what_is_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "out", 1)
    with pytest.raises(UsageError, match="exists already"):
        checked_output(made, (), overwrite=False)
    assert checked_output(made, (), overwrite=True) == made
    with pytest.raises(WriteError, match="File name too long"):
        refuse_existing(tmp_path / ("a" * 300), overwrite=False)


def test_an_input_that_is_not_there_yet(tmp_path: Path) -> None:
    target = tmp_path / "out"
    refuse_overlap(target, [tmp_path / "other"])
    for given, message in [(target, "is the input itself"), (target / "model", "contains the input")]:
        with pytest.raises(UsageError, match=message):
            refuse_overlap(target, [tmp_path / "other", given])


# --- putting in place


def test_what_is_on_the_device_before_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files, then the manifest, then the names, then the directory in its place, then its name."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        events.append(f"rename {self.name} to {target.name}")
        return rename(self, target)

    (tmp_path / "place").mkdir()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    write_artifact(tmp_path / "place" / "out", 1)
    if sys.platform != "linux":
        pytest.skip("names of open files are read in /proc")
    begun = events.index("sync owner.json")
    files = events[begun + 1 : events.index("sync model", begun)]
    assert {"sync openvino_model.bin", "sync openvino_model.xml", "sync vocab.json", "sync tokenizer"} == set(files)
    assert events[events.index("sync model", begun) :] == [
        "sync model",
        "sync llmcompress.json",
        "rename llmcompress.json to llmcompress.json",
        "sync model",
        "rename model to out",
        "sync place",
    ]
    events.clear()
    write_artifact(tmp_path / "place" / "new" / "deeper" / "out", 1)
    assert events[:2] == ["sync new", "sync place"] or events[:2] == ["sync place", "sync new"]


def test_a_place_for_scratch_is_made_once(tmp_path: Path) -> None:
    with staging(tmp_path / "out") as stage:
        scratch = stage.scratch_dir()
        assert scratch.is_dir()
        assert scratch.parent == stage.path.parent
        with pytest.raises(WriteError, match="File exists"):
            stage.scratch_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_output_is_in_its_place_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_artifact(tmp_path / "out", 1)
    monkeypatch.setattr("llmcompress.system.files._exchange", lambda first, second: False)
    with staging(made, overwrite=True) as stage:
        (stage.path / "new").touch()
        stage.publish(manifest_for(stage.path))
        assert (made / "new").exists()


def test_a_link_among_the_files_is_not_put_in_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"content")
    with staging(tmp_path / "out") as stage:
        (stage.path / "file").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match="does not list what was written; they differ in file"):
            stage.publish(manifest_for(stage.path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "name"),
    [("iterdir", "place"), ("mkdir", ".out.staging-"), ("mkdir", "model"), ("rename", "out"), ("acquire", "")],
)
def test_what_refuses_at_one_place_is_a_write_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str, name: str
) -> None:
    made = write_artifact(tmp_path / "place" / "out", 1)
    owner = FileLock if call == "acquire" else Path
    usual = getattr(owner, call)

    def refuse(self: Any, *arguments: Any, **options: Any) -> Any:
        if call == "acquire" or self.name.startswith(name):
            raise OSError(errno.EROFS, "Read-only file system", *([str(self)] if call != "acquire" else []))
        return usual(self, *arguments, **options)

    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(WriteError, match=r"cannot write: Read-only file system \(EROFS\)"):
        remove_artifact(made)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["out"]
    assert caplog.records == []


def test_an_artifact_that_is_removed_stays_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_artifact(tmp_path / "out", 1)
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(output, "sync_directory", lambda path: synced.append((path.name, made.exists())))
    remove_artifact(made)
    assert synced == [(tmp_path.name, False)]
    assert list(tmp_path.iterdir()) == []
    remove_artifact(made)


# --- the lock


def test_what_a_run_left_that_was_killed_at_the_lock_goes(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").touch()
    remove_leftovers(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_removed_keeps_nothing_from_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name == ".out.lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert verify(write_artifact(tmp_path / "out", 1)).ok


@pytest.mark.parametrize(
    ("later_s", "is_alive"), [(0.5, True), (-0.5, True), (1.0, False), (1.5, False), (-1.5, False)]
)
def test_a_process_is_known_by_the_second_it_began(tmp_path: Path, later_s: float, is_alive: bool) -> None:
    parent = psutil.Process(os.getppid())
    directory = tmp_path / ".out.staging-0123abcd"
    directory.mkdir()
    mark = {"pid": parent.pid, "started": parent.create_time() - later_s, "host": platform.node()}
    (directory / "owner.json").write_text(json.dumps(mark))
    if not is_alive:
        write_artifact(tmp_path / "out", 1)
        assert not directory.exists()
        return
    with pytest.raises(LockedError, match="is writing this output"):
        write_artifact(tmp_path / "out", 1)
    assert directory.exists()


def test_signal_after_signal_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[Path] = []

    def interrupted(path: Path) -> None:
        times.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("llmcompress.artifact.output.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out"):
        pass
    assert len(times) == 5


# --- what deviates


def test_a_file_that_cannot_be_read_is_named_among_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_artifact(tmp_path / "out", 1)
    (made / "extra").touch()
    open_ = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "openvino_model.xml":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return open_(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert verify(made).problems == (
        ("extra", "is not in the manifest"),
        ("openvino_model.xml", "cannot be read: Permission denied"),
    )


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"is no llmcompress artifact: it has no llmcompress\.json"):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize(("num_damaged", "is_known"), [(0, False), (1, True), (4, True), (5, False)])
def test_a_seal_is_known_by_nearly_all_that_is_not_its_hash(tmp_path: Path, num_damaged: int, is_known: bool) -> None:
    path = write_artifact(tmp_path / "out", 1) / "llmcompress.json"
    content = bytearray(path.read_bytes())
    begun = content.rindex(b'"sha256"')
    for at in range(begun, begun + num_damaged):
        content[at] ^= 1
    path.write_bytes(content)
    assert is_sealed_wrong(path.parent) is is_known


# --- what stopped a write


def failed(path: Path, error: Exception) -> WriteError:
    with pytest.raises(WriteError) as caught, write_errors(path):
        raise error
    return caught.value


def test_an_error_that_names_its_place_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught, write_errors(tmp_path), write_errors(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.where == str(tmp_path / "inner")
    assert isinstance(caught.value.__cause__, OSError)
    assert failed(tmp_path, OSError(errno.EIO, "x", b"/other")).where == "/other"


def test_a_cause_without_advice_of_its_own(tmp_path: Path) -> None:
    found = failed(tmp_path, OSError(errno.ENXIO, "x"))
    assert found.message.startswith(f"cannot write: {os.strerror(errno.ENXIO)} (ENXIO); ")
    assert found.hint == "choose another output directory"
    assert "(12345)" in failed(tmp_path, OSError(12345, "x")).message


def test_what_cannot_be_written_into_the_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    found = failed(tmp_path / "cache" / "graphs", OSError(errno.EROFS, "x"))
    assert found.message.startswith("cannot write into the cache: Read-only file system (EROFS); ")
    assert found.where == str(tmp_path / "cache" / "graphs")
    assert found.hint == "set LLMCOMPRESS_CACHE to a directory that can be written and has room"
    assert failed(tmp_path / "out", OSError(errno.EROFS, "x")).message.startswith("cannot write: Read-only")


def test_where_there_are_no_limits_of_size_none_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**40, -1))
    stopped = RuntimeError("basic_ios::clear: iostream error")
    assert "ulimit" in failed(tmp_path, stopped).hint
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, 2**40))
    assert "ulimit" not in failed(tmp_path, stopped).hint
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**40, -1))
    monkeypatch.setattr("llmcompress.artifact.failures.sys.platform", "win32")
    assert "ulimit" not in failed(tmp_path, stopped).hint


def test_what_is_free_is_asked_of_the_nearest_place_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "x")
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_files=9, f_favail=1))
    free = {tmp_path: 11, tmp_path.parent: 22}

    def usage(place: Path) -> SimpleNamespace:
        if place not in free:
            raise FileNotFoundError(place)
        return SimpleNamespace(free=free[place])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert failed(tmp_path / "a" / "b", full).message.endswith("; 11 bytes free on its file system")
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_files=9, f_favail=0))
    assert failed(tmp_path, full).message.endswith("; 11 bytes free on its file system but no inodes")
    # Some file systems have no such number.
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_files=0, f_favail=0))
    assert failed(tmp_path, full).message.endswith("; 11 bytes free on its file system")
    free.clear()
    assert failed(tmp_path, full).message.endswith("; free space unknown")


def test_while_an_output_is_made_a_size_limit_is_an_error(tmp_path: Path, default: int) -> None:
    with staging(tmp_path / "out"):
        assert signal.getsignal(default) == signal.SIG_IGN
    assert signal.getsignal(default) == signal.SIG_DFL


@pytest.fixture
def default() -> Iterator[int]:
    number = getattr(signal, "SIGXFSZ", None)
    if number is None:
        pytest.skip("this system has no such signal")
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


def test_a_size_limit_ends_no_process(default: int) -> None:
    with size_limit_as_error():
        assert signal.getsignal(default) == signal.SIG_IGN
    assert signal.getsignal(default) == signal.SIG_DFL

    def fail() -> None:
        with size_limit_as_error():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert signal.getsignal(default) == signal.SIG_DFL


def test_a_handler_of_the_programs_own_and_other_threads_are_left_alone(default: int) -> None:
    found: list[object] = []

    def work() -> None:
        with size_limit_as_error():
            found.append(signal.getsignal(default))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
    signal.signal(default, work_on_signal)
    work()
    assert found[1:] == [work_on_signal]
    assert signal.getsignal(default) == work_on_signal


def work_on_signal(number: int, frame: object) -> None:
    """Do nothing."""
