import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from terminal_fixture import received_from

import llmcompress.system.process
from llmcompress.cli import run
from llmcompress.cli.compress import default_output_name
from llmcompress.cli.dry_run import forecast_source
from llmcompress.cli.progress import watching
from llmcompress.compression.compress import compress
from llmcompress.compression.request import requested
from llmcompress.errors import HubError, InterruptedRunError, LlmcompressError, ModelError, UsageError
from llmcompress.report.benchmark import BenchCase, BenchReport, Stats, Steadiness
from llmcompress.report.compression import CompressionReport, LayerRecord
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import (
    DivergenceRecord,
    EvalReport,
    GateRecord,
    ModelRecord,
    PerplexityRecord,
    TextRecord,
)
from llmcompress.report.record import EnvironmentRecord, FileRecord, Measured, Provenance, StageTime
from llmcompress.report.text import count_text, duration_text, size_text
from llmcompress.spec import BenchSpec, EvalSpec, Recipe, load_recipe
from llmcompress.system.progress import Progress

ROOT = Path(__file__).parent.parent
COMMANDS = (
    ["compress"],
    ["eval"],
    ["bench"],
    ["compare"],
    ["run"],
    ["cache", "list"],
    ["cache", "prune"],
    ["verify"],
    ["push"],
    ["doctor"],
    ["demo"],
    ["recipes"],
    ["recipes", "show"],
)
Captured = pytest.CaptureFixture[str]


def layer(name: str, mode: str, group_size: int | None, num_parameters: int, size_bytes: int) -> LayerRecord:
    return LayerRecord(
        name=name,
        shape=(num_parameters, 1),
        num_parameters=num_parameters,
        mode=mode,
        group_size=group_size,
        size_bytes=size_bytes,
    )


REPORT = CompressionReport(
    llmcompress_version="0.1.0",
    provenance=Provenance(
        kind="hub",
        id="some/model",
        revision="0123456789abcdef0123456789abcdef01234567",
        model_type="llama",
        architecture="LlamaForCausalLM",
        dtype="bf16",
        files=(
            FileRecord(path="model.safetensors", size_bytes=2_000_000_000, sha256="a" * 64),
            FileRecord(path="config.json", size_bytes=600, sha256="b" * 64),
        ),
    ),
    recipe=load_recipe("int4"),
    calibration=None,
    environment=EnvironmentRecord(versions={"nncf": "3.4.0"}, cpu="A CPU", num_threads=2, platform="linux-x86_64"),
    num_parameters=1_000_000_000,
    bits_per_weight=4.5,
    size_bytes=560_000_000,
    mapped_share=0.99,
    tokenizer="equal",
    chat_template="not checked",
    layers=(
        layer("a", "int4_asym", 128, 600_000_000, 320_000_000),
        layer("b", "int4_asym", 128, 300_000_000, 160_000_000),
        layer("head", "int8_asym", -1, 99_000_000, 79_000_000),
        layer("norm", "f32", None, 1_000_000, 4_000_000),
    ),
    files=(FileRecord(path="openvino_model.bin", size_bytes=560_000_000, sha256="c" * 64),),
    measured=Measured(
        created="2026-01-01T00:00:00Z",
        duration_s=27.4,
        peak_rss_bytes=3_500_000_000,
        stages=(StageTime(stage="compress weights", duration_s=14.2, peak_rss_bytes=3_400_000_000),),
    ),
)

SURE = Estimate(value=0.02, standard_error=0.001, low=0.018, high=0.022)
MODEL = ModelRecord(
    provenance=REPORT.provenance,
    properties={"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
    perplexity=PerplexityRecord(
        perplexity=Estimate(value=12.5, standard_error=0.1, low=12.3, high=12.7),
        nll=Estimate(value=2.526, standard_error=0.01, low=2.5, high=2.55),
    ),
)
EVALUATION = EvalReport(
    llmcompress_version="0.1.0",
    spec=EvalSpec(dataset="text.txt", seq_len=256),
    chunk=64,
    text=TextRecord(
        dataset="text.txt",
        num_documents=1,
        num_windows=8,
        num_clusters=8,
        num_scored_tokens=1016,
        token_ids_sha256="d" * 64,
    ),
    model=MODEL,
    reference=MODEL,
    property_differences={"KV_CACHE_PRECISION": ("u8", "f16")},
    divergence=DivergenceRecord(
        exact=True,
        kl_divergence=SURE,
        kl_median=0.01,
        kl_p90=0.03,
        kl_p99=0.1,
        kl_p999=0.2,
        kl_max=0.3,
        top1_agreement=Estimate(value=0.9, standard_error=0.01, low=0.88, high=0.92),
        log_perplexity_change=SURE,
        perplexity_ratio=SURE,
        rms_probability_change=0.012,
    ),
    verdict="worse",
    gate=GateRecord(status="no_thresholds", passed=None, checks=()),
    environment=REPORT.environment,
    measured=REPORT.measured,
    scored_tokens_per_s=500.0,
)

RATE = Stats(values=(20.0,), mean=20.0, std=0.0, p50=20.0, p90=20.0, p99=20.0)
SPEED = BenchReport(
    llmcompress_version="0.1.0",
    spec=BenchSpec(),
    source="model",
    manifest_sha256=None,
    size_bytes=560_000_000,
    settings=(),
    cases=(
        BenchCase(
            device="CPU",
            threads=None,
            batch_size=1,
            depth=0,
            prompt_tokens=512,
            new_tokens=128,
            ttft_s=RATE,
            prefill_tokens_per_s=RATE,
            tpot_s=RATE,
            decode_tokens_per_s=RATE,
            energy_j_per_token=None,
            roofline=None,
        ),
    ),
    peak_rss_bytes=900_000_000,
    steady_rss_bytes=800_000_000,
    compared_with=None,
    ratios=(),
    steadiness=Steadiness(load_before=None, load_after=None, frequency_mhz=None, temperature_c=None),
    environment=REPORT.environment,
    measured=REPORT.measured,
)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Answer every call of the supervisor with REPORT, and keep what it was called with."""
    calls: list[dict[str, Any]] = []

    def answer(function: Callable[..., object], kwargs: Any, **others: Any) -> object:
        calls.append({"function": function, **found_out(kwargs)})
        others["progress"](Progress("compress weights", 1, 2))
        return REPORT

    monkeypatch.setattr(llmcompress.system.process, "run_supervised", answer)
    return calls


def found_out(kwargs: Any) -> dict[str, Any]:
    """What a worker is called with; it may be found out while the worker starts."""
    found: dict[str, Any] = kwargs() if callable(kwargs) else kwargs
    return found


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: Any, **options: Any) -> object:
        raise error

    monkeypatch.setattr(llmcompress.system.process, "run_supervised", fail)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmcompress", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def test_help_imports_only_the_terminal() -> None:
    program = (
        "import sys; from llmcompress.cli import run; code = run(['compress', '--help'])\n"
        "sys.stderr.write(' '.join({name.split('.')[0] for name, module in sys.modules.items() if module}))\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    imported = set(done.stderr.split())
    assert "typer" in imported
    heavy = {"torch", "transformers", "openvino", "nncf", "optimum", "datasets", "numpy", "pyarrow", "huggingface_hub"}
    assert imported & (heavy | {"pydantic", "psutil", "tokenizers", "safetensors", "accelerate", "yaml"}) == set()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_one_sentence_and_examples_that_fit(
    command: list[str], width: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run([*command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    examples = [line.strip() for line in lines if line.startswith(" llmcompress ")]
    assert examples
    assert all(example.startswith("llmcompress " + " ".join(command)) for example in examples)
    sentence = lines[3:][: lines[3:].index(next(line for line in lines[3:] if not line.strip()))]
    assert " ".join(line.strip() for line in sentence).count(".") == 1
    assert sentence[-1].strip().endswith(".")


def test_no_command_shows_what_there_is(capsys: Captured) -> None:
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(command[0] in shown for command in COMMANDS)


def test_version(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"llmcompress \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["compres"], "llmcompress: no such command 'compres'", "llmcompress --help"),
        (["compress", "-r", "int4"], "llmcompress compress: missing argument 'SOURCE'", "llmcompress compress --help"),
        (["compress", "x"], "llmcompress compress: missing option '--recipe' / '-r'", "llmcompress compress --help"),
        (
            ["compress", "x", "-r", "int4", "--st"],
            "llmcompress compress: no such option '--st'",
            "llmcompress compress --help",
        ),
        (["verify"], "llmcompress verify: missing argument 'DIR'", "llmcompress verify --help"),
    ],
)
def test_usage_errors_have_the_same_form_and_end_with_2(
    arguments: list[str], message: str, hint: str, capsys: Captured
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert captured.out == ""
    assert first.startswith(f"error: {message}")
    assert second == f"hint: {hint}"


def test_a_recipe_error_comes_before_anything_slow(worker: list[dict[str, Any]], capsys: Captured) -> None:
    assert run(["compress", "some/model", "-r", "int4", "--set", "weights.group_sise=64"]) == 2
    assert "did you mean group_size" in capsys.readouterr().err
    assert worker == []


@pytest.mark.parametrize(
    "error",
    [ModelError("has NaN", where="model.safetensors", hint="--allow-nonfinite goes on"), HubError("is not reachable")],
)
def test_our_errors_are_one_line_what_and_one_line_what_to_do(
    error: LlmcompressError, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    raising(monkeypatch, error)
    assert run(["compress", "some/model", "-r", "int4"]) == error.exit_code
    where = f"{error.where}: " if error.where else ""
    hint = f"hint: {error.hint}\n" if error.hint else ""
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {where}{error.message}\n{hint}")


@pytest.mark.parametrize(
    ("arguments", "text", "printed"),
    [
        (
            ["eval", "x"],
            "`split_damage` and `num_generations` of `source`",
            "--split-damage and --generations of SOURCE",
        ),
        (
            ["eval", "x"],
            "take `reference_scores='exact'`, `noise_floor=True`",
            "take --reference-scores exact, --noise-floor",
        ),
        (["compress", "x", "-r", "int4"], "`overrides` a.b, or `tokenizer=False`", "--set a.b, or --no-tokenizer"),
        (
            ["compress", "x", "-r", "int4"],
            "`split_damage`, `hf auth login`, `x=1`",
            "`split_damage`, `hf auth login`, `x=1`",
        ),
        (["tune", "x"], "`budget_s` and `workloads`", "--budget and --workload"),
        (["bench", "x"], "`batch_sizes` on `devices`", "--batch-size on --device"),
    ],
)
def test_a_parameter_in_backticks_is_printed_as_its_flag(
    arguments: list[str], text: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    raising(monkeypatch, UsageError(text, where=text, hint=text))
    assert run(arguments) == 2
    assert capsys.readouterr().err == f"error: {printed}: {printed}\nhint: {printed}\n"


def test_a_long_error_stays_on_one_line_and_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    raising(monkeypatch, ModelError("[red]tensor[/red] " * 20))
    assert run(["compress", "some/model", "-r", "int4"]) == 4
    assert capsys.readouterr().err == f"error: {'[red]tensor[/red] ' * 20}\n"


def test_an_interruption_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    stopped = InterruptedRunError("interrupted by SIGTERM; nothing was left behind")
    stopped.exit_code = 143
    raising(monkeypatch, stopped)
    assert run(["compress", "some/model", "-r", "int4"]) == 143
    raising(monkeypatch, KeyboardInterrupt())
    assert run(["compress", "some/model", "-r", "int4"]) == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: interrupted by Ctrl-C",
        "hint: run the same command again",
    ]


def test_an_unexpected_error_is_one_line_and_a_traceback_only_with_v(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    raising(monkeypatch, ZeroDivisionError("by zero\nsecond line"))
    assert run(["compress", "some/model", "-r", "int4"]) == 1
    assert capsys.readouterr().err == (
        "error: unexpected ZeroDivisionError: by zero\nhint: run it again with -v for the whole traceback\n"
    )
    assert run(["compress", "some/model", "-r", "int4", "-v"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("error: unexpected ZeroDivisionError: by zero\n")


def test_a_working_directory_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    raising(monkeypatch, FileNotFoundError(2, "No such file or directory"))
    assert run(["compress", "some/model", "-r", "int4"]) == 1
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    capsys.readouterr()
    assert run(["compress", "some/model", "-r", "int4"]) == 2
    said = "error: the working directory is gone\nhint: change to a directory that is there\n"
    assert capsys.readouterr().err == said


def test_memory_that_this_process_does_not_get_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def refused() -> NoReturn:
        raise MemoryError

    monkeypatch.setattr("llmcompress.spec.packaged_recipes", refused)
    assert run(["recipes"]) == 10
    said = "error: an allocation was refused\nhint: free memory or raise the limit (ulimit -v, cgroup)\n"
    assert capsys.readouterr().err == said


def test_the_workers_traceback_is_shown_with_v_only(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    error = ModelError("is broken")
    error.add_note("In the worker:\nTraceback of the worker")
    raising(monkeypatch, error)
    assert run(["compress", "some/model", "-r", "int4"]) == 4
    assert capsys.readouterr().err == "error: is broken\n"
    assert run(["compress", "some/model", "-r", "int4", "-v"]) == 4
    assert capsys.readouterr().err == "In the worker:\nTraceback of the worker\nerror: is broken\n"


def test_every_option_reaches_the_worker(worker: list[dict[str, Any]], tmp_path: Path) -> None:
    arguments = ["some/model", "-r", "int4", "--set", "weights.group_size=64", "-o", str(tmp_path / "out")]
    assert run(["compress", *arguments]) == 0
    flags = ["--revision", "v1", "--trust-remote-code", "--offline", "--overwrite", "--allow-nonfinite"]
    flags += ["--allow-links", "--merge-adapter", "--max-context", "4096", "--requantize", "--file", "a.gguf"]
    flags += ["--save-checkpoint", str(tmp_path / "pruned"), "--no-tokenizer", "--engine", "nncf"]
    flags += ["--no-graph-cache", "--text-only"]
    assert run(["compress", *arguments, *flags]) == 0
    plain, flagged = worker
    assert plain == {
        "function": requested,
        "source": "some/model",
        "recipe": load_recipe("int4", ["weights.group_size=64"]),
        "output_dir": tmp_path / "out",
        "revision": None,
        "trust_remote_code": False,
        "offline": False,
        "overwrite": False,
        "allow_nonfinite": False,
        "allow_links": False,
        "merge_adapter": False,
        "max_context": None,
        "requantize": False,
        "file": None,
        "tokenizer": True,
        "engine": "llmcompress",
        "save_checkpoint": None,
        "graph_cache": None,
        "text_only": False,
    }
    assert isinstance(plain["recipe"], Recipe)
    assert flagged == plain | {
        "revision": "v1",
        "trust_remote_code": True,
        "offline": True,
        "overwrite": True,
        "allow_nonfinite": True,
        "allow_links": True,
        "merge_adapter": True,
        "max_context": 4096,
        "requantize": True,
        "file": "a.gguf",
        "tokenizer": False,
        "engine": "nncf",
        "save_checkpoint": tmp_path / "pruned",
        "graph_cache": False,
        "text_only": True,
    }


def test_the_worker_takes_what_it_is_given() -> None:
    import inspect

    given = {"source", "recipe", "output_dir", "revision", "trust_remote_code", "offline", "overwrite"}
    assert given | {"allow_nonfinite", "tokenizer", "engine", "progress"} <= set(inspect.signature(compress).parameters)


def test_the_output_is_named_after_model_and_recipe(
    worker: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    assert run(["compress", "some/model", "-r", "int4"]) == 0
    assert worker[0]["output_dir"] == tmp_path / "model-int4-ov"
    assert default_output_name("./llama/", "int8") == "llama-int8-ov"
    assert default_output_name(".", "int8") == f"{tmp_path.name}-int8-ov"


def test_the_report_for_people(worker: list[dict[str, Any]], capsys: Captured) -> None:
    assert run(["compress", "some/model", "-r", "int4", "-o", "my out"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    shown = [" ".join(line.split()) for line in captured.out.splitlines()]
    for line in (
        "Model my out (LlamaForCausalLM, 1 B parameters)",
        "Source some/model @ 0123456789ab (bf16)",
        "Size 2 GB -> 560 MB (28%)",
        "Bits per weight 4.50",
        "Tokenizer converted, compared equal",
        "Chat template not compared; that needs openvino-genai: pip install 'llmcompress[genai]'",
        "Time 27 s",
        "Peak memory 3.5 GB",
        "int4_asym 128 2 900 M 90.0% 480 MB",
        "int8_asym per channel 1 99 M 9.9% 79 MB",
        "f32 1 1 M 0.1% 4 MB",
        "Written to my out",
        f"Next: llmcompress eval 'my out' --reference some/model --reference-revision {REPORT.provenance.revision}",
    ):
        assert line in shown
    assert any(line.startswith(f"Recipe int4: {REPORT.recipe.description}"[:40]) for line in shown)
    assert "compress weights" not in captured.out


def test_v_shows_stage_durations(worker: list[dict[str, Any]], capsys: Captured) -> None:
    assert run(["compress", "some/model", "-r", "int4", "-v"]) == 0
    captured = capsys.readouterr()
    assert "compress weights 14 s 3.4 GB" in [" ".join(line.split()) for line in captured.out.splitlines()]
    assert re.fullmatch(r"read the configuration: 0\.0 s\ncompress weights: 0\.0 s\n", captured.err)


def test_json_is_the_record_and_nothing_else(worker: list[dict[str, Any]], capsys: Captured) -> None:
    assert run(["compress", "some/model", "-r", "int4", "--json"]) == 0
    captured = capsys.readouterr()
    assert CompressionReport.model_validate_json(captured.out) == REPORT
    assert json.loads(captured.out) == json.loads(REPORT.model_dump_json())
    assert (captured.err, captured.out.isascii()) == ("", True)


def forecast_of(fits: bool) -> Any:
    from llmcompress.compression.forecast import Forecast, PlannedLayer

    planned = PlannedLayer(
        name="a", shape=(8, 8), num_parameters=64, mode="int4_asym", group_size=-1, size_bytes=5_000_000
    )
    return Forecast(
        num_parameters=1_100_000_000,
        layers=(planned,),
        size_bytes=600_000_000,
        bits_per_weight=4.36,
        mapped_share=1.0,
        peak_rss_bytes=3_500_000_000,
        min_memory_bytes=1_250_000_000,
        disk_bytes=620_000_000,
        available_memory_bytes=8_000_000_000 if fits else 1_000_000_000,
        free_disk_bytes=50_000_000_000,
        fits=fits,
        notes=("the head is tied to the embedding",),
    )


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_an_output_that_cannot_be_is_refused_before_any_work(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(
        llmcompress.system.process, "run_supervised", lambda function, kwargs, **others: found_out(kwargs) and 1 / 0
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    for name, exit_code, message in (
        ("mine", 2, "exists, and is no llmcompress artifact (it has no llmcompress.json): it is left as it is"),
        ("x" * 300, 8, "File name too long"),
    ):
        assert run(["compress", "some/model", "-r", "int4", "-o", str(tmp_path / name), *options]) == exit_code
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("fits", [True, False])
def test_a_dry_run_predicts_and_says_whether_it_fits(
    fits: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    forecast, calls = forecast_of(fits), []
    monkeypatch.setattr(
        llmcompress.system.process,
        "run_supervised",
        lambda function, kwargs, **others: calls.append((function, kwargs["output_dir"])) or forecast,
    )
    assert run(["compress", "some/model", "-r", "int4", "-o", "/there/out", "--dry-run"]) == (0 if fits else 3)
    captured = capsys.readouterr()
    shown = [" ".join(line.split()) for line in captured.out.splitlines()]
    need = "1.25 GB of 8 GB free" if fits else "1.25 GB of 1 GB free NOT ENOUGH"
    for line in (
        "Source some/model (1.1 B parameters)",
        "Size 600 MB (4.36 bits per weight)",
        f"Memory {need}; peak 3.5 GB with mapped files",
        "Disk 620 MB of 50 GB free",
        "int4_asym per channel 1 64 100.0% 5 MB",
        "note: the head is tied to the embedding",
    ):
        assert line in shown
    assert calls == [(forecast_source, Path("/there/out"))]
    if not fits:
        assert captured.err.startswith(
            "error: some/model: this machine has not enough free memory or disk for it\nhint: "
        )
    assert run(["compress", "some/model", "-r", "int4", "--dry-run", "--json"]) == (0 if fits else 3)
    assert json.loads(capsys.readouterr().out) == forecast.model_dump(mode="json")


def test_recipes_lists_each_with_when_to_take_it(capsys: Captured) -> None:
    assert run(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert run(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"none", "int8", "int4", "int4-awq-se"} <= {recipe["name"] for recipe in listed}
    rows = [line.split()[0] for line in shown.splitlines() if line[:1].isalpha()]
    assert rows[1:4] == ["int4", "int4-awq-se", "int4-awq"]
    assert rows.index("none") > max(rows.index(recipe["name"]) for recipe in listed if recipe["name"] != "none")
    assert "Recommended to begin with: int4;" in shown
    for recipe in listed:
        assert re.search(rf"^{recipe['name']} +{re.escape(recipe['description'][:30])}", shown, re.MULTILINE)


def test_recipes_show_prints_a_file_that_loads_as_the_same_recipe(tmp_path: Path, capsys: Captured) -> None:
    assert run(["recipes", "show", "int4", "--set", "weights.group_size=64"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("int4", ["weights.group_size=64"])
    assert run(["recipes", "show", str(tmp_path / "mine.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["group_size"] == 64


def test_verify_names_each_deviation_and_ends_with_4(tmp_path: Path, capsys: Captured) -> None:
    import hashlib

    weights = b"weights"
    record = FileRecord(path="openvino_model.bin", size_bytes=7, sha256=hashlib.sha256(weights).hexdigest())
    manifest = REPORT.model_copy(update={"files": (record,), "size_bytes": 7})
    (tmp_path / "llmcompress.json").write_text(manifest.model_dump_json())
    (tmp_path / "openvino_model.bin").write_bytes(weights)
    assert run(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 1 files, all as the manifest says\n"

    (tmp_path / "openvino_model.bin").write_bytes(b"weightS")
    assert run(["verify", str(tmp_path)]) == 4
    captured = capsys.readouterr()
    assert captured.out.startswith("openvino_model.bin: has other content")
    assert captured.err.startswith(f"error: {tmp_path}: 1 deviation from its manifest\nhint: ")
    assert run(["verify", str(tmp_path), "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], len(document["problems"])) == (False, 1)


def test_doctor_shows_its_findings_and_ends_with_3(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import llmcompress.cli.doctor
    from llmcompress.cli.doctor import DeviceFound, Diagnosis, Disk, DoctorFinding, PackageVersion

    sound = Diagnosis(
        platform="linux-x86_64",
        python="3.11.7",
        cpu="A CPU",
        num_cores=2,
        cpu_features=("avx2",),
        devices=(DeviceFound(name="CPU", full_name="A CPU", capabilities=("INT8",)),),
        packages=(PackageVersion(name="nncf", installed="3.5.0", tested="3.4.0"),),
        has_tested_set=True,
        memory_bytes=8_000_000_000,
        memory_limit_bytes=8_000_000_000,
        available_memory_bytes=6_000_000_000,
        swap_bytes=0,
        disks=(Disk(use="Hugging Face cache", path="/cache", free_bytes=10**12),),
        hf_home="/cache",
        findings=(),
    )
    broken = DoctorFinding(message="torchvision was built for another torch", hint="pip install it again", broken=True)
    monkeypatch.setattr(llmcompress.cli.doctor, "diagnose", lambda progress: sound)
    assert run(["doctor"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "Memory 6 GB free of 8 GB (limit of the control group), no swap",
        "Hugging Face cache /cache (1,000 GB free)",
        "Device CPU A CPU (INT8)",
        "nncf 3.5.0 3.4.0 (differs)",
        "No broken combination was found.",
    ):
        assert line in shown
    sick = sound.model_copy(update={"findings": (broken, broken.model_copy(update={"message": "another"}))})
    monkeypatch.setattr(llmcompress.cli.doctor, "diagnose", lambda progress: sick)
    assert run(["doctor"]) == 3
    captured = capsys.readouterr()
    assert "broken: torchvision was built for another torch\nhint: pip install it again\n" in captured.out
    assert captured.err == (
        "error: doctor: torchvision was built for another torch, and 1 more above\nhint: pip install it again\n"
    )
    assert run(["doctor", "--json"]) == 3
    assert Diagnosis.model_validate_json(capsys.readouterr().out) == sick


def test_json_has_no_nan(capsys: Captured) -> None:
    from llmcompress.cli.console import print_json

    print_json(Estimate(value=float("nan"), standard_error=None, low=None, high=float("inf")))
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "value": "NaN",
        "standard_error": None,
        "low": None,
        "high": "Infinity",
    }


def test_the_demo_shows_sizes_weights_and_answers(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    from llmcompress.cli.demo import DemoReport, DemoVariant

    variants = [
        DemoVariant(
            directory=f"/x/{name}",
            report=REPORT,
            evaluation=EVALUATION,
            speed=SPEED,
            answer=f"[b]{name}[/b]",
            num_generated_tokens=3,
            stopped=True,
        )
        for name in ("none", "int4")
    ]
    report = DemoReport(prompt="What is it?", variants=tuple(variants))
    monkeypatch.setattr(llmcompress.system.process, "run_supervised", lambda function, kwargs, **others: report)
    assert run(["demo", "-o", "there"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "int4 560 MB 4.50 27 s 12.5 0.02 90.0% 20.0 ± 0.0 900 MB worse",
        "Measured on 1,016 tokens of held-out text through the OpenVINO runtime.",
        "int8_asym per channel 1 99 M 9.9% 79 MB",
        "Question: What is it?",
        "int4: [b]none[/b]",
        "int4: [b]int4[/b]",
    ):
        assert line in shown
    (told,) = [line for line in shown if line.startswith("Next: ")]
    assert told.startswith("Next: llmcompress eval there/int4 --reference there/none --dataset ")
    assert run(["demo", "--json"]) == 0
    assert DemoReport.model_validate_json(capsys.readouterr().out) == report


def test_a_reader_that_closes_the_pipe_is_quiet() -> None:
    program = (
        "import sys, time; from llmcompress.cli import run; from llmcompress.cli import console\n"
        "sys.stdin.readline()\n"
        "sys.exit(run(['recipes', '--json']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdin is not None
    child.stdout.close()
    child.stdin.write("go\n")
    child.stdin.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is Linux that has a full device")
@pytest.mark.parametrize(
    ("arguments", "streams", "code", "said"),
    [
        ("recipes", ">/dev/full", 8, "error: stdout: cannot write: No space left on device\nhint: make room there, or"),
        ("recipes", "<&- >&-", 0, ""),
        ("verify .", "2>/dev/full", 4, ""),
        ("verify . --json", "2>&-", 4, ""),
    ],
    ids=["stdout full", "stdout closed", "stderr full", "stderr closed"],
)
def test_streams_that_take_nothing(arguments: str, streams: str, code: int, said: str) -> None:
    shell = f'"{sys.executable}" -m llmcompress {arguments} {streams}'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(said)


def test_an_encoding_without_our_characters_loses_nothing_needed() -> None:
    done = process("recipes", "show", "int4", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    done = process("recipes", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_names_in_an_encoding_without_their_characters_are_escaped() -> None:
    name = "größer, 模型 \U0001f600"
    program = f"import sys, llmcompress.cli as cli; cli.run = lambda _: print({name!r}); sys.argv[1:] = []; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(b'"' + done.stdout.strip() + b'"') == name


def terminal_output(program: str, **environment: str) -> str:
    """Run a program whose stderr is a terminal of 100 columns; return what the terminal received."""
    pty = pytest.importorskip("pty", reason="needs a POSIX pseudo-terminal")
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR", "TERM"}}
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=ROOT,
        env=kept | {"COLUMNS": "100", "TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    received = received_from(ours)
    assert child.wait() == 0
    return received


TWO_STAGES = """
import time
from llmcompress.cli.progress import watching
from llmcompress.system.progress import Progress
with watching(verbose=True) as watch:
    for done in range(5):
        watch.report(Progress("read the weights", done * 10**9, 4 * 10**9, "bytes"))
        time.sleep(0.15)
    watch.log("a library [b]says[/b]")
    watch.report(Progress("save", 0, 0))
    time.sleep(0.5)
"""


def test_bars_on_a_terminal_show_each_stage_done() -> None:
    received = terminal_output(TWO_STAGES)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", received).replace("\r", "\n")
    assert re.search(r"read the weights [━╸╺]+ [123] GB of 4 GB \d\.\d s, \d\.\d s left", last)
    # A stage that is done stays at its own time while the next one runs.
    assert len(set(re.findall(r"✓ read the weights ━+ 4 GB of 4 GB +(\d\.\d) s *\n", last))) == 1
    assert re.search(r"✓ save +━+ +\d\.\d s *\n", last)
    assert "a library [b]says[/b]" in last
    # Colours are there, and not with NO_COLOR; moving the cursor is no colour.
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;5;\d+)m")
    assert colour.search(received)
    assert not colour.search(terminal_output(TWO_STAGES, NO_COLOR="1"))


def test_stages_that_run_side_by_side_or_again_keep_a_bar_each(capsys: Captured) -> None:
    events = [("scan", 1, 4), ("trace", 0, 0), ("scan", 2, 4), ("compress", 0, 1), ("scan", 4, 4), ("compress", 1, 1)]
    with watching(verbose=True) as watch:
        for event in [*events, ("scan", 0, 1), ("scan", 1, 1)]:
            watch.report(Progress(*event))
    stages = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert stages == ["trace", "scan", "compress", "scan"]


def test_a_warning_names_flags_as_an_error_does(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Of a worker, which is read in another thread, and of this process."""
    told = "the adapter is left out; `merge_adapter` merges it, `max_context=8` and `unknown` do not"

    def supervise(function: object, kwargs: object, *, logs: Callable[[str], None], **others: object) -> NoReturn:
        reader = threading.Thread(target=logs, args=(f"warning: model: {told}",))
        reader.start()
        reader.join()
        logging.getLogger("llmcompress.loaders").warning("here: %s", told)
        raise ModelError("`offline` is on")

    monkeypatch.setattr(llmcompress.system.process, "run_supervised", supervise)
    assert run(["compress", "some/model", "-r", "int8"]) == 4
    shown = "the adapter is left out; --merge-adapter merges it, --max-context 8 and `unknown` do not"
    assert capsys.readouterr().err == f"warning: model: {shown}\nwarning: here: {shown}\nerror: --offline is on\n"
    assert not logging.getLogger("llmcompress").handlers


def test_bars_are_silent_in_a_pipe(capsys: Captured) -> None:
    with watching(verbose=False) as watch:
        watch.report(Progress("save", 1, 2))
        watch.log("a line")
    assert capsys.readouterr() == ("", "")
    with watching(verbose=False) as watch:
        watch.log("warning: a word")
    assert capsys.readouterr() == ("", "warning: a word\n")
    with watching(verbose=True) as watch:
        watch.report(Progress("save", 1, 2))
        watch.log("a line")
        watch.report(Progress("hash", 1, 2))
    assert capsys.readouterr() == ("", "a line\nsave: 0.0 s\nhash: 0.0 s\n")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (512, "512 B"), (7_940_000, "7.94 MB"), (1_470_000_000, "1.47 GB"), (560_000_000, "560 MB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


def test_counts_and_durations() -> None:
    assert [count_text(n) for n in (64, 8_130_000, 1_100_000_000)] == ["64", "8.13 M", "1.1 B"]
    assert [duration_text(s) for s in (0.44, 9.94, 27.4, 59.7, 185, 7800)] == [
        "0.4 s",
        "9.9 s",
        "27 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
