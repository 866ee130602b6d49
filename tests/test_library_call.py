"""A call from Python: what of it reaches the terminal."""

from __future__ import annotations

import inspect
import logging
import os
import pty
import subprocess
import sys
import termios
import threading
import warnings
from pathlib import Path

import pytest

import llmcompress
from llmcompress.errors import UsageError
from llmcompress.system.library_call import library_call, reporter
from llmcompress.system.progress import Progress, silent

PROGRAM = """
import sys
import llmcompress
llmcompress.compress({source!r}, llmcompress.load_recipe("int4"), {output!r}{options})
"""


def run(source: Path, output: Path, options: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(source=str(source), output=str(output), options=options)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def test_a_script_stays_silent(demo_checkpoint: Path, tmp_path: Path) -> None:
    done = run(demo_checkpoint, tmp_path / "out")
    assert (done.stdout, done.stderr) == ("", "")


def test_a_terminal_shows_bars_of_ours_alone(demo_checkpoint: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    program = PROGRAM.format(source=str(demo_checkpoint), output=str(tmp_path / "out"), options="")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = bytearray()
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux ends a pseudo-terminal so.
            pass
        assert process.wait() == 0
    os.close(ours)
    text = shown.decode()
    assert "100%" in text
    assert "check" in text
    for noise in ("Loading weights", "Warning", "INFO:nncf", "%|          | 0/48"):
        assert noise not in text, text


def test_progress_is_a_function_auto_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []
    assert reporter(seen.append) == seen.append
    assert reporter(None) is silent
    monkeypatch.setattr(sys, "stderr", None)
    assert reporter("auto") is silent
    with pytest.raises(UsageError, match="got 'yes'; accepted: a function, 'auto' or None"):
        reporter("yes")  # type: ignore[arg-type]


VERBS = "compress load evaluate check_conversion benchmark tune apply_tuning push_to_hub run_plan"


@pytest.mark.parametrize("verb", VERBS.split())
def test_every_verb_takes_it(verb: str) -> None:
    assert inspect.signature(getattr(llmcompress, verb)).parameters["progress"].default == "auto"


def test_warnings_of_ours_are_logged_and_those_of_libraries_are_not(caplog: pytest.LogCaptureFixture) -> None:
    import tqdm

    @library_call
    def verb() -> bool:
        warnings.warn("of torch", stacklevel=1)
        logging.getLogger("nncf").setLevel(logging.INFO)
        logging.getLogger("nncf").warning("a table")
        logging.getLogger("transformers.modeling").error("a failure")
        logging.getLogger("llmcompress.data").warning("of ours")
        return bool(tqdm.tqdm(range(2)).disable)

    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        assert verb()
        logging.getLogger("nncf").warning("afterwards")
    assert not caught
    assert [record.message for record in caplog.records] == ["a failure", "of ours", "afterwards"]
    assert not tqdm.tqdm(range(2), file=open(os.devnull, "w"), leave=False).disable  # noqa: PTH123, SIM115


def test_calls_that_overlap_leave_everything_as_it_was() -> None:
    import tqdm

    before = logging.Logger.callHandlers, vars(tqdm.tqdm)["__init__"], list(warnings.filters)
    inside, go_on = threading.Event(), threading.Event()

    @library_call
    def first() -> None:
        inside.set()
        go_on.wait(30)

    @library_call
    def second() -> None: ...

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    second()
    assert logging.Logger.callHandlers is not before[0]
    go_on.set()
    thread.join()
    assert (logging.Logger.callHandlers, vars(tqdm.tqdm)["__init__"], list(warnings.filters)) == before
