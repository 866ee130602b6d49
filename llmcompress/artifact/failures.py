"""What stopped a write, in words: path, cause, bytes free, and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmcompress.errors import LlmcompressError, WriteError
from llmcompress.system.cache import cache_dir

_ROOM = "make room on that file system, or choose an output directory on another one"
_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: "the disk quota of this user is used up: make room, or choose an output directory elsewhere",
    errno.EFBIG: "files are limited in size here (`ulimit -f`, or FAT32 with 4 GiB): lift the limit or write elsewhere",
    errno.EROFS: "the file system is mounted read-only: choose another output directory",
    errno.EACCES: "this user may not write there: choose another output directory or change its permissions",
    errno.EPERM: "this user may not write there: choose another output directory or change its permissions",
    errno.EIO: "the device reports an input/output error: check it, and write elsewhere",
    errno.ENAMETOOLONG: "choose a shorter output name",
    errno.EILSEQ: "the file system takes no such characters: choose another output name",
    errno.EINVAL: "the file system may not take such characters or sizes: choose another output name or directory",
    errno.ESTALE: "the network file system has lost the directory: mount it again, or write elsewhere",
    errno.ENOTDIR: "a part of the output path is a file: choose another output directory",
    errno.EEXIST: "a part of the output path is a file: choose another output directory",
    errno.ENOTEMPTY: "another program put something there meanwhile: choose another output directory",
}

# What only a write meets: whatever an error around one of these says, the disk is its cause.
_WRITES_ONLY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})

# Rust libraries (safetensors, tokenizers) and shutil.Error keep the number only in their text.
_NUMBER_IN_TEXT = re.compile(r"(?:\(os error |\[Errno )(\d+)")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what a failed save under ``path`` raises into a WriteError with the path, the cause and the bytes free.

    Covers OSError, the texts of Rust libraries that end in ``(os error N)``, and OpenVINO's ``RuntimeError:
    basic_ios::clear: iostream error``, which names neither path nor cause. An error of ours that was raised for a full
    disk, such as a conversion that could not write, becomes a WriteError too. Other exceptions pass unchanged.
    """
    try:
        yield
    except WriteError:
        raise
    except LlmcompressError as error:
        cause = error.__cause__ or error.__context__
        number = _number(cause) if cause else None
        if number not in _WRITES_ONLY:
            raise
        raise _write_error(path, number) from error
    except Exception as error:
        number = _number(error)
        if number is None and not (isinstance(error, RuntimeError) and "iostream error" in str(error)):
            raise
        named = getattr(error, "filename", None)
        where = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
        raise _write_error(where, number) from error


def _write_error(where: Path, number: int | None) -> WriteError:
    if number is None:
        cause = "the write stopped before its end, most often for a full disk or a file-size limit"
    else:
        cause = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    if number is None:
        hint = _HINTS[errno.EFBIG] if _size_is_limited() else _ROOM
    else:
        hint = _HINTS.get(number, "choose another output directory")
    if Path(os.path.realpath(where)).is_relative_to(os.path.realpath(cache_dir())):
        hint = "set LLMCOMPRESS_CACHE to a directory that can be written and has room"
        return WriteError(f"cannot write into the cache: {cause}; {_free(where)}", where=str(where), hint=hint)
    return WriteError(f"cannot write: {cause}; {_free(where)}", where=str(where), hint=hint)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = _NUMBER_IN_TEXT.search(str(error))
    return int(match[1]) if match else None


def _free(path: Path) -> str:
    """What is free on the file system of ``path``, which need not exist; asked of its nearest existing parent."""
    for place in (path, *path.absolute().parents):
        try:
            free = f"{shutil.disk_usage(place).free:,} bytes free on its file system"
            counts = os.statvfs(place) if hasattr(os, "statvfs") else None
        except OSError:
            continue
        # Inodes run out before bytes where many small files live; then "bytes free" alone would mislead.
        return free + (" but no inodes" if counts and counts.f_files and not counts.f_favail else "")
    return "free space unknown"


def _size_is_limited() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


@contextmanager
def size_limit_as_error() -> Iterator[None]:
    """Ignore SIGXFSZ inside, so that a file-size limit becomes EFBIG instead of the end of the process.

    CPython ignores it from the start; a program that embeds Python or restored the default may not.
    """
    number = getattr(signal, "SIGXFSZ", None)
    main = threading.current_thread() is threading.main_thread()
    if number is None or not main or signal.getsignal(number) != signal.SIG_DFL:
        yield
        return
    signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
