"""The sweeps themselves: calls are counted over processes, faults met where they are put, and what is lost is seen."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import interception
import pytest
from evidence import simulated
from interception import Ended, Injection
from invariants import leaks, said_badly, units
from points import Point, Points, table

SCRIPT = """
import os, subprocess, sys
place = sys.argv[1]
with open(place + "/first", "w") as file:
    file.write("a")
if len(sys.argv) == 2:
    subprocess.run([sys.executable, __file__, place, "again"], check=True)
os.rename(place + "/first", place + "/second")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := interception.why_not():
        pytest.skip(reason)
    return interception.build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def ran(place: Path, library: Path, injection: Injection | None = None, *more: str) -> Ended:
    command = [sys.executable, "-S", str(place.with_name("script.py")), str(place), *more]
    ended, _ = interception.run(command, library, [place], dict(os.environ), injection=injection)
    return ended


def test_calls_are_counted_over_processes(place: Path, library: Path) -> None:
    command = [sys.executable, "-S", str(place.with_name("script.py")), str(place), "again"]
    ended, calls = interception.run(command, library, [place], dict(os.environ))
    assert ended == Ended(0, "", "", outlived=False)
    named = [(call.name, Path(call.path).name) for call in calls]
    assert named == [("open", "first"), ("write", "first"), ("rename", "second")]
    ended, calls = interception.run(command[:-1], library, [place], dict(os.environ))
    # The child renames what the parent wants to: its failure is the script's own.
    assert ended.returncode == 1
    assert [call.number for call in calls] == [1, 2, 3, 4, 5, 6]


def test_a_call_meets_its_fault(place: Path, library: Path) -> None:
    assert ran(place, library, Injection(2, "group"), "again").returncode == -signal.SIGKILL
    assert (place / "first").read_text() == ""
    ended = ran(place, library, Injection(2, "28"), "again")
    assert "No space left on device" in ended.stderr
    # What needs no room works on a full disk.
    assert ran(place, library, Injection(3, "28", later=True), "again").returncode == 0
    assert (place / "second").read_text() == "a"
    assert "Permission denied" in ran(place, library, Injection(3, "13"), "again").stderr


def test_what_is_half_there_is_seen(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "a.bin").write_bytes(b"a")
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    manifest = {"files": [{"path": "a.bin", "sha256": digest}], "measured": {"duration_s": 1}}
    (directory / "llmcompress.json").write_text(json.dumps(manifest))
    (directory / "eval.json").write_text('{"kl": 1, "measured": 2}')
    whole = units(tmp_path)
    assert set(whole) == {"model/", "model/eval.json"}
    # What was measured differs from run to run, and what is staged is not in place.
    (directory / "eval.json").write_text('{"kl": 1, "measured": 3}')
    (tmp_path / ".model.staging-1").mkdir()
    (tmp_path / ".model.staging-1" / "llmcompress.json").write_text("half")
    assert units(tmp_path) == whole
    (directory / "eval.json").write_text('{"kl": 2, "measured": 2}')
    assert units(tmp_path) != whole
    # Of a tuning, all of which is measured, only that it is there and whole.
    for seconds in (1, 2):
        (directory / "tune.json").write_text(json.dumps({"runs": [seconds]}))
        assert units(tmp_path)["model/tune.json"] == "measured"
    (directory / "tune.json").write_text('{"runs": [')
    with pytest.raises(ValueError, match="Expecting value"):
        units(tmp_path)
    (directory / "tune.json").unlink()
    (tmp_path / "page.html").write_text("<html></html>\n")
    assert len(units(tmp_path)) == 3
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ValueError, match="has no end"):
        units(tmp_path)
    (tmp_path / "page.html").unlink()
    (directory / "a.bin").write_bytes(b"b")
    with pytest.raises(ValueError, match="is not what the manifest says"):
        units(tmp_path)


def test_what_a_run_says_is_judged(tmp_path: Path) -> None:
    good = Ended(8, "", "error: x: no room\nhint: make some\n", outlived=False)
    assert list(said_badly(good, frozenset({8}))) == []
    assert list(said_badly(good, frozenset({5}))) == ["exit code 8, not one of [5]"]
    bare = Ended(1, "", "Traceback (most recent call last):\n", outlived=True)
    assert len(list(said_badly(bare, frozenset({1})))) == 4
    (tmp_path / "log").write_text("Bearer hf_secretsecret")
    assert list(leaks(tmp_path, good, "hf_secretsecret")) == ["the token is in log"]


def test_points_are_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "points.jsonl"
    points = Points(state)
    points.add(Point("compress", "K1", 1, "open a", -9, [], [], []))
    points.add(Point("compress", "K1", 2, "write a", -9, ["a"], [], []))
    assert '"lost": ["a"]' in capsys.readouterr().out
    again = Points(state)
    assert again.has("compress", "K1", 2)
    assert not again.has("compress", "K1", 3)
    assert table(again.all).splitlines()[-2:] == [
        "| compress | K1 | 2 | 1 | 1 | 0 | 0 |",
        "| **all** | | 2 | 1 | 1 | 0 | 0 |",
    ]


@pytest.mark.slow
def test_intervals_and_verdicts_are_right_as_often_as_they_say() -> None:
    outcomes = simulated(2000)
    assert len(outcomes) > 30
    assert [each for each in outcomes if not each.right] == []
