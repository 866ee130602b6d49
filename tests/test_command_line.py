"""What is printed as a command is one, whatever the names in it."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path

import pytest

from llmcompress.cli import run
from llmcompress.errors import DataError
from llmcompress.system.command_line import command_line
from tests.artifact_fixture import write_artifact


@pytest.mark.parametrize("name", ["plain", "-r", "--json", "my model", "it's", "-ü $HOME"])
def test_a_printed_command_can_be_given_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_artifact(tmp_path / name, 1)
    program, *words = shlex.split(command_line(["llmcompress", "verify"], [name], ["--json"]))
    assert program == "llmcompress"
    assert run(words) == 0
    assert '"ok": true' in capsys.readouterr().out


def test_names_that_begin_with_a_dash_come_last() -> None:
    assert command_line(["llmcompress", "bench"], ["a", "b c"], ["-r", "3"]) == "llmcompress bench a 'b c' -r 3"
    assert command_line(["llmcompress", "bench"], ["a", "-b"], ["-r", "3"]) == "llmcompress bench -r 3 -- a -b"


def test_an_error_is_one_line_and_steers_no_terminal() -> None:
    """Whatever a library or a file says."""
    error = DataError("not a table: got\n  \x1b[31mred\u202e\n\n", where="a\tb", hint="write it\nagain")
    assert str(error) == "a\\tb: not a table: got \\x1b[31mred\\u202e\nhint: write it again"
    assert pickle.loads(pickle.dumps(error)).message == error.message
    assert DataError("two  spaces", hint="as given").message == "two  spaces"
