"""How much memory this process may use, and whether the operating system killed for it.

Linux control groups (versions 1 and 2) are read because in a container the machine's own numbers promise too much.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""
_MADV_DONTNEED, _MADV_POPULATE_WRITE = 4, 23
_REFUSALS = ("std::bad_alloc", "can't allocate memory", "not enough memory: you tried to allocate")
"""Of C++, and of torch on Linux and on Windows."""
_PAGEMAP_ENTRY_BYTES = 8
_CHUNK_BYTES = 1 << 20
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61
"""Bits of an entry of /proc/self/pagemap."""
ROOM = 1.5
"""A compiled model takes about this times its file."""


class Memory(NamedTuple):
    """Memory in bytes, as far as this process is concerned."""

    total: int
    """What the machine has, or the control group's limit where that is less."""
    available: int
    """What can still be taken without swapping or being killed; file cache counts as available."""
    limit: int | None
    """The control group's limit; None when there is none below the machine's memory."""


class ControlGroup(NamedTuple):
    """One memory control group's directory and the version (1 or 2) of its file names."""

    directory: Path
    version: int


def memory() -> Memory:
    """Return the memory of this machine, narrowed by the limits of the control groups this process is in."""
    machine = psutil.virtual_memory()
    limits: list[int] = []
    available = int(machine.available)
    for group in control_groups():
        limit = _limit(group)
        if limit is None or limit >= machine.total:
            continue
        limits.append(limit)
        available = min(available, max(0, limit - _used(group)))
    limit = min(limits, default=None)
    return Memory(total=limit or int(machine.total), available=available, limit=limit)


def kill_count() -> int | None:
    """Return how often the kernel has killed for memory, in this control group and on this machine; None: unknown."""
    counts = [_number(Path("/proc/vmstat"), "oom_kill")]
    for group in control_groups()[:1]:
        counts.append(_number(group.directory / ("memory.oom_control", "memory.events")[group.version - 1], "oom_kill"))
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def is_refusal(error: BaseException) -> bool:
    """Whether an error, or what it came of, is an allocation that was refused; libraries say so in their own words."""
    found: BaseException | None = error
    seen: list[BaseException] = []
    while found is not None and found not in seen:
        if isinstance(found, MemoryError) or any(words in str(found) for words in _REFUSALS):
            return True
        seen.append(found)
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return False


def peak_rss_bytes(pid: int) -> int:
    """Return the peak resident memory of a running process; 0 when it is gone.

    Linux and Windows keep the peak; elsewhere it is the memory of this moment.
    """
    if sys.platform == "linux":
        peak = _number(Path(f"/proc/{pid}/status"), "VmHWM:")
        return 0 if peak is None else peak * 1024
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(getattr(info, "peak_wset", info.rss))


def own_bytes(pid: int | None = None) -> int:
    """Return the memory that a process, this one by default, holds outside files; 0 where the system does not tell."""
    held = _number(Path(f"/proc/{pid or 'self'}/status"), "RssAnon:")
    return 0 if held is None else held * 1024


def reaped_peak_rss_bytes() -> int:
    """Return the largest peak of all child processes that have ended; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def control_groups(
    membership: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mountinfo")
) -> list[ControlGroup]:
    """Return the memory control groups of this process, its own first, then each one around it."""
    try:
        paths = {
            (2 if controllers == "" else 1): path
            for _, controllers, path in (line.split(":", 2) for line in membership.read_text().splitlines())
            if controllers == "" or "memory" in controllers.split(",")
        }
        mounted = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return []
    groups: list[ControlGroup] = []
    for fields in mounted:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and "memory" in options else 0
        if version not in paths:
            continue
        root, mount_point = fields[3], Path(fields[4])
        # In a container the mount begins inside the hierarchy, at `root`; paths are told from the hierarchy's top.
        inside = Path(paths[version])
        relative = inside.relative_to(root) if inside.is_relative_to(root) else Path()
        directory = mount_point / relative
        chain = [directory, *directory.parents][: len(relative.parts) + 1]
        groups += [ControlGroup(found, version) for found in chain if _has_memory(found)]
    return groups


def _has_memory(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("memory.limit_in_bytes", "memory.max"))


def _limit(group: ControlGroup) -> int | None:
    text = _text(group.directory / ("memory.limit_in_bytes", "memory.max")[group.version - 1]).strip()
    return int(text) if text.isdigit() else None


def _used(group: ControlGroup) -> int:
    usage = _text(group.directory / ("memory.usage_in_bytes", "memory.current")[group.version - 1]).strip()
    # File cache is given back under pressure, except the part that is shared memory.
    statistics = group.directory / "memory.stat"
    prefix, cache = (("total_", "cache"), ("", "file"))[group.version - 1]
    cached = _number(statistics, f"{prefix}{cache}") or 0
    shared = _number(statistics, f"{prefix}shmem") or 0
    return int(usage or 0) - (cached - shared)


def _number(file: Path, key: str) -> int | None:
    for line in _text(file).splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == key:
            return int(fields[1])
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def objects_uncollected() -> Iterator[None]:
    """Look for no objects that hold each other meanwhile, which takes a sixth of the time of imports."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def return_large_blocks() -> None:
    """Have glibc give blocks of a megabyte and more back to the system as soon as they are freed.

    By default it learns from freed blocks to keep such ones in the heap, where small ones that stay pin them. Lasts as
    long as the process; does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def forget_file_pages(address: int, size_bytes: int) -> int:
    """Let go of the pages of a mapped file in a range of memory; what reads them again finds them in the file.

    Nothing is done where a page in the range is not the file's (memory of its own, or written to), nor outside Linux.
    Of the range only whole pages count.

    Returns:
        The bytes of the range that were let go.
    """
    page = mmap.PAGESIZE
    first, last = -(-address // page), (address + size_bytes) // page
    if sys.platform != "linux" or last <= first:
        return 0
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            entries = os.pread(pagemap.fileno(), (last - first) * _PAGEMAP_ENTRY_BYTES, first * _PAGEMAP_ENTRY_BYTES)
    except OSError:
        return 0
    import numpy as np

    states = np.frombuffer(entries, dtype=np.uint64)
    in_memory = (states & np.uint64(_PRESENT | _SWAPPED)) != 0
    if len(states) < last - first or not ((states[in_memory] & np.uint64(_OF_FILE)) != 0).all():
        return 0
    length = (last - first) * page
    advised = ctypes.CDLL(None).madvise(ctypes.c_void_p(first * page), ctypes.c_size_t(length), _MADV_DONTNEED)
    return length if advised == 0 else 0


def let_go(memory: mmap.mmap, start: int, stop: int) -> None:
    """Leave the pages of a range of a mapped file to the file: they count no more, and are found there again."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        memory.madvise(mmap.MADV_DONTNEED, first, last - first)


def make_writable(address: int, size_bytes: int) -> bool:
    """Have the pages of a mapped file in a range at hand, so that writing to them waits for nothing.

    Python's lock is free meanwhile.

    Args:
        address: Of a page.
        size_bytes: What follows it.

    Returns:
        False where the system does it page by page, when they are written to (Linux before 5.14, and all others).
    """
    if sys.platform != "linux":
        return False
    where = ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)
    return int(ctypes.CDLL(None).madvise(*where, _MADV_POPULATE_WRITE)) == 0


def same_bytes(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two arrays are equal; what differs early is told early."""
    if len(one) != len(other):
        return False
    chunks = range(0, len(one), _CHUNK_BYTES)
    return all(bool((one[at : at + _CHUNK_BYTES] == other[at : at + _CHUNK_BYTES]).all()) for at in chunks)
