"""A call from Python: what of it reaches the terminal."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pty
import shutil
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


WITH_GAPS = """
import llmcompress
from llmcompress.loaders.tokenizer import load_tokenizer
from pathlib import Path
print("before")
llmcompress.compress({source!r}, "int8", {output!r})
spec = llmcompress.EvalSpec(dataset="bundled", seq_len=64, num_windows=1, backend="stateful")
llmcompress.evaluate({output!r}, spec, reference={source!r})
model = llmcompress.OVModelForCausalLM.from_pretrained({source!r}, quantization_config="int8")
model.save_pretrained({output!r} + "-by-optimum")
print(max(load_tokenizer(Path({source!r})).get_vocab().values()), "is the last id")
"""


@pytest.mark.slow
def test_what_the_tokenizers_library_prints_of_a_vocabulary_with_gaps_is_kept_back(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(demo_checkpoint, tmp_path / "source")
    vocabulary = json.loads((source / "tokenizer.json").read_text())
    model = vocabulary["model"]
    merges = [tuple(each) if isinstance(each, list) else tuple(each.split(" ", 1)) for each in model["merges"]]
    parts = {part for pair in merges for part in pair}
    last = max(model["vocab"].values())
    number = next(
        n for n, pair in enumerate(merges) if "".join(pair) not in parts and model["vocab"]["".join(pair)] < last
    )
    gap = model["vocab"].pop("".join(merges[number]))
    del model["merges"][number]
    (source / "tokenizer.json").write_text(json.dumps(vocabulary))
    # It is said without a guard, past sys.stdout.
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tokenizers import Tokenizer; Tokenizer.from_file({str(source)!r} + '/tokenizer.json').to_str()",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(f"The OrderedVocab you are attempting to save contains holes for indices [{gap}]")
    program = WITH_GAPS.format(source=str(source), output=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"before\n{last} is the last id\n", "")


WRITERS = """
import os, subprocess, sys, threading, time
from llmcompress.system.standard_output import without_lines

with without_lines(b"chatter:"):
    with without_lines(b"prattle:"):
        other = threading.Thread(target=lambda: os.write(1, b"of a thread\\n"))
        other.start()
        other.join()
        os.write(1, b"chatter: 1\\nprattle: 2\\nbegun")
        os.write(1, b" and ended\\nchatt")
        os.write(1, b"er: 3\\nchat\\n")
        late = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.6); print('of a child')"])
    print("of Python", flush=True)
os.write(1, b"chatter: afterwards\\n")
late.wait()
time.sleep(0.2)
"""


def test_all_but_the_lines_that_are_kept_back_reaches_standard_output() -> None:
    done = subprocess.run([sys.executable, "-c", WRITERS], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == [
        "begun and ended", "chat", "chatter: afterwards", "of Python", "of a child", "of a thread",
    ]  # fmt: skip


def test_a_closed_standard_output_is_no_reason_to_fail() -> None:
    program = """
import os
from llmcompress.system.standard_output import without_lines
os.close(1)
with without_lines(b"x"):
    os.write(2, b"done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "done")


@pytest.mark.slow
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
