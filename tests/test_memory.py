import errno
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from llmcompress.system import memory as memory_module
from llmcompress.system.file_memory import SEGMENT_BYTES, FileMemory
from llmcompress.system.memory import (
    ControlGroup,
    control_groups,
    forget_file_pages,
    kill_count,
    let_go,
    make_writable,
    memory,
    own_bytes,
    peak_rss_bytes,
    reaped_peak_rss_bytes,
    same_bytes,
)

GB = 10**9


def groups_in(tmp_path: Path, membership: str, mounts: str) -> list[ControlGroup]:
    (tmp_path / "membership").write_text(membership)
    (tmp_path / "mounts").write_text(mounts)
    return control_groups(tmp_path / "membership", tmp_path / "mounts")


def group(directory: Path, **files: object) -> Path:
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / f"memory.{name}").write_text(f"{content}\n")
    return directory


def test_version_2_group_and_the_ones_around_it(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    outer = group(top / "outer", max="max")
    inner = group(outer / "inner", max=5 * GB)
    mount = f"42 31 0:39 / {top} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
    assert groups_in(tmp_path, "0::/outer/inner\n", mount) == [ControlGroup(inner, 2), ControlGroup(outer, 2)]


def test_version_1_group_seen_from_inside_a_container(tmp_path: Path) -> None:
    # The mount begins at the container's own group, whose path in the hierarchy is not visible below the mount point.
    top = group(tmp_path / "fs", limit_in_bytes=5 * GB)
    mount = f"35 31 0:32 /docker/abc {top} rw,relatime - cgroup cgroup rw,memory\n"
    assert groups_in(tmp_path, "4:memory:/docker/abc\n2:cpu:/\n0::/\n", mount) == [ControlGroup(top, 1)]
    assert groups_in(tmp_path, "2:cpu:/\n", mount) == []


def test_no_control_groups_on_other_systems(tmp_path: Path) -> None:
    assert control_groups(tmp_path / "absent", tmp_path / "absent") == []


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_narrows_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    limit = psutil.virtual_memory().total // 4
    used, cache, shared = limit // 2, limit // 4, limit // 8
    if version == 1:
        statistics = f"cache 1\ntotal_cache {cache}\ntotal_shmem {shared}"
        inner = group(tmp_path / "g", limit_in_bytes=limit, usage_in_bytes=used, stat=statistics)
    else:
        inner = group(tmp_path / "g", max=limit, current=used, stat=f"anon 1\nfile {cache}\nshmem {shared}")
    unlimited = group(tmp_path / "u", limit_in_bytes=2**63 - 4096)
    monkeypatch.setattr(
        memory_module, "control_groups", lambda: [ControlGroup(inner, version), ControlGroup(unlimited, 1)]
    )
    found = memory()
    assert (found.total, found.limit) == (limit, limit)
    # The file cache can be given back, except shared memory: limit - (used - (cache - shared)).
    assert found.available == min(limit - limit // 2 + limit // 4 - limit // 8, psutil.virtual_memory().available) or (
        found.available == pytest.approx(limit * 5 / 8, rel=0.01)
    )


def test_without_a_limit_it_is_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "control_groups", list)
    found = memory()
    assert (found.total, found.limit) == (psutil.virtual_memory().total, None)
    assert 0 < found.available <= found.total


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_kernel_kills_are_counted_for_our_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "control_groups", list)
    machine = kill_count()
    assert machine is not None
    own = group(tmp_path / "own", events="oom 9\noom_kill 3", max="max")
    outer = group(tmp_path / "outer", events="oom_kill 100", max="max")
    monkeypatch.setattr(memory_module, "control_groups", lambda: [ControlGroup(own, 2), ControlGroup(outer, 2)])
    assert kill_count() == machine + 3


def test_the_peak_is_kept_after_memory_is_given_back() -> None:
    program = "import sys; x = bytearray(b'x' * 200_000_000); del x; print(); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    peak = peak_rss_bytes(child.pid)
    child.communicate()
    if sys.platform in {"linux", "win32"}:
        assert 200_000_000 < peak < 500_000_000
    if os.name != "nt":
        assert reaped_peak_rss_bytes() > 200_000_000
    assert peak_rss_bytes(child.pid) == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets up glibc's malloc")
def test_large_blocks_go_back_to_the_system_though_small_ones_lie_between() -> None:
    program = """
import sys
import psutil
from llmcompress.system.memory import return_large_blocks
if sys.argv[1] == "return":
    return_large_blocks()
del_me = bytearray(30 << 20)
del del_me  # glibc now keeps blocks of this size in the heap
held = [(bytearray(4 << 20), bytearray(100_000)) for _ in range(64)]
small = [pair[1] for pair in held]
before = psutil.Process().memory_info().rss
held.clear()
print(before - psutil.Process().memory_info().rss)
"""
    freed = {
        kind: int(subprocess.run([sys.executable, "-c", program, kind], check=True, capture_output=True).stdout)
        for kind in ("return", "keep")
    }
    assert freed["return"] > 200 << 20
    assert freed["keep"] < 50 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the state of pages")
def test_pages_of_a_file_go_and_come_back(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    file = tmp_path / "weights"
    values = np.arange(64 * page, dtype=np.uint8)
    values.tofile(file)
    with file.open("rb") as opened:
        mapped = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert mapped.sum() == values.sum()
    before = resident_file_bytes(file)
    assert forget_file_pages(mapped.ctypes.data + 1, 63 * page) == 62 * page
    assert resident_file_bytes(file) == before - 62 * page
    assert np.array_equal(mapped, values)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the state of pages")
def test_pages_that_hold_the_only_copy_stay(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    file = tmp_path / "weights"
    np.zeros(8 * page, np.uint8).tofile(file)
    with file.open("rb") as opened:
        written_to = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    written_to[5 * page] = 7
    assert forget_file_pages(written_to.ctypes.data, 8 * page) == 0
    assert written_to[5 * page] == 7
    assert forget_file_pages(written_to.ctypes.data, 4 * page) == 4 * page
    anonymous = np.full(64 * page, 3, np.uint8)
    assert forget_file_pages(anonymous.ctypes.data, anonymous.nbytes) == 0
    assert (anonymous == 3).all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes pages ready")
def test_pages_are_made_ready_before_they_are_written(tmp_path: Path) -> None:
    import resource

    page = mmap.PAGESIZE
    file = tmp_path / "written"
    with file.open("wb+") as opened:
        opened.truncate(64 * page)
        memory = mmap.mmap(opened.fileno(), 64 * page)
        written = np.frombuffer(memory, np.uint8)
        assert resident_file_bytes(file) == 0
        if not make_writable(written.ctypes.data + 8 * page, 16 * page - 1):
            pytest.skip("this kernel does it page by page")
        assert resident_file_bytes(file) == 16 * page
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        written[8 * page : 24 * page : page] = 1
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults < 16
        # What lies beyond a file's end is no memory.
        opened.truncate(32 * page)
        assert not make_writable(written.ctypes.data + 40 * page, page)
    assert np.array_equal(np.flatnonzero(np.fromfile(file, np.uint8)), np.arange(8, 24) * page)


def resident_file_bytes(file: Path) -> int:
    """What /proc tells of the mappings of one file."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.endswith(str(file))]
    assert starts
    return (
        sum(int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1]) for start in starts) * 1024
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_own_memory_is_what_is_in_no_file() -> None:
    before = own_bytes()
    held = np.ones(100_000_000, np.uint8)
    assert own_bytes() - before == pytest.approx(held.nbytes, rel=0.05)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve a file's bytes")
def test_blocks_of_a_file_are_memory(tmp_path: Path) -> None:
    memory = FileMemory(tmp_path)
    sizes = (1001, SEGMENT_BYTES - 1001, 2 * SEGMENT_BYTES, 5)
    blocks = [memory.block(size) for size in sizes]
    for number, block in enumerate(blocks):
        assert block is not None
        assert not block.any()
        block[:] = number + 1
    del memory
    for number, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        assert block is not None
        assert block.nbytes == size
        assert block.ctypes.data % 64 == 0
        assert (block == number + 1).all()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_gives_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert FileMemory(tmp_path).block(1) is None


@pytest.mark.parametrize("place", [0, 6, 7, 13, 20])
def test_bytes_are_compared_piece_by_piece(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_CHUNK_BYTES", 7)
    one = np.arange(21, dtype=np.uint8)
    assert same_bytes(one, one.copy())
    assert not same_bytes(one, one[:-1])
    assert not same_bytes(one[:-1], one)
    other = one.copy()
    other[place] += 1
    assert not same_bytes(one, other)


def test_pages_are_let_go_inside_a_range_alone(tmp_path: Path) -> None:
    asked: list[tuple[int, int, int]] = []

    class Memory:
        def madvise(self, advice: int, start: int, length: int) -> None:
            asked.append((advice, start, length))

    page, mapped = mmap.PAGESIZE, Memory()
    for start, stop in ((0, page), (1, page), (1, 2 * page), (page, 3 * page + 1), (page - 1, page + 1)):
        let_go(mapped, start, stop)  # type: ignore[arg-type]
    gone = mmap.MADV_DONTNEED
    assert asked == [(gone, 0, page), (gone, page, page), (gone, page, 2 * page)]
