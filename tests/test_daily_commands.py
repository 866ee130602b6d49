"""Whole commands in terminals of 80 and 120 columns: no line too long, no word cut, no column lost."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from push_fixture import make_evaluated
from terminal_fixture import LLMCOMPRESS, Shown, in_terminal
from test_terminal import TUNED
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.artifact import manifest_sha256, replace_report
from llmcompress.report.file_names import TUNE_REPORT

TEXT = "\n\n".join(f"The quick brown fox {number} jumps over the lazy dog." for number in range(200))
PLAN = """
output: a-sweep-with-a-name-of-its-own
models: [{source: checkpoint, name: a-model-of-a-long-name}]
recipes: [int8]
card: true
"""
MEASURED = PLAN.replace("[int8]", "[int8, {recipe: int4, name: int4-in-groups-of-96, set: {weights.group_size: 96}}]")
MEASURED += "evaluation: {dataset: text.txt, seq_len: 64, num_windows: 2, backend: stateful}\n"
TUNE = (
    "--dataset", "text.txt", "--seq-len", "96", "--num-windows", "2", "--workload", "short:8/4", "--repetitions", "3",
    "--property", "KV_CACHE_PRECISION=f16", "--property", "INFERENCE_NUM_THREADS=1", "--max-kl", "1",
)  # fmt: skip
COLUMNS = (80, 120)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and a text."""
    place = tmp_path_factory.mktemp("daily")
    build_checkpoint(place / "checkpoint", num_hidden_layers=1)
    (place / "text.txt").write_text(TEXT)
    return place


def in_a_wide_pipe(place: Path, *command: str) -> list[str]:
    """The same command's report where nothing has to be wrapped."""
    environment = {**os.environ, "COLUMNS": "2000"}
    done = subprocess.run(
        [*LLMCOMPRESS, *command], capture_output=True, text=True, cwd=place, env=environment, check=False
    )
    return done.stdout.splitlines()


def words(lines: list[str]) -> set[str]:
    """What stands between spaces and frames; figures change from run to run, and are all the same here."""
    text = re.sub(r"[━─│✓]", " ", "\n".join(lines))
    return set(re.sub(r"\d+(?:[.,]\d+)*", "#", text).split())


def whole(shown: Shown, *allowed: str) -> Shown:
    """Check that the terminal had to break no line but those that hold a path or a command to be copied."""
    assert [line for line in shown.too_long if not line.startswith(allowed)] == [], shown.text
    return shown


@pytest.mark.parametrize("columns", COLUMNS)
def test_card_and_a_look_at_a_push(columns: int, tmp_path: Path) -> None:
    name = make_evaluated(tmp_path / "a-model-int4-ov").name
    shown = whole(in_terminal([*LLMCOMPRESS, "card", name], columns, cwd=tmp_path))
    assert shown.exit_code == 0, shown.text
    assert words(shown.lines) == words(in_a_wide_pipe(tmp_path, "card", name)) - {"is", "the", "same", "already,"} | {
        "written,"
    }
    push = ("push", name, "acme/model", "--dry-run")
    offline = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_HOME": str(tmp_path / "hub")}
    refused = whole(in_terminal([*LLMCOMPRESS, *push], columns, cwd=tmp_path, environment=offline))
    assert refused.exit_code == 5
    assert refused.lines[-2:] == [
        "error: acme/model: this run is offline, by HF_HUB_OFFLINE",
        "hint: unset it to reach the Hub",
    ]
    # Without an account's name the Hub is not asked.
    anybody = ("push", name, "--dry-run")
    shown = in_terminal([*LLMCOMPRESS, *anybody], columns, cwd=tmp_path, environment=offline)
    assert shown.exit_code == 0, shown.text
    report = [line for line in shown.lines if "━" not in line]
    assert "Nothing sent  this is a dry run" in shown.lines
    assert {"openvino_model.bin", "llmcompress.json", "eval.json", "README.md"} <= words(shown.lines)
    # The card below is Markdown, whose lines of tables and hashes a terminal breaks as it likes.
    head = Shown(report[: report.index("README.md")], shown.exit_code, columns)
    whole(head)
    assert any("# a-model-int4-ov" in line for line in report)


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_doctor(columns: int, tmp_path: Path) -> None:
    shown = whole(in_terminal([*LLMCOMPRESS, "doctor"], columns, cwd=tmp_path))
    titles = {"Platform", "Processor", "Instructions", "Memory", "Package", "Installed", "Tested", "with"}
    assert titles <= words(shown.lines)
    first = next(number for number, line in enumerate(shown.lines) if line.startswith("Platform"))
    bars, report = shown.lines[:first], shown.lines[first:]
    assert all(re.search(r"✓ .* \d+(\.\d)? s$", line) for line in bars), shown.text
    if columns == 120:
        report = [line for line in report if not line.startswith(("error", "hint"))]
        assert words(report) == words(in_a_wide_pipe(tmp_path, "doctor"))


@pytest.mark.slow
def test_run(place: Path) -> None:
    (place / "plan.yaml").write_text(PLAN)
    done = whole(in_terminal([*LLMCOMPRESS, "run", "plan.yaml"], 80, cwd=place), "Page: ")
    assert done.exit_code == 0, done.text
    assert {"job", "outcome", "done", "compress,", "card", *words(["a-model-of-a-long-name/int8"])} <= words(done.lines)
    assert any(line.endswith("a-sweep-with-a-name-of-its-own/compare.html") for line in done.lines)


@pytest.mark.slow
def test_a_run_that_measures_and_a_look_ahead(place: Path) -> None:
    (place / "plan.yaml").write_text(MEASURED)
    names = words(["a-model-of-a-long-name/int8", "a-model-of-a-long-name/int4-in-groups-of-96"])
    for columns in COLUMNS:
        ahead = whole(in_terminal([*LLMCOMPRESS, "run", "plan.yaml", "--dry-run"], columns, cwd=place))
        assert ahead.exit_code == 0, ahead.text
        shown = [line for line in ahead.lines if "━" not in line]
        assert words(shown) == words(in_a_wide_pipe(place, "run", "plan.yaml", "--dry-run"))
    for columns, outcome in ((80, "done"), (120, "was")):
        done = whole(in_terminal([*LLMCOMPRESS, "run", "plan.yaml"], columns, cwd=place), "Page: ")
        assert done.exit_code == 0, done.text
        assert {outcome, "job", "outcome", "size", "perplexity", "verdict", *names} <= words(done.lines)


@pytest.mark.parametrize("columns", COLUMNS)
def test_tune_shows_what_was_measured(columns: int, tmp_path: Path) -> None:
    directory = make_evaluated(tmp_path / "a-model-int4-ov")
    found = TUNED.model_copy(update={"manifest_sha256": manifest_sha256(directory)})
    replace_report(directory, TUNE_REPORT, found.model_dump_json().encode())
    command = ("tune", directory.name, "--measured")
    shown = whole(in_terminal([*LLMCOMPRESS, *command], columns, cwd=tmp_path))
    assert shown.exit_code == 0, shown.text
    assert words(shown.lines) == words(in_a_wide_pipe(tmp_path, *command))
    titles = {"setting", "prefill", "decode", "tokens/s", "gain", "memory", "KL,", "nats", "top-#", "remark", "Choice:"}
    assert titles <= words(shown.lines)


@pytest.mark.slow
def test_tune(place: Path) -> None:
    llmcompress.compress(place / "checkpoint", "int8", place / "model-int8-ov")
    shown = whole(in_terminal([*LLMCOMPRESS, "tune", "model-int8-ov", *TUNE], 80, cwd=place), "Next: ")
    assert shown.exit_code == 0, shown.text
    assert "Written to model-int8-ov/tune.json" in shown.lines
    known = words(in_a_wide_pipe(place, "tune", "model-int8-ov", "--measured"))
    assert known <= words(shown.lines)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo(tmp_path: Path) -> None:
    titles = {"Recipe", "Size", "Bits/weight", "Perplexity", "KL", "Top-#", "Decode", "Peak", "Verdict", "Weights"}
    shown = {}
    for columns in COLUMNS:
        shown[columns] = whole(in_terminal([*LLMCOMPRESS, "demo", "-o", "demo"], columns, cwd=tmp_path), "Next: ")
        assert shown[columns].exit_code == 0
        assert titles <= words(shown[columns].lines)
        assert "Written to demo" in shown[columns].lines
    reports = [words([line for line in each.lines if "━" not in line]) for each in shown.values()]
    assert {word for word in reports[0] ^ reports[1] if word.isalpha()} == set()
