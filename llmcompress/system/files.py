"""Bytes that survive a power cut, and a directory put in place in one step."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LONG_NAME = 200
"""Bytes; nearly every file system takes 255."""
_TOKEN_BYTES = 4
_UNLOCKED_S = 1.0
"""At most, between the moment a file is there and the one it is locked."""
# A file system without the exchange says EINVAL, a system without the call ENOSYS, an old container filter EPERM.
_NO_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP})


def free_bytes(path: Path) -> int:
    """What is free on the file system that ``path`` is on, or will be."""
    path = path.absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(existing).free


def short_name(name: str) -> str:
    """A file's name that leaves room for 55 more bytes: the same where it does, else cut and told apart by a hash."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONG_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: _LONG_NAME - 17].decode(errors='ignore')}~{digest}"


def is_utf8(path: Path) -> bool:
    """Whether a path is text, as libraries in C++ and Rust take paths; on Linux any bytes can be one."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the device has it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path, *, next_to: Path | None = None, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` by one rename at the end; left by an exception, it goes.

    What was there before is there until then, and after a failure. What a killed process left of the same file goes
    too, where the file is a durable one.

    Args:
        next_to: The bytes are written next to this path of the same file system; by default next to the file.
        durable: Wait until the device has the bytes; what can be computed again need not.
    """
    place = next_to or path
    name = short_name(f"{place.name.removeprefix('.')}.{path.name}")
    unfinished = place.with_name(f".{name}-{secrets.token_hex(_TOKEN_BYTES)}")
    if durable:
        _remove_abandoned(place.parent, f".{name}-")
    try:
        with unfinished.open("xb") as file:
            _lock(file)
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
        if durable:
            sync_directory(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_abandoned(directory: Path, start: str) -> None:
    """Remove unfinished files that nobody writes any more: whoever does holds a lock."""
    for path in _listed(directory):
        if not path.name.startswith(start) or len(path.name) != len(start) + 2 * _TOKEN_BYTES:
            continue
        # Another process may have removed or finished it; Windows keeps what is open.
        with suppress(OSError), path.open("rb") as file:
            found = os.fstat(file.fileno())
            # A new one is locked before it has a byte.
            if _lock(file) and (found.st_size or time.time() - found.st_mtime > _UNLOCKED_S):
                path.unlink()


def _listed(directory: Path) -> list[Path]:
    """What is in a directory; nothing where it cannot be listed."""
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False where another process has, or no file can be."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def replace_file(path: Path, content: bytes, *, next_to: Path | None = None, durable: bool = True) -> None:
    """Put a file in place by one rename, as ``replacing`` does."""
    with replacing(path, next_to=next_to, durable=durable) as file:
        file.write(content)


def sync_tree(directory: Path) -> None:
    """Wait until the device has every file and directory from ``directory`` down."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Wait until the device has the names in ``directory``, where the operating and file system can do that."""
    if os.name == "nt":
        return
    try:
        sync(directory)
    except OSError as error:
        # Some network file systems sync files only.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def replace_directory(new: Path, target: Path, aside: Path) -> None:
    """Put ``new`` in the place of the existing ``target``; the old one ends at ``new`` or at ``aside``.

    On Linux one exchange: at every moment ``target`` is the old or the new directory. Where the file system or the
    operating system has none, two renames: between them ``target`` is absent and the old directory is at ``aside``,
    from where the caller brings it back if the second one fails.
    """
    if _exchange(new, target):
        return
    target.rename(aside)
    new.rename(target)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories by renameat2(2); False where that cannot be done."""
    if sys.platform != "linux":
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = [ctypes.c_char_p(os.fsencode(path)) for path in (first, second)]
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def sync(path: Path) -> None:
    """Wait until the device has a file's bytes."""
    # Windows flushes only a descriptor that may write.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
