"""What the sweeps of memory, power, locks and clocks put in a command's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import allocations
import interception
import memory_group
import power
import pytest
import rebuild
import surroundings
import together
from points import Point

MB = 10**6
BARE = [sys.executable, "-S", "-c"]


@pytest.fixture(autouse=True)
def _intercepted() -> None:
    if reason := interception.why_not():
        pytest.skip(reason)


def test_a_large_allocation_is_refused(tmp_path: Path) -> None:
    library = interception.build(tmp_path, allocations.SOURCE)
    program = (
        "a = bytearray(200_000)\ntry: b = bytearray(300_000)\nexcept MemoryError: print('none')\nbytearray(400_000)"
    )
    settings = {**os.environ, "FAULTS_LARGE": "100000"}

    def ran(injection: interception.Injection | None) -> tuple[int, str, list[interception.Call]]:
        ended, calls = interception.run([*BARE, program], library, [tmp_path], settings, injection=injection)
        return ended.returncode, ended.stdout, calls

    code, said, calls = ran(None)
    sizes = [int(call.path) for call in calls]
    assert (code, said) == (0, "")
    at = next(number for number, size in enumerate(sizes, 1) if 300_000 <= size < 400_000)
    assert sizes[at - 2] >= 200_000
    assert ran(interception.Injection(at, "memory"))[:2] == (0, "none\n")
    assert ran(interception.Injection(at, "memory", later=True))[:2] == (1, "none\n")


def test_the_clock_jumps_and_a_lock_is_granted(tmp_path: Path) -> None:
    clock, flock = interception.build(tmp_path, surroundings.CLOCK), interception.build(tmp_path, together.FLOCK)
    program = "import time; print(*(round(time.time()) for _ in range(4)))"
    settings = {**os.environ, "LD_PRELOAD": str(clock), "FAULTS_JUMP_S": "-1000"}
    done = subprocess.run([*BARE, program], env=settings, capture_output=True, text=True, check=True)
    times = sorted(map(int, done.stdout.split()))
    assert abs(times[2] - times[1] - 1000) <= 1
    program = "import fcntl\na, b = open('a', 'w'), open('a')\nfor file in (a, b): fcntl.flock(file, 6)"
    for library, code in (("", 1), (str(flock), 0)):
        settings = {**os.environ, "LD_PRELOAD": library}
        assert subprocess.run([*BARE, program], env=settings, cwd=tmp_path, capture_output=True).returncode == code


def test_a_copy_is_made_before_what_makes_something_last(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    program = "import os; f = open('a', 'w'); f.write('b'); f.flush(); os.fsync(f.fileno()); os.rename('a', 'c')"
    copy = f"ls {place} > {tmp_path}/$0"
    library = interception.build(tmp_path)
    ended, calls = interception.run([*BARE, program], library, [place], dict(os.environ), copy=copy, cwd=place)
    assert ended.returncode == 0
    assert [call.name for call in calls] == ["open", "write", "fsync", "rename"]
    assert [(tmp_path / number).read_text() for number in ("3", "4")] == ["a\n", "a\n"]
    assert not (tmp_path / "2").exists()


def test_a_limit_kills_and_another_can_be_shown(tmp_path: Path) -> None:
    if reason := memory_group.why_not():
        pytest.skip(reason)
    seen = tmp_path / "seen"
    seen.write_text("123\n")
    with memory_group.limited(60 * MB) as group:
        limit = str(group.directory / group.names.limit)

        def ran(program: str, shown: Path | None = None) -> interception.Ended:
            return group.run([*BARE, program], dict(os.environ), tmp_path, shown)

        assert int(ran(f"print(open({limit!r}).read())").stdout) <= 60 * MB
        assert int(ran(f"print(open({limit!r}).read())", seen).stdout) == 123
        assert ran("bytearray(b'x' * 100_000_000)").returncode == -signal.SIGKILL
        assert ran("bytearray(b'x' * 20_000_000)").returncode == 0
        assert 20 * MB < group.peak_bytes() <= 60 * MB
    assert not group.directory.exists()


def test_what_was_not_synced_is_not_on_a_copy(tmp_path: Path) -> None:
    if reason := power.why_not(tmp_path):
        pytest.skip(reason)
    disk, image = tmp_path / "disk", power.made_image(tmp_path / "image")
    disk.mkdir()
    with power.mounted(image, disk, power.CARELESS):
        for name in ("synced", "forgotten"):
            (disk / name).write_text(name)
            if name == "synced":
                power.synced(disk)
        copy = power.COPY.format(image=image, copies=tmp_path)
        subprocess.run(["sh", "-c", copy, "copy"], check=True)
    with power.mounted(tmp_path / "copy", disk):
        assert (disk / "synced").read_text() == "synced"
        assert not (disk / "forgotten").exists()


def test_files_of_two_runs_are_compared_without_what_was_measured(tmp_path: Path) -> None:
    manifest = {"recipe": 1, "environment": {"num_threads": 1}, "measured": {"duration_s": 1}}
    (tmp_path / "llmcompress.json").write_text(json.dumps(manifest))
    (tmp_path / "a").write_text("a")
    first = rebuild.contents(tmp_path)
    assert first[rebuild.THREADS] == "1"
    manifest |= {"measured": {"duration_s": 2}}
    (tmp_path / "llmcompress.json").write_text(json.dumps(manifest))
    assert rebuild.contents(tmp_path) == first
    (tmp_path / "llmcompress.json").write_text(json.dumps(manifest | {"recipe": 2}))
    assert {name for name, value in rebuild.contents(tmp_path).items() if first[name] != value} == {
        "llmcompress.json: recipe"
    }
    points = [Point("int4", way.name, 0, "the same", 0, [], [], []) for way in rebuild.WAYS[1:]]
    same = " | ".join(["the same"] * len(points))
    assert rebuild.table(points).splitlines()[-1] == f"| int4 | not run | {same} |"
