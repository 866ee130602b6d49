"""The cache is listed and pruned; what a process is using stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from filelock import Timeout
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from llmcompress.artifact import staging
from llmcompress.cli import run
from llmcompress.cli.cache import cache_entries, prune_cache
from llmcompress.errors import WriteError
from llmcompress.evaluation.score_cache import ScoreCache
from llmcompress.system import compiling
from llmcompress.system.cache import cache_dir, content_key, hold, hold_if_kept, lock_of

HOLDER = """
import sys
from pathlib import Path
from llmcompress.system.cache import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path))


def entry(kind: str, key: str, *, size: int, days: float) -> Path:
    directory = cache_dir() / kind / key
    directory.mkdir(parents=True)
    (directory / "data").write_bytes(b"x" * size)
    then = time.time() - days * 86400
    for path in (directory / "data", directory):
        os.utime(path, (then, then))
    return directory


def keys() -> list[str]:
    return [entry.key for entry in cache_entries()]


def test_entries_the_longest_unused_first() -> None:
    entry("statistics", "aa", size=100, days=1)
    entry("reference-ir", "bb", size=1000, days=3)
    (cache_dir() / "other").mkdir()
    first, second = cache_entries()
    assert (first.kind, first.key) == ("reference-ir", "bb")
    assert second.size_bytes >= 100
    assert second.unused_s == pytest.approx(86400, abs=60)


def test_by_age_by_size_and_by_kind() -> None:
    for key, days in (("aa", 1), ("bb", 2), ("cc", 3), ("dd", 4)):
        entry("statistics", key, size=100_000, days=days)
    kept = entry("reference-ir", "ee", size=100_000, days=9)
    report = prune_cache(older_than_s=3.5 * 86400, kinds=("statistics",))
    assert report.num_removed == 1
    assert keys() == ["ee", "cc", "bb", "aa"]
    # The longest unused go until two of 100 kB (with their directories) fit.
    report = prune_cache(max_bytes=220_000)
    assert report.num_removed == 2
    assert report.kept_bytes <= 220_000
    assert keys() == ["bb", "aa"]
    assert not kept.exists()
    assert prune_cache().num_removed == 2
    assert keys() == []


def test_what_a_process_holds_stays_until_it_ends() -> None:
    held = entry("reference-ir", "aa", size=10, days=5)
    entry("reference-ir", "bb", size=10, days=5)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    # Being held is being used; only the lock is looked at here.
    for path in (held / "data", held):
        os.utime(path, (0, 0))
    report = prune_cache()
    assert (report.num_removed, report.num_in_use) == (1, 1)
    assert keys() == ["aa"]
    holder.kill()
    holder.wait()
    assert prune_cache().num_removed == 1
    assert keys() == []


def test_what_was_used_just_now_stays() -> None:
    entry("statistics", "aa", size=10, days=0)
    assert prune_cache().num_in_use == 1
    old = entry("statistics", "bb", size=10, days=5)
    hold(old)
    assert next(each for each in cache_entries() if each.key == "bb").unused_s < 60


def test_a_model_in_the_cache_is_held_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Path] = []
    monkeypatch.setattr("llmcompress.system.cache.hold", held.append)
    hold_if_kept(cache_dir() / "reference-ir" / "aa" / "model-none-ov")
    hold_if_kept(Path.cwd())
    assert held == [cache_dir() / "reference-ir" / "aa"]


def test_a_key_is_a_hash_of_plain_values_whatever_their_order() -> None:
    digest = hashlib.sha256(b'{"a": [2, null], "b": "x"}').hexdigest()
    assert content_key({"b": "x", "a": [2, None]}) == content_key({"a": [2, None], "b": "x"}) == digest


def test_entries_whose_keys_begin_alike_have_one_lock() -> None:
    first, same, other = (cache_dir() / "statistics" / key for key in ("aabb", "aacc", "bbbb"))
    hold(first)
    hold(first)
    assert [path.name for path in (cache_dir() / "locks").glob("*.lock")] == ["statistics-aa.lock"]
    with pytest.raises(RuntimeError, match="already holding a read lock"):
        lock_of(same).acquire_write(timeout=0)
    writing = lock_of(other)
    writing.acquire_write(timeout=0)
    writing.release()


def test_a_lock_is_waited_for_a_minute_also_in_a_cache_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "new" / "cache"))
    hold(cache_dir() / "statistics" / "aa")
    assert (cache_dir() / "locks" / "statistics-aa.lock").is_file()
    waited: list[float] = []

    class Lock:
        def acquire_read(self, timeout: float) -> None:
            waited.append(timeout)

    monkeypatch.setattr("llmcompress.system.cache.lock_of", lambda entry: Lock())
    hold(cache_dir() / "statistics" / "aa")
    assert waited == [60.0]


def test_only_what_lies_in_an_entry_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Path] = []
    monkeypatch.setattr("llmcompress.system.cache.hold", held.append)
    hold_if_kept(cache_dir() / "reference-ir")
    hold_if_kept(cache_dir())
    assert held == []
    hold_if_kept(cache_dir() / "reference-ir" / "aa")
    assert held == [cache_dir() / "reference-ir" / "aa"]


@pytest.mark.parametrize("error", [OSError("no"), sqlite3.OperationalError("no"), Timeout("lock")])
def test_a_lock_that_cannot_be_had_stops_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(entry: Path) -> None:
        raise error

    used = entry("statistics", "aa", size=1, days=1)
    monkeypatch.setattr("llmcompress.system.cache.lock_of", refuse)
    hold(used)
    assert time.time() - used.stat().st_mtime < 60
    hold(used.with_name("bb"))


@pytest.mark.parametrize("error", [ValueError("elsewhere"), OSError("no")])
def test_a_path_that_cannot_be_looked_at_is_not_held(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(self: Path) -> Path:
        raise error

    monkeypatch.setattr(Path, "resolve", refuse)
    hold_if_kept(cache_dir() / "reference-ir" / "aa")


def test_a_cache_that_takes_no_lock_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    hold(cache_dir() / "statistics" / "aa")


def test_the_cache_is_where_a_variable_says_or_where_the_system_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLMCOMPRESS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for system, place in ((Unix, ".cache/llmcompress"), (MacOS, "Library/Caches/llmcompress")):
        monkeypatch.setattr(platformdirs, "PlatformDirs", system)
        assert cache_dir() == tmp_path / place
    for name, value, place in (
        ("XDG_CACHE_HOME", "/shared", "/shared/llmcompress"),
        ("XDG_CACHE_HOME", "~/shared", f"{tmp_path}/shared/llmcompress"),
        ("LLMCOMPRESS_CACHE", "~/own", f"{tmp_path}/own"),
    ):
        monkeypatch.setenv(name, value)
        assert cache_dir() == Path(place)


@pytest.fixture
def unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that cannot be made, for root neither."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


def test_a_missing_home_stops_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As for a number in a container that is no user's."""
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("LLMCOMPRESS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_dir() == Path(os.devnull, "no home directory", "llmcompress")
    hold(cache_dir() / "statistics" / "aa")
    assert not ScoreCache("evaluations", "aa").add([0], [{"nll": np.zeros(3)}])
    assert run(["cache", "list"]) == 0
    assert "0 B in " in capsys.readouterr().out
    monkeypatch.setenv("LLMCOMPRESS_CACHE", "/own")
    assert cache_dir() == Path("/own")


def test_libraries_that_ask_for_a_home_get_one_that_takes_no_files() -> None:
    code = (
        "import pwd; pwd.getpwuid = {}.__getitem__; import llmcompress, pathlib; print(pathlib.Path.home());"
        "(pathlib.Path.home() / '.cache').mkdir(parents=True)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "/dev/null/no home directory\n"
    assert "NotADirectoryError" in done.stderr


def test_what_can_do_without_the_cache_does(unusable: Path) -> None:
    scores = ScoreCache("evaluations", "aa")
    assert not scores.add([0], [{"nll": np.zeros(3)}])
    assert scores.get([0]) is None
    assert cache_entries() == ()
    assert prune_cache().num_removed == 0


def test_what_lies_in_the_cache_and_cannot_be_written_names_it(unusable: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"cannot write into the cache: Not a directory \(ENOTDIR\); ") as caught,
        staging(cache_dir() / "reference-ir" / "key" / "model-none-ov"),
    ):
        pass
    assert caught.value.hint == "set LLMCOMPRESS_CACHE to a directory that can be written and has room"
    assert caught.value.where.startswith(str(unusable))


def test_machine_code_that_cannot_be_kept_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_machine_code_dir", lambda _: str(tmp_path / "kernels"))
    double = compiling.compiled(_double)
    assert double(4) == 8
    # Of an index and of a file of code a power cut may leave the name, or the first bytes.
    for ending, size in (("nbi", 0), ("nbi", 20), ("nbc", 0), ("nbc", 20)):
        (file,) = (tmp_path / "kernels").rglob(f"*_double*.{ending}")
        file.write_bytes(file.read_bytes()[:size])
        assert compiling.compiled(_double)(4) == 8
        again = compiling.compiled(_double)
        assert again(4) == 8
        assert again.stats.cache_hits
    double = compiling.compiled(_double)
    shutil.rmtree(tmp_path / "kernels")
    (tmp_path / "kernels").write_bytes(b"")
    assert double(21) == 42
    assert compiling.compiled(_double)(4) == 8


def _double(value: int) -> int:
    return 2 * value


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "list"]) == 0
    assert "0 B in " in capsys.readouterr().out
    entry("statistics", "aa", size=5_000_000, days=2)
    assert run(["cache", "list"]) == 0
    listed = capsys.readouterr().out
    assert "activation statistics" in listed
    assert "5 MB" in listed
    assert "48 h 00 min ago" in listed
    assert run(["cache", "list", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["kind"] == "statistics"
    assert run(["cache", "prune", "--older-than", "1d"]) == 0
    assert capsys.readouterr().out.startswith("1 removed, 5 MB; 0 B kept in ")
    entry("statistics", "bb", size=10, days=2)
    assert run(["cache", "prune", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_removed"] == 1


def test_a_dry_run_removes_nothing_and_says_what_would_go(capsys: pytest.CaptureFixture[str]) -> None:
    kept = entry("kernels", "cc", size=1_000, days=1)
    old = entry("statistics", "aa", size=5_000_000, days=9)
    assert run(["cache", "prune", "--older-than", "3d", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("1 would be removed, 5 MB; 1 kB kept in ")
    assert kept.exists()
    assert old.exists()
    assert run(["cache", "list"]) == 0
    assert "machine code of our kernels" in capsys.readouterr().out


def test_the_place_of_the_cache_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "dir"]) == 0
    assert capsys.readouterr().out == f"{cache_dir()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing says what is to go"),
        (["--all", "--max-size", "1GB"], "--all and a limit contradict each other"),
        (["--older-than", "soon"], "got 'soon'; a number with one of s, m, h, d, w is accepted: 12h, 30d"),
        (["--max-size", "3 apples"], "got '3 apples'; a number with one of kB, MB, GB, TB is accepted"),
        (["--all", "--kind", "statistic"], "got 'statistic'; accepted: reference-ir, statistics"),
    ],
)
def test_what_pruning_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "prune", *arguments]) == 2
    assert message in capsys.readouterr().err
