"""What a person sees: terminals of 80 and 120 columns, pipes, and quiet runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, environment, running
from push_fixture import TOKEN, make_artifact, make_evaluated
from pydantic import BaseModel
from summary_fixture import write_family, write_model
from terminal_fixture import LLMCOMPRESS, ROWS, Shown, in_terminal
from test_cli import COMMANDS, EVALUATION, REPORT, ROOT, SPEED, SURE

import llmcompress.system.process
from llmcompress.cli import run
from llmcompress.cli.demo import DemoReport, DemoVariant
from llmcompress.cli.doctor import Diagnosis, Disk, PackageVersion
from llmcompress.cli.libraries import DeviceFound, DoctorFinding
from llmcompress.cli.progress import line_interval_s, watching
from llmcompress.errors import UsageError
from llmcompress.report.push import PushedFile, PushReport
from llmcompress.report.tuning import Trial, TuneReport, TuningReference
from llmcompress.runner import Failure, JobResult, Outlook, RunReport
from llmcompress.spec import TuneSpec
from llmcompress.system.progress import Progress

Captured = pytest.CaptureFixture[str]
LONG = "a-model-with-a-long-name-of-its-own-0123456789-int4-group-size-128-awq-scale-estimation-ov"

SHOW = """
import sys
from pathlib import Path
from llmcompress.cli import bench, compression_report, demo, doctor, evaluation_report, push, run_plan, tune
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.push import PushReport
from llmcompress.report.tuning import TuneReport
from llmcompress.runner import Outlook, RunReport
what, name, file = sys.argv[1:]
record, show = {
    "compress": (
        CompressionReport,
        lambda made: compression_report.print_compression(made, "some/model", Path(name), stages=True),
    ),
    "eval": (EvalReport, lambda made: evaluation_report.print_evaluation(made, source=name, stages=True)),
    "bench": (BenchReport, lambda made: bench.print_reports([made.model_copy(update={"source": name})], "table")),
    "tune": (TuneReport, tune.print_tuning),
    "run": (RunReport, run_plan.print_run),
    "run --dry-run": (Outlook, lambda made: run_plan.print_outlook([made, made])),
    "doctor": (doctor.Diagnosis, doctor._print),
    "demo": (demo.DemoReport, lambda made: demo._print(made, Path(name))),
    "push": (PushReport, push.print_push),
}[what]
show(record.model_validate_json(Path(file).read_bytes()))
"""


def wide(command: Sequence[str | Path]) -> list[str]:
    """The lines that a command writes to a pipe that is as wide as it may be."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "2000"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def words(lines: list[str]) -> set[str]:
    """What stands between spaces and frames."""
    return set(re.sub(r"[^\S\n]|[─━│╭╮╰╯┃]", " ", "\n".join(lines)).split())


LONG_PATH = "a/folder/with/a/name/that/is/long/and/a/file/below/it/whose/name/is/long/too.safetensors.index.json"
PUSHED = PushReport(
    repo_id=f"acme/{LONG}",
    url=f"https://huggingface.co/acme/{LONG}",
    dry_run=True,
    created=True,
    private=True,
    commit=None,
    files=(
        PushedFile(path="openvino_model.bin", size_bytes=560_000_000, state="new"),
        PushedFile(path=LONG_PATH, size_bytes=100, state="changed"),
    ),
    deleted=("old.bin",),
    kept=("theirs.txt", "notes.md"),
    left_out={"bench.json": "it was measured on other bytes than the directory holds now"},
    forced="the gate was not passed: the mean KL divergence is 0.34 nats, 0.1 are allowed",
    sent_bytes=560_000_100,
    tags=("v1", "v2"),
    card="---\nlicense: mit\n---\n# A model\n\nA card says in whole sentences that are longer than a terminal of 80 "
    "columns is wide what a model is and how it was made, with what evidence, and how it is run.\n",
)
TUNED = TuneReport(
    llmcompress_version="1",
    spec=TuneSpec(dataset="text.txt"),
    source=LONG,
    manifest_sha256="a" * 64,
    device_name="A CPU with a name of its own @ 2.60GHz",
    text=EVALUATION.text,
    reference=TuningReference(itself=True, provenance=EVALUATION.model.provenance, properties={}),
    max_kl=0.001,
    gate=EVALUATION.gate,
    trials=(
        Trial(
            properties={}, status="default", gain=SURE, divergence=EVALUATION.divergence, steady_rss_bytes=900_000_000
        ),
        Trial(
            properties={"KV_CACHE_PRECISION": "u4", "KEY_CACHE_GROUP_SIZE": "32", "VALUE_CACHE_GROUP_SIZE": "32"},
            status="measured",
            gain=SURE,
            divergence=EVALUATION.divergence,
            judgement="worse",
            reason="its KL divergence is above the limit of 0.001 nats a token",
        ),
    ),
    skipped={"SCHEDULING_CORE_TYPE": "this machine has one kind of cores", "NUM_STREAMS=2": "the budget was over"},
    out_of_time=True,
    verification=None,
    chosen={},
    permitted=True,
    reason="no setting was better than the default beyond noise",
    in_model={},
    in_profile={},
    environment=EVALUATION.environment,
    measured=EVALUATION.measured,
)


def _job(model: str, recipe: str, **came_of_it: Any) -> JobResult:
    facts = {"name": f"{model}/{recipe}", "directory": f"sweep/{model}", "made": (), "kept": (), **came_of_it}
    return JobResult(model=model, recipe=recipe, **facts)


RAN = RunReport(
    output="sweep",
    rows=(
        _job(LONG, "int8", made=("compress", "evaluate")),
        _job("model", "int4", kept=("compress", "evaluate", "benchmark")),
        _job(
            "model",
            "int4-npu",
            failure=Failure(
                step="compress",
                error="RecipeError",
                exit_code=2,
                message="the group size 96 does not divide the 256 columns of model.layers.0.mlp.down_proj.weight",
                hint="take another",
            ),
        ),
    ),
)
AHEAD = Outlook(
    name=f"{LONG}/int4",
    directory="sweep/a",
    steps=("compress", "evaluate", "benchmark"),
    reason="its recipe has changed",
    size_bytes=560_000_000,
    min_memory_bytes=3_500_000_000,
    disk_bytes=900_000_000,
    fits=False,
)
SOUND = Diagnosis(
    platform="linux-x86_64",
    python="3.11.7",
    cpu="A CPU with a name of its own @ 2.60GHz",
    num_cores=64,
    cpu_features=("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    devices=(
        DeviceFound(
            name="GPU.0",
            full_name="Intel(R) Graphics of some generation (iGPU)",
            capabilities=("BIN", "EXPORT_IMPORT", "FP16", "FP32", "GPU_HW_MATMUL", "INT8", "GPU_USM_MEMORY"),
        ),
    ),
    packages=(
        PackageVersion(name="openvino", installed="2026.4.1", tested="2026.4.1"),
        PackageVersion(name="torch", installed="2.15.0+cpu.with.a.local.version", tested="2.15.0"),
        PackageVersion(name="peft", installed=None, tested="0.21.2"),
    ),
    has_tested_set=True,
    memory_bytes=25_300_000_000,
    memory_limit_bytes=25_300_000_000,
    available_memory_bytes=22_100_000_000,
    swap_bytes=0,
    disks=(Disk(use="working directory", path=f"/home/somebody/models/{LONG}", free_bytes=1),),
    hf_home="/home/somebody/.cache/huggingface",
    findings=(
        DoctorFinding(
            message="torchvision 0.29.2 was built for another torch than 2.15.0 (PyPI's torchvision next to a CPU-only "
            "torch, or the reverse) and cannot be imported; neither can what imports it",
            hint="install both from one index: pip install --force-reinstall --no-deps torch torchvision",
        ),
    ),
)
SHOWN_DEMO = DemoReport(
    prompt="What does str.split do?",
    variants=tuple(
        DemoVariant(
            directory=f"llmcompress-demo/{name}",
            report=REPORT,
            evaluation=EVALUATION,
            speed=SPEED,
            answer="It splits the text at each separator and returns a list of the words, which are strings in turn.",
            num_generated_tokens=20,
            stopped=True,
        )
        for name in ("none", "int8")
    ),
)
SHOWN: dict[str, tuple[str, str, BaseModel]] = {
    "compress": ("compress", LONG, REPORT),
    "eval": ("eval", LONG, EVALUATION),
    "bench": ("bench", LONG, SPEED),
    "bench of a short name": ("bench", "model-int4-ov", SPEED),
    "tune": ("tune", "", TUNED),
    "run": ("run", "", RAN),
    "run --dry-run": ("run --dry-run", "", AHEAD),
    "doctor": ("doctor", "", SOUND),
    "demo": ("demo", LONG, SHOWN_DEMO),
    "push": ("push", "", PUSHED),
}


def shows_all(*command: str | Path) -> None:
    """Terminals show each word that a wide pipe is given, and no line that they would have to break."""
    whole = words(wide(command))
    for columns in (80, 120):
        shown = in_terminal(command, columns, cwd=ROOT)
        assert shown.exit_code == 0, shown.text
        assert words(shown.lines) == whole
        # A word or a command that is wider than the terminal is left whole, for whoever copies it.
        assert all(LONG in line or LONG_PATH in line for line in shown.too_long), shown.text


@pytest.mark.parametrize("name", SHOWN)
def test_no_word_of_a_report_is_cut_or_lost(name: str, tmp_path: Path) -> None:
    what, called, record = SHOWN[name]
    file = tmp_path / "record.json"
    file.write_text(record.model_dump_json())
    shows_all(sys.executable, "-c", SHOW, what, called, file)


def test_no_word_of_a_comparison_is_cut_or_lost(tmp_path: Path) -> None:
    family = write_family(tmp_path, [(2000, 10.1, 0.002, 20.0), (1000, 11.0, 0.02, 30.0)])
    models = [*family, write_model(tmp_path / LONG), write_model(tmp_path / "a" / family[0].name)]
    shows_all(*LLMCOMPRESS, "compare", *models)
    # As many next to each other as there is room for, a column each.
    for columns, number in ((80, 2), (120, 3)):
        (heading, *_) = in_terminal([*LLMCOMPRESS, "compare", *family], columns).lines
        assert len(heading.split()) == number


def test_no_word_of_a_list_is_cut_or_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cache that neither grows nor ages by a minute between the two runs.
    (tmp_path / "statistics/aa").mkdir(parents=True)
    (tmp_path / "statistics/aa/file").write_bytes(bytes(1234))
    then = time.time() - 9 * 86_400 - 30
    for path in (tmp_path / "statistics/aa/file", tmp_path / "statistics/aa"):
        os.utime(path, (then, then))
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path))
    shows_all(*LLMCOMPRESS, "cache", "list")
    shows_all(*LLMCOMPRESS, "recipes")


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_what_verify_finds(columns: int, tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / LONG, more={LONG_PATH: b"x"})
    shown = in_terminal([*LLMCOMPRESS, "verify", directory.name], columns, cwd=tmp_path)
    assert (shown.exit_code, " ".join(shown.lines)) == (0, f"{LONG}: 4 files, all as the manifest says")
    (directory / LONG_PATH).write_bytes(b"y")
    (directory / "more.txt").write_bytes(b"")
    shown = in_terminal([*LLMCOMPRESS, "verify", directory.name], columns, cwd=tmp_path)
    assert shown.exit_code == 4
    text = " ".join(shown.lines)
    assert f"{LONG_PATH}: " in text
    assert "more.txt: " in text
    assert f"error: {LONG}: 2 deviations from its manifest hint: compress again with --overwrite, or download" in text
    assert all(LONG in line or LONG_PATH in line for line in shown.too_long), shown.text


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_a_push(columns: int, tmp_path: Path) -> None:
    directory = make_evaluated(tmp_path / "model-int4-ov")
    with running(FakeHub()) as hub:
        command = [*LLMCOMPRESS, "push", directory.name, "acme/model"]
        shown = in_terminal(command, columns, cwd=tmp_path, environment=environment(hub, tmp_path / "hub", TOKEN))
        assert shown.exit_code == 0, shown.text
        (commit,) = [sha for sha, made in hub.repos["acme/model"].commits.items() if made.parent is not None]
        address = f"{hub.url}/acme/model"
    # Each bar once, complete; then the report.
    bars = [line for line in shown.lines if line.startswith("✓")]
    assert [line for line in shown.lines if "━" in line] == bars == shown.lines[: len(bars)]
    stages = [line.split("━")[0].strip("✓ ") for line in bars]
    assert stages == ["verify", "look at the Hub", "upload"]
    report = words(shown.lines[len(bars) :])
    assert {f"{address}/commit/{commit}", address, "Compared", "hash"} <= report
    assert all(address in line for line in shown.too_long), shown.text


def bars_of(program: str, columns: int) -> Shown:
    setup = """
import os, sys, time
from llmcompress.cli.progress import watching
from llmcompress.system.progress import Progress
"""
    return in_terminal([sys.executable, "-c", setup + program], columns, cwd=ROOT)


STOPPED_AMID = """
with watching(verbose=False) as watch:
    watch.report(Progress("applying weight compression to all", 1_234_567, 16_384_000, "tokens"))
    time.sleep(1.2)
    watch.log("warning: " + "a sentence of a warning " * 6)
    watch.report(Progress("applying weight compression to all", 2_234_567, 16_384_000, "tokens"))
    time.sleep(0.5)
    os._exit(0)
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_a_running_bar_and_a_warning_above_it_are_whole(columns: int) -> None:
    shown = bars_of(STOPPED_AMID, columns)
    assert not shown.too_long
    text = " ".join(shown.lines)
    assert "2.23 M of 16.4 M tokens" in text
    assert re.search(r"\d s, \d+ (s|min \d+ s) left", text)
    assert {"applying", "weight", "compression", "to", "all"} <= words(shown.lines)
    assert text.startswith("warning: a sentence of a warning")
    assert words(shown.lines[:2]) <= {"warning:", "a", "sentence", "of", "warning"}


MANY = """
with watching(verbose=False) as watch:
    for number in range(80):
        watch.report(Progress(f"stage {number}", 0, 1))
        if number == 70 and len(sys.argv) > 1:
            time.sleep(0.5)
            os._exit(0)
        watch.report(Progress(f"stage {number}", 1, 1))
        watch.report(Progress(f"stage {number}", 1, 1))
"""


def test_of_more_stages_than_there_are_rows_the_latest_is_seen_and_in_the_end_each_once() -> None:
    shown = bars_of("sys.argv.append('stop')" + MANY, 80)
    assert shown.lines[-1].split()[1:3] == ["stage", "70"]
    assert len(shown.lines) < ROWS
    shown = bars_of(MANY, 80)
    assert [line.split()[2] for line in shown.lines] == [str(number) for number in range(80)]


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


def test_a_table_that_does_not_fit_becomes_records(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(SPEED.model_dump_json())
    columns = in_terminal([sys.executable, "-c", SHOW, "bench", "model", file], 120, cwd=ROOT).lines
    assert any(line.split()[:3] == ["model", "size", "device"] for line in columns)
    records = in_terminal([sys.executable, "-c", SHOW, "bench", LONG, file], 80, cwd=ROOT).lines
    assert records[:3] == [f"model             {LONG}", "size              560 MB", "device            CPU"]


PANELLED = {"compress", "eval", "tune", "card", "push", "run", "chat"}


def test_every_option_but_a_commands_own_few_is_in_a_panel(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in (*COMMANDS, ["tune"], ["chat"], ["card"]):
        assert run([*command, "--help"]) == 0
        panels = re.split(r"╭─ (.*?) ─+╮", capsys.readouterr().out)[1:]
        options = {
            title: re.findall(r"--[a-z0-9-]+", text) for title, text in zip(panels[::2], panels[1::2], strict=True)
        }
        assert {"--quiet", "--help"} <= set(options["Printed"])
        assert len(options.get("Options", ())) <= 5
        if command[0] in PANELLED:
            assert "Options" not in options


@pytest.mark.parametrize("command", [*COMMANDS, ["tune"], ["chat"], ["card"]], ids=" ".join)
def test_an_example_of_the_help_is_one_line_at_80_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shown = {}
    for width in (80, 400):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run([*command, "--help"]) == 0
        text = capsys.readouterr().out
        shown[width] = [line.rstrip() for line in text.splitlines() if line.startswith(f" llmcompress {command[0]}")]
    assert shown[80] == shown[400] != []


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
