"""`llmcompress eval` as a process: what it prints, how it ends, and what it leaves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcompress.report.evaluation import ConversionRecord, EvalReport

Artifacts = Callable[[str], Path]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from llmcompress.cli import main; main()",
        "eval",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def output(artifact: Artifacts, tmp_path: Path) -> Path:
    return shutil.copytree(artifact("int4"), tmp_path / "int4", ignore=shutil.ignore_patterns("eval.json"))


def test_a_person_sees_numbers_intervals_and_a_verdict(output: Path, wikitext: Path, ref_model: Path) -> None:
    done = run(output, "--reference", ref_model, "--dataset", wikitext, "--num-windows", 8, "--seq-len", 128,
               "--max-kl", "0.1", "--generations", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = EvalReport.model_validate_json((output / "eval.json").read_text())
    assert report.divergence is not None
    for text in (
        "Verdict: ",
        "KL divergence, nats",
        f"{report.divergence.kl_divergence.value:.4g}",
        f"{report.model.perplexity.perplexity.value:.5g}",
        "top-1 agreement",
        "max_kl",
        "passed",
        "Greedy continuations",
        "cache u8",
        "Reference differs",
    ):
        assert text in done.stdout, text
    # A run of more than a few seconds says in a pipe how far it is, and nothing else.
    assert all(re.search(r", [\d. hmins]+s( left)?$", line) for line in done.stderr.splitlines())


def test_the_gate_ends_with_7_and_is_written_down(output: Path, wikitext: Path, artifact: Artifacts) -> None:
    done = run(output, "--reference", artifact("none"), "--dataset", wikitext, "--num-windows", 2, "--seq-len", 64,
               "--max-kl", "0.0001", "--json")  # fmt: skip
    assert done.returncode == 7
    report = EvalReport.model_validate(json.loads(done.stdout))
    assert report.gate.passed is False
    assert EvalReport.model_validate_json((output / "eval.json").read_text()) == report
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["type"] == "GateError"
    assert "the gate is not passed: max_kl: 0.00" in error["message"]
    assert error["hint"].startswith("take a recipe that loses less")


@pytest.mark.slow
def test_a_threshold_that_was_not_decided_ends_with_7(output: Path, wikitext: Path, ref_model: Path) -> None:
    done = run(output, "--reference", ref_model, "--dataset", wikitext, "--num-windows", 2, "--seq-len", 64,
               "--max-kl", "1", "--reference-scores", "cached")  # fmt: skip
    assert done.returncode == 7
    assert "max_kl could not be decided: only a lower bound was measured" in done.stderr
    assert "cannot tell: only a lower bound was measured; take --reference-scores exact or rounded" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seq-len", 64, "--stride", 8], 2, "stride: has no effect on protocol llama.cpp"),
        (
            ["--protocol", "sliding", "--seq-len", 64, "--stride", 64],
            2,
            "stride: 64 leaves no context in windows of 64",
        ),
        (["--seq-len", 64, "--chunk", 65], 2, "chunk: 65 is more than a window of 64"),
        (["--protocol", "guide"], 2, "protocol: got 'guide'; accepted: llama.cpp, sliding, rolling"),
        (["--precision", "exact"], 2, "precision: got 'exact'; accepted: as_used, pinned"),
        (["--confidence", "1.5"], 2, "confidence: got 1.5"),
        (["--tasks", " ,"], 2, "--tasks: got ' ,'; names with commas between are accepted"),
        (["--max-kl", "0.1"], 2, "--max-kl compare with a reference, and none was given"),
        (["--reference-scores", "some"], 2, "--reference-scores: got 'some'; accepted: auto, exact, rounded, cached"),
        (["--dataset", "wikitext2", "--split", "test"], 2, "split: has no effect with the known name wikitext2"),
        (["--dataset", "wikitext"], 2, "dataset: without a namespace"),
        (["--dataset", "c4", "--chat-template"], 2, "--chat-template: c4 holds running text, conversations are needed"),
        (["--seq-len", 1024], 2, "1024 tokens were asked for, the model's context is 512"),
        (["--check-conversion"], 2, "--dataset would have no effect on --check-conversion"),
        (["--device", "NPU7"], 2, "there is no device NPU7"),
    ],
)
def test_what_is_refused(arguments: list[object], code: int, message: str, artifact: Artifacts, wikitext: Path) -> None:
    if "--dataset" not in arguments:
        arguments = ["--dataset", wikitext, *arguments]
    done = run(artifact("int8"), *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_threshold_out_of_range(artifact: Artifacts, ref_model: Path, wikitext: Path) -> None:
    done = run(artifact("int8"), "--reference", ref_model, "--dataset", wikitext, "--min-top1-agreement", 90)
    assert done.returncode == 2
    assert "--min-top1-agreement: got 90" in done.stderr


@pytest.mark.slow
def test_check_conversion(ref_model: Path) -> None:
    done = run(ref_model, "--check-conversion", "--json")
    assert done.returncode == 0, done.stderr
    assert ConversionRecord.model_validate(json.loads(done.stdout)).passed
