"""A short run of the fuzzer, and proof that it can fail; ``make fuzz`` is the long run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_caches import DOORS
from fuzz_doors import Door, doors
from fuzz_run import Case, Fuzzer, called, fuzzer_in, replay, run, run_commands

from llmcompress.errors import DataError, LlmcompressError, ModelError

SEED = 19
KEPT = {door[0] for door in DOORS}
FAST = [door for door in doors() if not door.is_slow]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with fuzzer_in(tmp_path_factory.mktemp("fuzz"), tmp_path_factory.mktemp("saved")) as found:
        yield found


def door_of(call: Any) -> Door:
    return Door("one", lambda _: None, ("file",), call, (DataError,))


@pytest.mark.parametrize("door", doors(), ids=lambda door: door.name)
def test_valid_inputs_are_accepted(door: Door, fuzzer: Fuzzer) -> None:
    door.call(fuzzer.valid(door))


def test_no_input_ends_in_a_traceback_a_hang_or_a_write_elsewhere(
    fuzzer: Fuzzer, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fuzzer, SEED, 400, slow_share=0)
    with capsys.disabled():
        print(f" fuzz: seed {SEED}, {sum(fuzzer.counts.values())} inputs", end="")
    assert [(fault.case.door.name, fault.what, str(fault.saved)) for fault in fuzzer.faults] == []
    assert sum(fuzzer.counts.values()) >= 400
    assert fuzzer.counts["right result"] > 50
    assert {"RecipeError", "ModelError", "DataError", "ArtifactError"} <= set(fuzzer.counts)


DAMAGE = (b"", b"[" * 20_000, b"[]", b'{"a": 1}', b"\0" * 100)


@pytest.mark.parametrize("door", [door for door in FAST if door.name in KEPT], ids=lambda door: door.name)
def test_what_is_kept_for_later_runs_is_read_whole_or_as_if_it_were_not_there(door: Door, fuzzer: Fuzzer) -> None:
    """The doors themselves compare what is read with what was kept."""
    for file in door.files:
        content = (fuzzer.valid(door) / file).read_bytes()
        cuts = [content[: len(content) * quarter // 4] for quarter in range(4)]
        places = range(0, len(content), -(-len(content) // 8))
        flips = [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in places]
        for damaged in (*DAMAGE, *cuts, *flips):
            fuzzer.try_case(Case(door, file, damaged))
    assert [(fault.case.file, fault.what) for fault in fuzzer.faults if fault.case.door == door] == []


def test_a_seed_gives_the_same_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inputs(name: str, number: int) -> list[Case]:
        found: list[Case] = []
        monkeypatch.setattr(Fuzzer, "warm_up", lambda *_: None)
        monkeypatch.setattr(Fuzzer, "try_case", lambda _, case: found.append(case))
        run(Fuzzer(tmp_path / name), number, 40, slow_share=0)
        return [case.content for case in found if case.door.name != "parquet"]

    first = inputs("first", 1)
    assert len(first) >= 40
    assert inputs("second", 1) == first
    assert inputs("third", 2) != first


@pytest.mark.parametrize(
    ("raised", "what"),
    [
        (ModelError("no", hint="try"), "ModelError is not of DataError"),
        (LlmcompressError("no", hint="try"), "LlmcompressError is not of DataError"),
        (DataError("no"), "no hint"),
        (DataError("at 0x7f32a1b2c3d4", hint="try"), "an address"),
        (ValueError("no"), "ValueError: no"),
        (AssertionError("other"), "the result is wrong: other"),
    ],
)
def test_what_is_no_good_refusal_is_a_fault(raised: Exception, what: str, tmp_path: Path) -> None:
    def call(_: Path) -> None:
        raise raised

    assert what in called(door_of(call), tmp_path, tmp_path)[1]
    assert called(door_of(lambda _: None), tmp_path, tmp_path) == ("right result", "")


def test_lines_and_steering_characters_are_faults(tmp_path: Path) -> None:
    def call(message: str) -> Any:
        def refuse(_: Path) -> None:
            error = DataError("no", hint="try")
            error.message = message  # past what the class itself makes of it
            raise error

        return refuse

    assert "more than two lines" in called(door_of(call("one\ntwo")), tmp_path, tmp_path)[1]
    assert "steer a terminal" in called(door_of(call("red \x1b[31m")), tmp_path, tmp_path)[1]
    assert "steer a terminal" in called(door_of(call("turned \u202e")), tmp_path, tmp_path)[1]


def test_a_planted_write_is_seen(tmp_path: Path) -> None:
    folder, outside = tmp_path / "input", tmp_path / "outside"
    (folder / "out").mkdir(parents=True)
    outside.mkdir()

    def opens(_: Path) -> None:
        (outside / "planted").write_text("x")
        (outside / "planted").unlink()

    def renames(at: Path) -> None:
        (at / "out" / "a").write_text("x")
        (at / "out" / "a").rename(outside / "b")

    def starts(_: Path) -> None:
        os.system("true")

    assert "outside of its output: open" in called(door_of(opens), folder, tmp_path)[1]
    assert "outside of its output: changed" in called(door_of(renames), folder, tmp_path)[1]
    assert "os.system" in called(door_of(starts), folder, tmp_path)[1]
    assert called(door_of(lambda at: (at / "out" / "a").write_text("x")), folder, tmp_path)[1] == ""
    assert (
        called(door_of(lambda _: os.fdopen(os.open(os.devnull, os.O_WRONLY), "w").close()), folder, tmp_path)[1] == ""
    )


def test_a_hang_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz_run.LIMIT_S", 0.05)

    def sleeps(_: Path) -> None:
        time.sleep(2)

    assert called(door_of(sleeps), tmp_path, tmp_path) == ("too slow", "takes longer than 0.05 s")


def test_a_failing_input_is_saved_and_fails_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        if b"bad" in (folder / "file").read_bytes():
            raise ValueError("bad")

    door = Door("broken", lambda folder: (folder / "file").write_bytes(b"good") and None, ("file",), broken, ())
    monkeypatch.setattr("fuzz_run.doors", lambda: (door,))
    first, second = (Fuzzer(tmp_path / name, tmp_path / f"{name}-saved") for name in ("first", "second"))
    first.try_case(Case(door, "file", b"good"))
    assert not first.faults
    first.try_case(Case(door, "file", b"very bad"))
    assert json.loads((first.faults[0].saved / "case.json").read_text())["what"] == "ValueError: bad"
    replay(second, first.faults[0].saved)
    assert [fault.what for fault in second.faults] == ["ValueError: bad"]


@pytest.mark.slow
def test_inputs_by_the_command_line(tmp_path: Path) -> None:
    with fuzzer_in(tmp_path / "fuzz", tmp_path / "saved") as fuzzer:
        run_commands(fuzzer, SEED, 10)
        assert [fault.what for fault in fuzzer.faults] == []
        assert fuzzer.counts == {"command": 10}
