"""Runs of a plan that are killed: the next one goes on, and ends in the bytes of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compress_fixture import _group, command, environment
from plan_fixture import artifact_bytes, identities, in_process, write_plan
from tiny_models import build_checkpoint

from llmcompress.runner import run_plan
from llmcompress.spec.plan import load_plan

RECIPES = """
recipes:
  - none
  - int8
  - recipe: int4
    set: {weights.group_size: 32}
"""


def killed_when(condition: Callable[[], bool], *arguments: str | Path, cache: Path) -> None:
    """Run the command line and kill all of it (SIGKILL) as soon as the condition holds."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(LLMCOMPRESS_CACHE=cache),
        start_new_session=True,
    )
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # A worker holds its locks until its memory is given back.
    while _group(process.pid):
        time.sleep(0.05)


def run(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(LLMCOMPRESS_CACHE=cache), timeout=600
    )


def test_killed_in_the_middle_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_checkpoint(tmp_path / "llama", num_hidden_layers=1)
    plan = write_plan(tmp_path / "plan.yaml", f"output: out\nmodels: [llama]\n{RECIPES}")
    output = tmp_path / "out"
    first = output / "llama" / "none"
    killed_when(first.exists, "run", plan, cache=tmp_path / "cache")
    assert not (output / "llama" / "int4").exists()
    before = identities(first)

    in_process(monkeypatch)
    report = run_plan(load_plan(plan))
    assert identities(first) == before
    assert not [path for path in (output / "llama").iterdir() if path.name.startswith(".")]
    assert [(row.made, row.kept) for row in report.rows] == [((), ("compress",)), *[(("compress",), ())] * 2]
    assert run_plan(load_plan(plan), output_dir=tmp_path / "undisturbed").exit_code == 0
    assert artifact_bytes(output) == artifact_bytes(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_models_killed_again_and_again(tmp_path: Path, ref_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between artifacts, and while one is evaluated."""
    build_checkpoint(tmp_path / "llama", num_hidden_layers=1)
    build_checkpoint(tmp_path / "qwen", "qwen2", num_hidden_layers=1, seed=1)
    (tmp_path / "text.txt").write_text("\n\n".join(f"Sentence {number} of a plain text." for number in range(300)))
    text = f"""
output: out
models:
  - llama
  - source: qwen
    overrides: {{awq: {{calibration.num_samples: 90000}}}}
  - source: {ref_model}
    name: ref
    overrides: {{int4: {{weights.group_size: 48, weights.group_size_fallback: error}}}}
{RECIPES}
  - int8-sym
  - recipe: nf4
    set: {{weights.group_size: 32}}
  - recipe: int4-awq
    name: awq
    set: {{weights.group_size: 32, calibration: {{dataset: text.txt, num_samples: 4, seq_len: 32}}}}
evaluation: {{dataset: text.txt, seq_len: 64, num_windows: 2}}
"""
    plan = write_plan(tmp_path / "plan.yaml", text)
    output, cache = tmp_path / "out", tmp_path / "cache"
    for path in ("llama/int8", "llama/int8/eval.json", "qwen/int4"):
        killed_when((output / path).exists, "run", plan, cache=cache)
    killed_when((output / "ref").exists, "run", plan, cache=cache)
    done = run("run", plan, cache=cache)
    assert done.returncode == 4, done.stderr
    assert "2 of 18 jobs failed; the first: qwen/awq" in done.stderr
    assert re.search(r"ref/none +done +compress, evaluate", done.stdout)
    assert re.search(r"llama/int8 +was done +compress, evaluate", done.stdout)
    assert re.search(r"\d\d:\d\d:\d\d \[\d+/\d+\] ref: compress: begins on .+", done.stderr)
    assert re.search(r"ref/int8: evaluate: done in .+", done.stderr)
    again = run("run", plan, cache=cache)
    assert again.returncode == 4
    assert again.stdout.count("was done") == 16

    in_process(monkeypatch)
    compressed = load_plan(plan).model_copy(update={"evaluation": None})
    assert run_plan(compressed, output_dir=tmp_path / "undisturbed").exit_code == 4
    assert artifact_bytes(output) == artifact_bytes(tmp_path / "undisturbed")
    reports = sorted(path.relative_to(output).as_posix() for path in output.glob("*/*/*.json") if "eval" in path.name)
    assert len(reports) == 16
