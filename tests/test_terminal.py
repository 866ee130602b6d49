"""What a person sees: terminals of 80 and 120 columns, pipes, and quiet runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from terminal_fixture import received_from, without_escapes
from test_cli import COMMANDS, EVALUATION, REPORT, ROOT, SPEED

import llmcompress.system.process
from llmcompress.cli import run
from llmcompress.cli.progress import line_interval_s, watching
from llmcompress.errors import UsageError
from llmcompress.system.progress import Progress

Captured = pytest.CaptureFixture[str]
LONG = "a-model-with-a-long-name-of-its-own-0123456789-int4-group-size-128-awq-scale-estimation-ov"

SHOW = """
import json, sys
from pathlib import Path
from llmcompress.cli import run
from llmcompress.cli.bench import print_reports
from llmcompress.cli.compress import _print
from llmcompress.cli.evaluation_report import print_evaluation
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
made = json.load(sys.stdin)
what = sys.argv[1]
if what == "compress":
    _print(CompressionReport.model_validate(made), "some/model", Path(sys.argv[2]), stages=True)
elif what == "eval":
    print_evaluation(EvalReport.model_validate(made), source=sys.argv[2], stages=True)
elif what == "bench":
    print_reports([BenchReport.model_validate(made).model_copy(update={"source": sys.argv[2]})], "table")
else:
    sys.exit(run(sys.argv[1:]))
"""


def seen(arguments: list[str], record: Any = None, *, columns: int | None = None) -> list[str]:
    """The lines that a command writes to a terminal of so many columns, or to a pipe that is as wide as it may be."""
    environment = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "COLUMNS"}}
    environment |= {"NO_COLOR": "1", "TERM": "xterm"}
    text = json.dumps(None if record is None else json.loads(record.model_dump_json())).encode()
    command = [sys.executable, "-c", SHOW, *arguments]
    if columns is None:
        wide = environment | {"COLUMNS": "2000"}
        done = subprocess.run(command, input=text, capture_output=True, cwd=ROOT, env=wide, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()
    pty = pytest.importorskip("pty", reason="needs a POSIX pseudo-terminal")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    assert child.stdin is not None
    child.stdin.write(text)
    child.stdin.close()
    received = received_from(ours)
    assert child.wait() == 0, received
    return without_escapes(received).splitlines()


def words(lines: list[str]) -> set[str]:
    """What stands between spaces and frames."""
    return set(re.sub(r"[^\S\n]|[─━│╭╮╰╯┃]", " ", "\n".join(lines)).split())


SHOWN = {
    "compress": (["compress", LONG], REPORT),
    "eval": (["eval", LONG], EVALUATION),
    "bench": (["bench", LONG], SPEED),
    "bench of a short name": (["bench", "model-int4-ov"], SPEED),
    "recipes": (["recipes"], None),
    "cache list": (["cache", "list"], None),
}


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", SHOWN)
def test_no_word_of_a_report_is_cut_or_lost(
    name: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, record = SHOWN[name]
    # A cache that neither grows nor ages by a minute between the two runs.
    (tmp_path / "statistics/aa").mkdir(parents=True)
    (tmp_path / "statistics/aa/file").write_bytes(bytes(1234))
    then = time.time() - 9 * 86_400 - 30
    for path in (tmp_path / "statistics/aa/file", tmp_path / "statistics/aa"):
        os.utime(path, (then, then))
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path))
    narrow = seen(arguments, record, columns=columns)
    assert words(narrow) == words(seen(arguments, record))
    # A word or a command that is wider than the terminal is left whole, for whoever copies it.
    too_long = [line for line in narrow if len(line) > columns]
    assert all(LONG in line for line in too_long)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [[], *COMMANDS, ["tune"], ["chat"], ["card"]], ids=" ".join)
def test_no_word_of_the_help_is_cut(
    command: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shown = {}
    for width in (columns, 400):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run([*command, "--help"]) == 0
        shown[width] = capsys.readouterr().out.splitlines()
    assert words(shown[columns]) == words(shown[400])
    assert max(map(len, shown[columns])) <= columns
    assert any(line.strip().startswith("Docs: ") for line in shown[columns])


def test_a_table_that_does_not_fit_becomes_records() -> None:
    columns = seen(["bench", "model"], SPEED, columns=120)
    assert any(line.split()[:3] == ["model", "size", "device"] for line in columns)
    records = seen(["bench", LONG], SPEED, columns=80)
    assert records[:3] == [f"model             {LONG}", "size              560 MB", "device            CPU"]


def test_every_option_but_a_commands_own_few_is_in_a_panel(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in (*COMMANDS, ["tune"], ["chat"], ["card"]):
        assert run([*command, "--help"]) == 0
        panels = re.split(r"╭─ (.*?) ─+╮", capsys.readouterr().out)[1:]
        options = {
            title: re.findall(r"--[a-z0-9-]+", text) for title, text in zip(panels[::2], panels[1::2], strict=True)
        }
        assert "--quiet" in options["Printed"]
        assert len(options.get("Options", ())) <= 12


def test_the_docs_that_help_names_are_there(capsys: Captured) -> None:
    for command in COMMANDS:
        assert run([*command, "--help"]) == 0
        (name,) = re.findall(r"Docs: (\S+)", capsys.readouterr().out)
        assert (ROOT / name).is_file()


def test_quiet_prints_the_essential_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def answer(function: object, options: object, **others: Any) -> object:
        others["progress"](Progress("compress weights", 1, 2))
        return REPORT

    monkeypatch.setattr(llmcompress.system.process, "run_supervised", answer)
    output = str(tmp_path / "out")
    assert run(["compress", "some/model", "-r", "int4", "-o", output, "-q"]) == 0
    assert capsys.readouterr() == (f"{output}\n", "")
    # The next command of the process speaks again.
    assert run(["compress", "some/model", "-r", "int4", "-o", output]) == 0
    assert "Bits per weight" in capsys.readouterr().out
    assert run(["verify", str(tmp_path), "--quiet"]) == 4
    assert capsys.readouterr().err.startswith("error: ")


def test_a_pipe_gets_lines_with_amount_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import time

    monkeypatch.setenv("LLMCOMPRESS_PROGRESS_S", "0.05")
    with watching(verbose=False) as watch:
        for done in (1000, 2000, 3000):
            watch.report(Progress("score", done, 8000, "tokens"))
            time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"score: [123],000 of 8,000 tokens, \d\.\d s(, \d\.\d s left)?", line) for line in lines)
    assert any(line.endswith("left") for line in lines)


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf"])
def test_an_interval_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_PROGRESS_S", text)
    with pytest.raises(UsageError, match=f"got '{text}'; a positive number of seconds is accepted"):
        line_interval_s()


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("400", 400), ("", 120), ("0", 120), ("x", 120)])
def test_columns_is_respected_in_pipes(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.cli.console import stdout

    monkeypatch.setenv("COLUMNS", columns)
    assert stdout().width == width


@pytest.mark.parametrize(
    ("arguments", "kind", "exit_code"),
    [
        (["verify", "nowhere", "--json"], "ArtifactError", 4),
        (["verify", "--json"], "UsageError", 2),
        (["bench", "x", "--format", "json", "--device", "XPU"], "UsageError", 2),
        (["compress", "x", "-r", "int4", "--set", "a.b=1", "--json"], "RecipeError", 2),
    ],
)
def test_errors_are_json_where_the_report_is(arguments: list[str], kind: str, exit_code: int, capsys: Captured) -> None:
    assert run(arguments) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err.splitlines()[-1])["error"]
    assert list(error) == ["type", "message", "where", "hint", "exit_code"]
    assert (error["type"], error["exit_code"]) == (kind, exit_code)
    assert error["message"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("quantize", "compress"), ("convert", "compress"), ("export", "compress"), ("benchmark", "bench"),
     ("evaluate", "eval"), ("upload", "push")],
)  # fmt: skip
def test_a_command_of_peers_is_answered_with_ours(name: str, meant: str, capsys: Captured) -> None:
    assert run([name, "x"]) == 2
    assert f"no such command {name!r}. Did you mean {meant!r}?" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    program = programs / "llmcompress"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m llmcompress "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}

    def bash(script: str) -> str:
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "bash completion installed" in bash("llmcompress --install-completion; true")
    complete = (
        "source ~/.bash_completions/llmcompress.sh; COMP_WORDS=({words}); COMP_CWORD={last}; "
        '$(complete -p llmcompress | grep -oP "(?<=-F )\\S+") llmcompress; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert bash(complete.format(words="llmcompress com", last=1)).split() == ["compress", "compare"]
    assert "--num-windows" in bash(complete.format(words="llmcompress eval --num", last=2)).split()
