"""Bytes that survive a power cut, and directories put in place in one step: each call, in its order."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmcompress.system import files
from llmcompress.system.files import (
    free_bytes,
    is_utf8,
    replace_directory,
    replace_file,
    replacing,
    short_name,
    sync_directory,
    sync_tree,
    write_synced,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open files are looked at in /proc")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Name and size of each file and directory when the device is waited for, in order."""
    found: list[tuple[str, int]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        found.append((path.name, 0 if path.is_dir() else os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return found


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_free_of_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "a" / "b") - shutil.disk_usage(tmp_path).free) < 2**30
    assert abs(free_bytes(tmp_path) - shutil.disk_usage(tmp_path).free) < 2**30


def test_paths_that_are_text(tmp_path: Path) -> None:
    assert is_utf8(tmp_path / "größe 模型")
    assert not is_utf8(Path(os.fsdecode(b"/tmp/gr\xf6\xdfe")))


def test_long_names_leave_room(tmp_path: Path) -> None:
    assert short_name("a" * 200) == "a" * 200
    digest = hashlib.sha256(b"a" * 201).hexdigest()[:16]
    assert short_name("a" * 201) == f"{'a' * 183}~{digest}"
    # A letter of two bytes is not cut in half.
    assert short_name("a" + "ä" * 150).startswith("a" + "ä" * 91 + "~")
    assert len(os.fsencode(short_name("ä" * 150))) <= 200
    assert short_name("x" * 200 + "1") != short_name("x" * 200 + "2")


def test_a_new_file_is_on_the_device_with_all_its_bytes(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    write_synced(tmp_path / "file", b"content")
    assert synced == [("file", 7)]
    assert (tmp_path / "file").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "file", b"other")


def test_a_replaced_file_is_there_before_its_name_is(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with replacing(tmp_path / "file") as file:
        file.write(b"content")
        assert (tmp_path / "file").read_bytes() == b"old"
        (unfinished,) = (path for path in tmp_path.iterdir() if path.name != "file")
        assert unfinished.name.startswith(".file.file-")
        assert len(unfinished.name) == len(".file.file-") + 8
        # Whoever clears up sees that it is being written.
        with unfinished.open("rb") as other, pytest.raises(OSError, match="temporarily unavailable"):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert synced == [(unfinished.name, 7), (tmp_path.name, 0)]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"content")]


def test_what_can_be_computed_again_is_not_waited_for(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    abandoned = tmp_path / ".file.file-0123abcd"
    abandoned.write_bytes(b"left")
    replace_file(tmp_path / "file", b"content", durable=False)
    assert synced == []
    assert (tmp_path / "file").read_bytes() == b"content"
    assert abandoned.exists()
    with replacing(tmp_path / "file", durable=False) as file:
        file.write(b"other")
    assert synced == []
    replace_file(tmp_path / "file", b"content")
    assert [size for _, size in synced] == [7, 0]
    assert not abandoned.exists()


def test_the_bytes_are_written_beside_another_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with replacing(tmp_path / "model" / "file", next_to=tmp_path / "model") as file:
        file.write(b"content")
        assert list((tmp_path / "model").iterdir()) == []
        (unfinished,) = (path for path in tmp_path.iterdir() if path.name != "model")
        assert unfinished.name.startswith(".model.file-")
    replace_file(tmp_path / "model" / "other", b"x", next_to=tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["file", "other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_moved_from_beside_the_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: moved.append(self.parent) or replace(self, target))
    (tmp_path / "model").mkdir()
    replace_file(tmp_path / "model" / "file", b"x", next_to=tmp_path / "model")
    replace_file(tmp_path / "model" / "file", b"y")
    assert moved == [tmp_path, tmp_path / "model"]


def test_a_new_file_has_a_second_to_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / ".file.file-00000001"
    empty.touch()
    os.utime(empty, (1000, 1000))
    now = [1001.0]
    monkeypatch.setattr(files.time, "time", lambda: now[0])
    replace_file(tmp_path / "file", b"content")
    assert empty.exists()
    now[0] = 1001.5
    replace_file(tmp_path / "file", b"content")
    assert not empty.exists()


def test_left_by_an_exception_nothing_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail() -> None:
        with replacing(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_only_what_nobody_writes_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, empty, new, other, foreign = (
        tmp_path / name
        for name in (
            ".file.file-0123abcd", ".file.file-00000001", ".file.file-00000002", ".file.file-longer012345",
            ".other.file-0123abcd",
        )
    )  # fmt: skip
    for path in (left, other, foreign):
        path.write_bytes(b"x")
    for path, age_s in ((empty, 2), (new, 0)):
        path.touch()
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    with (tmp_path / ".file.file-00000003").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b"at work")
        held.flush()
        replace_file(tmp_path / "file", b"content")
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([new.name, ".file.file-00000003", other.name, foreign.name, "file"])


def test_what_cannot_be_cleared_away_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / ".file.file-0123abcd").write_bytes(b"x")
    open_ = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r": refuse(self) if mode == "rb" else open_(self, mode))
    replace_file(tmp_path / "file", b"content")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "iterdir", refuse)
    replace_file(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"other"


def test_where_no_file_can_be_locked_none_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / ".file.file-0123abcd"
    left.write_bytes(b"x")
    monkeypatch.setattr(fcntl, "flock", refuse)
    replace_file(tmp_path / "file", b"content")
    assert left.exists()


def test_files_are_on_the_device_before_the_directories_that_name_them(
    tmp_path: Path, synced: list[tuple[str, int]]
) -> None:
    top = tmp_path / "top"
    (top / "sub" / "deep").mkdir(parents=True)
    for path, size in ((top / "a", 1), (top / "sub" / "b", 2), (top / "sub" / "deep" / "c", 3)):
        path.write_bytes(b"x" * size)
    before = num_open()
    sync_tree(top)
    assert synced == [("c", 3), ("deep", 0), ("b", 2), ("sub", 0), ("a", 1), ("top", 0)]
    assert num_open() == before


def test_a_device_that_fails_is_told_and_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    before = num_open()
    with pytest.raises(OSError, match="Input/output error"):
        sync_directory(tmp_path)
    assert num_open() == before


def made(place: Path) -> tuple[Path, Path]:
    new, old = place / "new", place / "old"
    for path in (new, old):
        path.mkdir()
        (path / path.name).touch()
    return new, old


def held(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_directories_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    # Also by paths that begin where the process is.
    monkeypatch.chdir(tmp_path)
    replace_directory(Path("new"), Path("old"), aside=Path("aside"))
    assert (held(tmp_path / "old"), held(tmp_path / "new")) == (["new"], ["old"])
    assert not (tmp_path / "aside").exists()
    with pytest.raises(FileNotFoundError) as caught:
        replace_directory(Path("absent"), Path("old"), aside=Path("aside"))
    assert caught.value.filename == "old"
    assert held(tmp_path / "old") == ["new"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP])
def test_two_renames_where_the_file_system_does_not_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Libc:
        def renameat2(self, *arguments: object) -> int:
            ctypes.set_errno(number)
            return -1

    new, old = made(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: Libc())
    replace_directory(new, old, aside=tmp_path / "aside")
    assert (held(old), held(tmp_path / "aside")) == (["new"], ["old"])
    assert not new.exists()


@pytest.mark.parametrize("how", ["another system", "an old library"])
def test_two_renames_where_there_is_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    new, old = made(tmp_path)
    if how == "another system":
        monkeypatch.setattr(files.sys, "platform", "darwin")
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: object())
    replace_directory(new, old, aside=tmp_path / "aside")
    monkeypatch.undo()
    assert (held(old), held(tmp_path / "aside")) == (["new"], ["old"])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    sync_directory(tmp_path)


def test_on_windows_directories_are_not_synced_and_open_files_are_kept_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: list[tuple[str, int]]
) -> None:
    flags: list[int] = []

    class System:
        name = "posix"

        def __getattr__(self, attribute: str) -> Any:
            return getattr(os, attribute)

        def open(self, path: Path, how: int) -> int:
            flags.append(how)
            return os.open(path, how)

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(files, "os", System())
    files.sync(file)
    monkeypatch.setattr(System, "name", "nt")
    sync_directory(tmp_path)
    files.sync(file)
    # Only a descriptor that may write is flushed there.
    assert flags == [os.O_RDONLY, os.O_RDWR]
    assert [name for name, _ in synced] == ["file", "file"]
    monkeypatch.setattr(files.sys, "platform", "win32")
    with file.open("rb") as one, file.open("rb") as other:
        assert files._lock(one)
        assert files._lock(other)
