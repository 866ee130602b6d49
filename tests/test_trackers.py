"""The figures of eval.json and bench.json in experiment trackers: two of them for real, two by fakes of their calls."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import EVALUATION, SPEED

import llmcompress
from llmcompress.cli import run
from llmcompress.errors import ResourceError, UsageError, WriteError
from llmcompress.publishing.trackers import figures, log_figures
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.evaluation import BackendRecord, Check, DamagePart, EvalReport, GateRecord, TaskScore

VARIABLES = ("MLFLOW_", "TRACKIO_", "WANDB_", "TENSORBOARD_")
FAKE = """
import json, os
from contextlib import contextmanager
from types import SimpleNamespace

def note(call, *arguments, **options):
    with open(os.environ["CALLS"], "a") as stream:
        stream.write(json.dumps([call, [*arguments], options]) + "\\n")
    print("to stdout")
"""
MLFLOW = """
def set_experiment(name): note("set_experiment", name)
def active_run(): return None
def log_params(params): note("log_params", params)
def log_metrics(metrics): note("log_metrics", metrics)
def get_tracking_uri(): return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:////there/mlflow.db"

@contextmanager
def start_run(run_name=None, nested=False):
    note("start_run", run_name=run_name, nested=nested)
    yield
    note("end_run")
"""
WANDB = """
def Settings(silent, console): return {"silent": silent, "console": console}

def init(project, name, config, mode, reinit, settings):
    note("init", project=project, name=name, config=config, mode=mode, reinit=reinit, settings=settings)
    return SimpleNamespace(
        log=lambda numbers: note("log", numbers), finish=lambda: note("finish"), dir="/there/offline-run/files"
    )
"""
TRACKIO = """
from huggingface_hub import constants

def init(**options):
    note("init", offline=constants.HF_HUB_OFFLINE, **options)
    return SimpleNamespace(log=lambda numbers: note("log", numbers))

def finish(): note("finish")
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fakes in place of the trackers; returns what was called."""
    codes = {"mlflow": FAKE + MLFLOW, "sqlalchemy": "", "alembic": "", "wandb": FAKE + WANDB}
    codes |= {"trackio": FAKE + TRACKIO, "trackio.utils": 'TRACKIO_DIR = "/there/trackio"'}
    (tmp_path / "trackio").mkdir()
    for name, code in codes.items():
        file = "trackio/__init__" if name == "trackio" else name.replace(".", "/")
        (tmp_path / f"{file}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        # Set by what is tested: to be put back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    for name in codes:
        sys.modules.pop(name, None)


def with_parts() -> EvalReport:
    """Both backends, a part of the damage, and a task."""
    found = EVALUATION.divergence
    assert found is not None
    lost = found.kl_divergence.model_copy(update={"value": 0.25, "low": 0.2, "high": 0.3})
    backends = tuple(
        BackendRecord(
            backend=backend,
            properties={},
            perplexity=EVALUATION.model.perplexity,
            divergence=found.model_copy(update={"kl_divergence": lost}) if backend == "paged" else found,
        )
        for backend in ("stateful", "paged")
    )
    part = DamagePart(
        part="weights", properties={}, kl_divergence=lost, top1_agreement=lost, log_perplexity_change=lost
    )
    score = TaskScore(task="arc_easy", metric="acc,none", value=0.5, standard_error=None, num_samples=10, version="1")
    return EVALUATION.model_copy(update={"backends": backends, "split_damage": (part,), "tasks": (score,)})


def test_numbers_have_their_places_in_the_report() -> None:
    found = figures(with_parts(), name="tiny-int4")
    assert found.name == "tiny-int4 eval"
    assert found.numbers["backends/paged/divergence/kl_divergence"] == 0.25
    assert found.numbers["backends/paged/divergence/kl_divergence_low"] == 0.2
    assert found.numbers["split_damage/weights/kl_divergence_high"] == 0.3
    assert found.numbers["tasks/arc_easy/acc_none/value"] == 0.5
    expected = EVALUATION.model.perplexity.perplexity.value
    assert found.numbers["backends/stateful/perplexity/perplexity"] == expected
    assert not [place for place in found.numbers if place.startswith(("model/", "divergence/"))]
    assert figures(EVALUATION).numbers["model/perplexity/perplexity"] == expected


def test_settings_say_what_was_measured_and_hold_no_local_path() -> None:
    found = figures(EVALUATION)
    assert found.settings["dataset"] == EVALUATION.text.dataset
    assert found.settings["verdict"] == EVALUATION.verdict
    assert found.settings["seq_len"] == str(EVALUATION.spec.seq_len)
    assert found.settings["cpu"] == EVALUATION.environment.cpu
    assert "stride" not in found.settings


def test_each_shape_of_a_benchmark_has_its_own_figures() -> None:
    found = figures(SPEED)
    case = SPEED.cases[0]
    assert found.name == f"{SPEED.source} bench"
    place = f"cases/CPU/{case.prompt_tokens}_{case.new_tokens}"
    assert found.numbers[f"{place}/ttft_s/p50"] == case.ttft_s.p50
    assert found.numbers["peak_rss_bytes"] == SPEED.peak_rss_bytes
    assert found.settings["prompt_tokens"] == ",".join(map(str, SPEED.spec.prompt_tokens))
    threaded = SPEED.model_copy(update={"cases": (case.model_copy(update={"threads": 4, "batch_size": 2}),)})
    place = f"cases/CPU_4_threads/2_x_{case.prompt_tokens}_{case.new_tokens}"
    assert f"{place}/prefill_tokens_per_s/mean" in figures(threaded).numbers


LOGGING = """
import socket, sys
def refuse(*arguments, **options):
    sys.stderr.write("network: " + repr(arguments) + "\\n")
    raise OSError("no network")
socket.getaddrinfo = refuse
from pathlib import Path
from llmcompress import log_figures
from llmcompress.report.{module} import {record}
print(log_figures({record}.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2], name="tiny-int4"))
"""


def logged(report: EvalReport | BenchReport, tracker: str, folder: Path, **variables: str) -> str:
    """Log in a process of its own, as trackers read their variables when they are imported; says the place."""
    module = "evaluation" if isinstance(report, EvalReport) else "benchmark"
    (folder / "report.json").write_text(report.model_dump_json())
    program = LOGGING.format(module=module, record=type(report).__name__)
    done = subprocess.run(
        [sys.executable, "-c", program, "report.json", tracker],
        env={**os.environ, "HF_TOKEN": "hf_none", **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "network" not in done.stderr
    (place,) = done.stdout.splitlines()
    return place


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
@pytest.mark.parametrize("report", [with_parts(), SPEED], ids=["eval", "bench"])
def test_trackio_has_the_figures_where_its_variable_says_and_asks_nobody(
    report: EvalReport | BenchReport, tmp_path: Path
) -> None:
    assert logged(report, "trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "runs")) == str(tmp_path / "runs")
    found = figures(report, name="tiny-int4")
    with sqlite3.connect(tmp_path / "runs" / "llmcompress.db") as database:
        ((name, numbers),) = database.execute("SELECT run_name, metrics FROM metrics").fetchall()
        ((settings,),) = database.execute("SELECT config FROM configs").fetchall()
    assert name == found.name
    assert json.loads(numbers) == pytest.approx(found.numbers)
    assert json.loads(settings).items() >= found.settings.items()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.parametrize(
    ("report", "variables"), [(with_parts(), {}), (SPEED, {"TENSORBOARD_LOGGING_DIR": "boards"})], ids=["eval", "bench"]
)
def test_tensorboard_has_the_figures_where_its_variable_says(
    report: EvalReport | BenchReport, variables: dict[str, str], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = Path(logged(report, "tensorboard", tmp_path, **variables))
    found = figures(report, name="tiny-int4")
    assert place.parent == Path(variables.get("TENSORBOARD_LOGGING_DIR", "runs"))
    assert place.name.startswith(found.name.replace(" ", "_"))
    read = EventAccumulator(str(tmp_path / place)).Reload()
    numbers = {tag: read.Scalars(tag)[0].value for tag in read.Tags()["scalars"]}
    assert numbers == pytest.approx(found.numbers, rel=1e-6)
    text = read.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| model | tiny-int4 |" in text


def test_mlflow_gets_a_run_of_the_experiment(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(EVALUATION, name="tiny-int4")
    assert log_figures(EVALUATION, "mlflow", name="tiny-int4") == Path("/there/mlflow.db")
    assert calls() == [
        ["set_experiment", ["llmcompress"], {}],
        ["start_run", [], {"run_name": "tiny-int4 eval", "nested": False}],
        ["log_params", [found.settings], {}],
        ["log_metrics", [found.numbers], {}],
        ["end_run", [], {}],
    ]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@example.com")
    assert log_figures(EVALUATION, "mlflow") is None
    assert [call for call, _, _ in calls()].count("set_experiment") == 1


def test_wandb_stays_offline_unless_its_mode_says_otherwise(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(SPEED, name="tiny-int4")
    assert log_figures(SPEED, "wandb", name="tiny-int4") == Path("/there/offline-run")
    settings = {"silent": True, "console": "off"}
    options = {"name": "tiny-int4 bench", "config": found.settings, "reinit": "create_new", "settings": settings}
    assert calls() == [
        ["init", [], {"project": "llmcompress", "mode": "offline", **options}],
        ["log", [found.numbers], {}],
        ["finish", [], {}],
    ]
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log_figures(SPEED, "wandb")
    assert calls()[3][2]["mode"] is None
    assert calls()[3][2]["project"] == "mine"


def test_trackio_asks_the_hub_only_where_its_variables_send_the_run(
    calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = figures(SPEED)
    assert log_figures(SPEED, "trackio") == Path("/there/trackio")
    options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    assert calls() == [
        [
            "init",
            [],
            {"offline": True, "project": "llmcompress", "name": found.name, "config": found.settings} | options,
        ],
        ["log", [found.numbers], {}],
        ["finish", [], {}],
    ]
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    assert log_figures(SPEED, "trackio") is None
    assert calls()[3][2]["offline"] is False


def test_the_python_call_is_public() -> None:
    assert llmcompress.log_figures is log_figures


def test_a_tracker_that_is_not_known_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"`tracker`: got 'neptune'; accepted: mlflow, trackio, wandb, tensorboard"):
        log_figures(SPEED, "neptune")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "alembic" else object())
    with pytest.raises(ResourceError) as caught:
        log_figures(SPEED, "mlflow")
    assert caught.value.message == "alembic is not installed, and figures for mlflow need it"
    assert caught.value.hint == 'pip install "llmcompress[mlflow]"'


def test_a_tracker_that_fails_is_named(calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wandb.py").write_text("raise RuntimeError('two\\nlines')")
    with pytest.raises(WriteError) as caught:
        log_figures(SPEED, "wandb")
    assert caught.value.where == "wandb"
    assert caught.value.message == "it did not take the figures: RuntimeError: two lines"
    assert caught.value.hint.startswith("the report itself is complete")


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_the_command_line_refuses_before_the_slow_part(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmcompress.system.process.run_supervised", lambda *arguments, **options: 1 / 0)
    assert run([command, "some/model", "--log-to", "neptune"]) == 2
    assert "--log-to: got 'neptune'; accepted: mlflow, trackio" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run([command, "some/model", "--log-to", "trackio"]) == 3
    error = capsys.readouterr().err
    assert error == (
        'error: trackio is not installed, and figures for trackio need it\nhint: pip install "llmcompress[trackio]"\n'
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_the_commands_log_each_report_and_say_where(
    as_json: bool, calls: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, Any] = {"evaluate": EVALUATION, "reference_ir": "there", "benchmark": (SPEED, SPEED)}
    monkeypatch.setattr(
        "llmcompress.system.process.run_supervised", lambda function, *_, **__: answers[function.__name__]
    )
    printed = ["--json"] if as_json else []
    assert run(["eval", "some/tiny", "--log-to", "wandb", *printed]) == 0
    shown = capsys.readouterr().out
    assert run(["bench", "some/tiny", "some/other", "--log-to", "wandb", *printed]) == 0
    shown_after_bench = capsys.readouterr().out
    assert [options["name"] for call, _, options in calls() if call == "init"] == [
        "some/tiny eval", "some/tiny bench", "some/other bench",
    ]  # fmt: skip
    for text, times in ((shown, 1), (shown_after_bench, 2)):
        if as_json:
            json.loads(text)
        else:
            assert text.count("Logged to wandb: /there/offline-run\n") == times


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_goes_before_a_tracker_that_fails_and_both_are_said(
    passed: bool, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no disk')")
    check = Check(name="max_kl", passed=passed, value=0.02, required=0.01, detail="")
    report = EVALUATION.model_copy(update={"gate": GateRecord.model_validate({"passed": passed, "checks": (check,)})})
    monkeypatch.setattr("llmcompress.system.process.run_supervised", lambda function, *_, **__: report)
    assert run(["eval", "some/tiny", "--log-to", "wandb"]) == (8 if passed else 7)
    captured = capsys.readouterr()
    refusal = "wandb: it did not take the figures: RuntimeError: no disk"
    if passed:
        assert f"error: {refusal}\n" in captured.err
    else:
        assert f"warning: {refusal}\nerror: some/tiny: the gate is not passed: max_kl: 0.02\n" in captured.err
    assert "KL divergence, nats" in captured.out


def test_a_benchmark_is_printed_whole_before_a_tracker_fails(
    calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no disk')")
    answers: dict[str, Any] = {"reference_ir": "there", "benchmark": (SPEED,)}
    monkeypatch.setattr(
        "llmcompress.system.process.run_supervised", lambda function, *_, **__: answers[function.__name__]
    )
    assert run(["bench", "some/tiny", "--log-to", "wandb"]) == 8
    captured = capsys.readouterr()
    assert "900 MB" in captured.out
    assert captured.err.startswith("error: wandb: it did not take the figures")
