"""Work in the background goes on alone, one at a time, and makes way for whatever is measured or needs its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from background_fixture import fail, work

from llmcompress.system import background
from llmcompress.system.cache import cache_dir

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is such work on Linux alone")

STARTER = """
import sys
from pathlib import Path
from background_fixture import work
from llmcompress.system.background import start_background
print(start_background(work, {"place": Path(sys.argv[1]), "seconds": 60}, what="works"))
"""
MEASURER = """
import sys
from llmcompress.system.background import undisturbed
with undisturbed():
    print("measures", flush=True)
    sys.stdin.read()
"""
PATIENCE_S = 30.0


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and nothing left behind."""
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    background.end_background()
    assert background.working_on() is None


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work that a process which has ended has left; where it says what it does."""
    place = tmp_path_factory.mktemp("working")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMCOMPRESS_CACHE", str(place / "cache"))
        # It would wait for the end of the pipes that the work holds open.
        done = subprocess.run(python(STARTER, place), capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert done.stdout == "True\n"
        until(lambda: size(place) > 0)
        yield place
        background.end_background()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begin(place: Path, seconds: float = 60.0) -> int:
    """Start work and wait until it goes on; the number of its process."""
    assert background.start_background(work, {"place": place, "seconds": seconds}, what="works")
    until(lambda: size(place) > 0)
    return worker_of(place)


def worker_of(place: Path) -> int:
    return int((place / "pid").read_text())


def size(place: Path) -> int:
    return (place / "work").stat().st_size if (place / "work").exists() else 0


def stands_still(place: Path) -> bool:
    before = size(place)
    time.sleep(0.3)
    return size(place) == before


def goes_on(place: Path) -> None:
    before = size(place)
    until(lambda: size(place) > before)


def python(program: str, *arguments: Path) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path = {sys.path!r}\n{program}", *map(str, arguments)]


def test_it_outlives_its_starter_and_says_what_it_does(working: Path) -> None:
    goes_on(working)
    found = background.working_on()
    assert found is not None
    assert (found.what, found.pid) == ("works", os.getsid(worker_of(working)))


def test_it_takes_what_nobody_else_wants(working: Path) -> None:
    worker = worker_of(working)
    assert os.sched_getscheduler(worker) == os.SCHED_IDLE
    assert psutil.Process(worker).nice() == 19
    assert Path(f"/proc/{worker}/oom_score_adj").read_text() == "1000\n"


def test_there_is_one_at_a_time(working: Path) -> None:
    assert not background.start_background(fail, {}, what="works too")


def test_it_stands_still_while_something_is_measured(working: Path) -> None:
    with background.undisturbed(), background.undisturbed():
        assert stands_still(working)
    goes_on(working)


def test_who_measured_and_was_killed_stops_it_no_longer(working: Path) -> None:
    measurer = subprocess.Popen(python(MEASURER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert measurer.stdout is not None
    assert measurer.stdout.readline() == "measures\n"
    assert stands_still(working)
    measurer.kill()
    measurer.communicate()
    goes_on(working)


def test_it_does_not_begin_while_something_is_measured(alone: Path) -> None:
    with background.undisturbed():
        assert background.start_background(work, {"place": alone, "seconds": 0.2}, what="works")
        until(lambda: background.working_on() is not None)
        assert stands_still(alone)
    until(lambda: background.working_on() is None)
    assert (alone / "ended").read_text() == "done"


@pytest.mark.parametrize("measured", [False, True])
def test_it_ends_where_its_memory_is_needed(measured: bool, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not background.end_background()
    begin(alone)
    free = iter([100, 10, 200])
    monkeypatch.setattr(background, "memory", lambda: SimpleNamespace(available=next(free)))
    assert background.available_for(50) == 100
    goes_on(alone)
    if measured:
        with background.undisturbed():
            assert background.available_for(50) == 200
    else:
        assert background.available_for(50) == 200
    assert (alone / "ended").read_text() == "told to"
    assert background.working_on() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_goes_with_the_process_that_watches_over_it(number: int, alone: Path) -> None:
    worker = begin(alone)
    found = background.working_on()
    assert found is not None
    os.kill(found.pid, number)
    until(lambda: background.working_on() is None)
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
    assert (alone / "ended").exists() == (number == signal.SIGTERM)


def test_what_went_wrong_is_in_its_log(alone: Path) -> None:
    assert background.start_background(fail, {}, what="fails")
    log = cache_dir() / background.LOG
    until(lambda: log.exists() and "ValueError: not today" in log.read_text())
    until(lambda: background.working_on() is None)


def test_a_cache_that_cannot_be_written_has_no_such_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", os.devnull)
    assert background.working_on() is None
    assert not background.start_background(fail, {}, what="fails")
    with background.undisturbed():
        assert not background.end_background()
