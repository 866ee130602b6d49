"""Plans that are run: rows, exit codes, what is redone, and what is left alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from fake_hub import FakeHub, running, use
from plan_fixture import Calls, artifact_bytes, identities, in_process, write_plan
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.cli import run
from llmcompress.errors import (
    InterruptedRunError,
    KilledForMemoryError,
    LlmcompressError,
    RecipeError,
    ResourceError,
    UsageError,
    WriteError,
)
from llmcompress.evaluation import measurement
from llmcompress.loaders import tokenizer
from llmcompress.runner import Event, RunReport, outlook, run_plan
from llmcompress.spec import Gate, Recipe, load_recipe
from llmcompress.spec.plan import load_plan, planned_jobs
from llmcompress.system import process

TEXT = "\n\n".join(
    f"The quick brown fox {number} jumps over the lazy dog, and {number} cats look on." for number in range(300)
)

THREE_BY_SIX = """
output: out
models:
  - llama
  - source: qwen
    overrides: {awq: {calibration.num_samples: 90000}}
  - source: gpt2
    overrides: {int4: {weights.group_size: 48, weights.group_size_fallback: error}}
recipes:
  - none
  - int8
  - int8-sym
  - recipe: int4
    set: {weights.group_size: 32}
  - recipe: nf4
    set: {weights.group_size: 32}
  - recipe: int4-awq
    name: awq
    set: {weights.group_size: 32, calibration: {dataset: text.txt, num_samples: 4, seq_len: 32}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints and a text."""
    place = tmp_path_factory.mktemp("plans")
    build_checkpoint(place / "llama", num_hidden_layers=1)
    build_checkpoint(place / "qwen", "qwen2", num_hidden_layers=1, seed=1)
    build_checkpoint(place / "gpt2", "gpt2", n_layer=1, seed=2)
    (place / "text.txt").write_text(TEXT)
    return place


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return in_process(monkeypatch)


def failures(report: RunReport) -> dict[str, tuple[str, str, int]]:
    return {
        row.name: (row.failure.step, row.failure.error, row.failure.exit_code)
        for row in report.rows
        if row.failure is not None
    }


@pytest.mark.slow
def test_three_models_by_six_recipes_with_two_failures(place: Path, calls: Calls) -> None:
    plan = write_plan(place / "three.yaml", THREE_BY_SIX)
    events: list[Event] = []
    report = run_plan(load_plan(plan), watch=events.append)

    assert len(report.rows) == 18
    assert [row.name for row in report.rows][:7] == [
        "llama/none", "llama/int8", "llama/int8-sym", "llama/int4", "llama/nf4", "llama/awq", "qwen/none",
    ]  # fmt: skip
    assert failures(report) == {
        "qwen/awq": ("compress", "DataError", 4),
        "gpt2/int4": ("compress", "RecipeError", 2),
    }
    assert report.exit_code == 4
    (qwen,) = (row.failure for row in report.rows if row.name == "qwen/awq")
    assert qwen is not None
    assert "90000 were asked for" in qwen.message
    assert "num_samples" in qwen.hint
    # Each model was loaded once, by one worker.
    assert [name for name, _ in calls] == ["survey", "compress_loaded", "compress_loaded", "compress_loaded"]
    assert next(event.text for event in events if event.kind == "failed").startswith("weights.group_size: group size")
    assert events[-1].num_done == events[-1].num_steps == 18

    # Every artifact is what a run of its own makes.
    alone = place / "alone"
    llmcompress.compress(place / "llama", load_recipe("int4", ["weights.group_size=32"]), alone / "llama" / "int4")
    made = artifact_bytes(place / "out")
    assert artifact_bytes(alone).items() <= made.items()
    assert len([name for name in made if name.endswith(".bin") and "model" in name]) == 16

    # The same again does only what failed, and touches nothing else.
    before = identities(place / "out")
    calls.clear()
    again = run_plan(load_plan(plan))
    assert failures(again) == failures(report)
    assert [name for name, _ in calls] == ["survey", "compress_loaded"]
    assert [job.name for job in calls[1][1]["jobs"]] == ["awq"]
    assert identities(place / "out") == before

    # A changed line redoes what it touches.
    write_plan(plan, THREE_BY_SIX.replace("90000", "4").replace("group_size: 48", "group_size: 64"))
    calls.clear()
    mended = run_plan(load_plan(plan))
    assert mended.exit_code == 0
    assert {row.name for row in mended.rows if row.made} == {"qwen/awq", "gpt2/int4"}
    assert all(row.kept == ("compress",) for row in mended.rows if not row.made)
    after = identities(place / "out")
    assert {name for name in after if name not in before} == {
        name for name in after if name.startswith(("qwen/awq/", "gpt2/int4/"))
    }
    assert {name: after[name] for name in before} == before


MEASURED = """
output: measured
models: [llama]
recipes:
  - int8
  - recipe: int4
    set: {weights.group_size: 32}
evaluation: {dataset: own.txt, seq_len: 64, num_windows: 2}
benchmark: {prompt_tokens: [4], new_tokens: [2], repetitions: 1, warmup_runs: 0}
gate: {max_kl: 0.00005}
card: true
push: {repo_id: "me/{model}-{recipe}", private: true}
"""


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Stand-ins for the rooms that write cards and push; the list of what they were asked."""
    asked: list[tuple[object, ...]] = []
    cards, publishing = ModuleType("llmcompress.publishing.card"), ModuleType("llmcompress.publishing")

    def write_card(directory: Path, repo_id: str | None = None) -> None:
        asked.append(("card", directory.name, repo_id))
        (directory / "README.md").write_text(f"card {len(asked)}")

    def push_to_hub(directory: Path, repo_id: str, *, private: bool, progress: None) -> None:
        asked.append(("push", directory.name, repo_id, private))

    cards.write_card = write_card  # type: ignore[attr-defined]
    publishing.push_to_hub = push_to_hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llmcompress.publishing.card", cards)
    monkeypatch.setitem(sys.modules, "llmcompress.publishing", publishing)
    return asked


def test_the_gate_keeps_an_artifact_from_the_hub(
    place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the real card and the real push, to a Hub on loopback."""
    text = """
output: gated
models: [llama]
recipes: [{recipe: int4, set: {weights.group_size: 32}}]
evaluation: {dataset: text.txt, seq_len: 64, num_windows: 2}
gate: {max_kl: 0.00005}
card: true
push: {repo_id: "acme/{model}-{recipe}"}
"""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    plan = write_plan(place / "gated.yaml", text)
    with running(FakeHub()) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        # Without thresholds a push has its own.
        write_plan(plan, text.replace("gate: {max_kl: 0.00005}\n", ""))
        with monkeypatch.context() as stricter:
            stricter.setattr("llmcompress.publishing.gate.WITHOUT_OWN", Gate(max_kl=1e-9))
            report = run_plan(load_plan(plan))
        assert failures(report) == {"llama/int4": ("evaluate", "GateError", 7)}
        assert report.rows[0].failure is not None
        assert "no thresholds are set, and it loses more than a push accepts" in report.rows[0].failure.message
        assert "acme/llama-int4" not in hub.repos
        write_plan(plan, text)
        report = run_plan(load_plan(plan))
        assert failures(report) == {"llama/int4": ("evaluate", "GateError", 7)}
        card = place / "gated" / "llama" / "int4" / "README.md"
        assert "acme/llama-int4" in card.read_text()
        assert "acme/llama-int4" not in hub.repos
        calls.clear()
        # Another threshold is held against the figures that are there.
        write_plan(plan, text.replace("0.00005", "0.5"))
        report = run_plan(load_plan(plan))
        assert [name for name, _ in calls] == ["survey", "judge"]
        assert failures(report) == {}
        assert report.rows[0].made == ("evaluate", "card", "push")
        held = hub.repos["acme/llama-int4"].head.files
        assert {"openvino_model.bin", "llmcompress.json", "eval.json", "README.md"} <= held.keys()
        assert held["README.md"] == card.read_bytes()
        again = run_plan(load_plan(plan))
        assert again.rows[0].made == ()


def test_a_push_of_what_is_never_evaluated_is_refused_before_the_work(place: Path) -> None:
    text = 'output: unjudged\nmodels: [llama]\nrecipes: [int8]\npush: {repo_id: "acme/{model}-{recipe}"}\n'
    (job,) = outlook(load_plan(write_plan(place / "unjudged.yaml", text)))
    assert job.failure is not None
    assert (job.failure.error, job.failure.exit_code) == ("GateError", 7)
    assert job.failure.message.endswith("a push asks for an evaluation, and neither the plan nor the artifact has one")
    assert job.failure.hint == "add evaluation: {}"


@pytest.mark.slow
def test_a_plan_logs_figures_once_and_again_where_the_tracker_failed(
    place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
output: logged
models: [llama]
recipes: [int8]
evaluation: {dataset: text.txt, seq_len: 64, num_windows: 2, backend: stateful}
benchmark: {prompt_tokens: [4], new_tokens: [2], repetitions: 1, warmup_runs: 0}
log_to: tensorboard
"""
    asked: list[tuple[str, str, str | None]] = []
    fails = True

    def log_figures(report: object, tracker: str, *, name: str | None = None) -> None:
        if fails:
            raise WriteError("it did not take the figures", where=tracker)
        asked.append((type(report).__name__, tracker, name))

    monkeypatch.setattr("llmcompress.publishing.trackers.log_figures", log_figures)
    monkeypatch.setattr("llmcompress.runner.survey.require_tracker", lambda tracker: tracker)
    plan = write_plan(place / "logged.yaml", text)
    report = run_plan(load_plan(plan))
    assert report.rows[0].made == ("compress", "evaluate", "benchmark")
    assert failures(report) == {"llama/int8": ("log", "WriteError", 8)}
    # A model that does not pass the gate is that first of all.
    write_plan(plan, text + "gate: {max_kl: 0.000000001}\n")
    assert failures(run_plan(load_plan(plan))) == {"llama/int8": ("evaluate", "GateError", 7)}
    fails = False
    text += "gate: {max_kl: 0.5}\n"
    write_plan(plan, text)
    assert run_plan(load_plan(plan)).rows[0].made == ("evaluate", "log")
    assert asked == [("EvalReport", "tensorboard", "llama/int8"), ("BenchReport", "tensorboard", "llama/int8")]
    assert run_plan(load_plan(plan)).rows[0].made == ()
    # Another benchmark is logged, and the evaluation not once more.
    write_plan(plan, text.replace("new_tokens: [2]", "new_tokens: [3]"))
    assert run_plan(load_plan(plan)).rows[0].made == ("benchmark", "log")
    assert [kind for kind, _, _ in asked[2:]] == ["BenchReport"]


def test_a_plan_refuses_a_tracker_that_is_not_there_or_has_nothing_to_log(
    place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmcompress.publishing.trackers.importlib.util.find_spec", lambda name: None)
    text = "output: never\nmodels: [llama]\nrecipes: [int8]\nevaluation: {}\nlog_to: trackio\n"
    with pytest.raises(ResourceError, match="trackio is not installed, and figures for trackio need it"):
        run_plan(load_plan(write_plan(place / "never.yaml", text)))
    assert not (place / "never").exists()
    write_plan(place / "never.yaml", text.replace("evaluation: {}\n", ""))
    with pytest.raises(RecipeError, match="log_to: logs the figures of evaluations and benchmarks, and the plan has"):
        load_plan(place / "never.yaml")
    write_plan(place / "never.yaml", text.replace("trackio", "neptune"))
    with pytest.raises(RecipeError, match="log_to: got 'neptune'; accepted: mlflow, trackio, wandb, tensorboard"):
        load_plan(place / "never.yaml")


@pytest.mark.slow
def test_what_a_changed_line_redoes(
    place: Path, calls: Calls, shipped: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "own.txt").write_text(TEXT)
    scored: list[str] = []
    add_scores = measurement.add_scores

    def watched(model: object, kind: str, **options: Any) -> None:
        if kind == "logits":
            scored.append("llama")
        add_scores(model, kind, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(measurement, "add_scores", watched)
    plan = place / "measured.yaml"

    def again_with(text: str) -> RunReport:
        calls.clear()
        shipped.clear()
        return run_plan(load_plan(write_plan(plan, text)))

    def names() -> list[str]:
        return [name for name, _ in calls]

    report = again_with(MEASURED)
    assert names() == ["survey", "compress_loaded", "evaluate", "benchmark", "evaluate", "benchmark"]
    # int4 loses more than the gate allows: it is described, and not pushed.
    assert failures(report) == {"llama/int4": ("evaluate", "GateError", 7)}
    assert report.exit_code == 7
    row = report.rows[1]
    assert row.made == ("compress", "evaluate", "benchmark", "card")
    assert row.failure is not None
    assert "the gate is not passed: max_kl: 0.0" in row.failure.message
    assert shipped == [
        ("card", "int8", "me/llama-int8"),
        ("push", "int8", "me/llama-int8", True),
        ("card", "int4", "me/llama-int4"),
    ]
    measured = json.loads((place / "measured/llama/int4/eval.json").read_text())
    assert measured["reference"]["provenance"]["kind"] == "checkpoint"
    # The original was scored once, and its figures are those of a measurement by itself.
    assert scored == ["llama"]
    assert not (place / "measured/llama/.logits").exists()
    shutil.copytree(place / "measured/llama/int4", place / "copy")
    (place / "copy" / "eval.json").unlink()
    alone = llmcompress.evaluate(
        place / "copy",
        llmcompress.EvalSpec(dataset=str(place / "own.txt"), seq_len=64, num_windows=2),
        reference=place / "llama",
    )
    assert alone.divergence is not None
    assert json.loads(alone.divergence.model_dump_json()) == measured["divergence"]
    assert alone.reference is not None
    assert json.loads(alone.reference.model_dump_json()) == measured["reference"]

    # Nothing changed: the gate's verdict stands, and nothing is measured again.
    assert failures(again_with(MEASURED)) == {"llama/int4": ("evaluate", "GateError", 7)}
    assert names() == ["survey"]
    assert shipped == []

    # Another gate is judged by the same figures.
    looser = MEASURED.replace("0.00005", "0.5")
    assert again_with(looser).exit_code == 0
    assert names() == ["survey", "judge", "judge"]
    assert [call[:2] for call in shipped] == [("card", "int8"), ("push", "int8"), ("card", "int4"), ("push", "int4")]
    again = json.loads((place / "measured/llama/int4/eval.json").read_text())
    assert again["divergence"] == measured["divergence"]
    assert [check["required"] for check in again["gate"]["checks"] if check["name"] == "max_kl"] == [0.5]

    # Another benchmark, of one model.
    faster = looser.replace("new_tokens: [2]", "new_tokens: [3]")
    assert again_with(faster).exit_code == 0
    assert names() == ["survey", "benchmark", "benchmark"]
    assert len(shipped) == 4

    # The same file name with another text.
    (place / "own.txt").write_text(TEXT.replace("fox", "dog"))
    assert [each.steps for each in outlook(load_plan(plan))] == [("evaluate", "card", "push")] * 2
    assert {each.reason for each in outlook(load_plan(plan))} == {"the text changed"}

    # Damage is seen, and repaired.
    (place / "own.txt").write_text(TEXT)
    with (place / "measured/llama/int8/openvino_model.bin").open("r+b") as file:
        file.write(b"\xff")
    look = outlook(load_plan(plan))
    assert [(each.name, each.reason) for each in look] == [("llama/int8", "damaged"), ("llama/int4", "")]
    # All of it was done here before, so its time is known.
    assert look[0].duration_s is not None
    assert look[0].duration_s > 0
    assert look[1].duration_s == 0


def test_a_broken_model_does_not_stop_the_others(place: Path, calls: Calls) -> None:
    shutil.copytree(place / "llama", place / "broken")
    (place / "broken" / "model.safetensors").write_bytes(b"\x08")
    plan = write_plan(place / "broken.yaml", "output: b\nmodels: [broken, llama]\nrecipes: [int8]\n")
    report = run_plan(load_plan(plan))
    assert failures(report).keys() == {"broken/int8"}
    assert failures(report)["broken/int8"][2] == 4
    assert report.rows[1].made == ("compress",)
    assert not (place / "b" / "broken").exists() or not list((place / "b" / "broken").iterdir())


def test_one_worker_looks_at_one_model_and_compresses_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    begin = process.start

    def start(**options: Any) -> process.Started:
        started.append((new := begin(**options)).process.pid)
        return new

    monkeypatch.setattr(process, "start", start)
    plan = load_plan(write_plan(place / "one.yaml", "output: one\nmodels: [llama]\nrecipes: [int8, int4-sym]\n"))
    assert run_plan(plan).exit_code == 0
    assert len(started) == 1
    # Nothing is left to do, and no worker is left.
    assert run_plan(plan).exit_code == 0
    assert len(started) == 2
    assert process.waiting_bytes() == 0
    assert not any(psutil.pid_exists(pid) for pid in started)
    for recipe in ("int8", "int4-sym"):
        llmcompress.compress(place / "llama", recipe, place / "alone" / recipe, graph_cache=False)
    assert artifact_bytes(place / "one" / "llama") == artifact_bytes(place / "alone")


def test_a_tokenizer_is_converted_once_for_a_model(
    place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    converted: list[Path] = []
    convert = tokenizer.save_tokenizer

    def save(opened: Any, directory: Path, source: Any) -> None:
        converted.append(directory)
        convert(opened, directory, source)

    monkeypatch.setattr(tokenizer, "save_tokenizer", save)
    text = "models: [llama, qwen]\nrecipes: [none, int8, int4-sym]\n"
    plan = load_plan(write_plan(place / "tokenizers.yaml", text))
    assert run_plan(plan, output_dir=tmp_path / "out").exit_code == 0
    assert len(converted) == 2
    # Outside a plan each call converts its own.
    for model in ("llama", "qwen"):
        for recipe in ("none", "int8"):
            llmcompress.compress(place / model, recipe, tmp_path / "alone" / model / recipe, graph_cache=False)
    assert len(converted) == 6
    made, alone = artifact_bytes(tmp_path / "out"), artifact_bytes(tmp_path / "alone")
    assert alone.items() <= made.items()


def test_a_worker_that_dies_is_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe that it was at failed, what it had made stays, and a fresh one does the rest."""
    calls = in_process(monkeypatch)
    from llmcompress.compression import compress as pipeline

    real = pipeline.compress

    def compress(source: object, recipe: Recipe, *arguments: object, **options: object) -> object:
        if recipe.name == "int8-sym":
            raise MemoryError
        return real(source, recipe, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("llmcompress.runner.compressing.compress", compress)
    plan = write_plan(place / "dies.yaml", "output: dies\nmodels: [llama]\nrecipes: [none, int8-sym, int8]\n")
    report = run_plan(load_plan(plan))
    assert failures(report).keys() == {"llama/int8-sym"}
    assert [[each.name for each in kwargs["jobs"]] for name, kwargs in calls if name == "compress_loaded"] == [
        ["none", "int8-sym", "int8"],
        ["int8"],
    ]


def test_a_worker_that_dies_after_its_last_recipe_lost_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = in_process(monkeypatch)
    from llmcompress.runner import compressing

    supervised = compressing.run_supervised

    def dying(target: str, kwargs: dict[str, Any], **options: Any) -> object:
        supervised(target, kwargs, **options)
        raise LlmcompressError("the worker crashed with SIGSEGV")

    monkeypatch.setattr(compressing, "run_supervised", dying)
    plan = write_plan(place / "last.yaml", "output: last\nmodels: [llama]\nrecipes: [none, int8]\n")
    assert run_plan(load_plan(plan)).exit_code == 0
    assert [name for name, _ in calls] == ["survey", "compress_loaded"]


def test_relative_paths_of_a_plan_made_in_python(place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    made = llmcompress.Plan(
        models=(llmcompress.PlanModel(source="llama"),),
        recipes=(llmcompress.PlanRecipe(recipe="int8"),),
        evaluation=llmcompress.Evaluation(dataset="text.txt", seq_len=64),
    )
    (job,) = outlook(made, output_dir="python")
    assert job.steps == ("compress", "evaluate")
    asked = calls[0][1]
    assert asked["jobs"][0].model.source == str(place / "llama")
    assert asked["plan"].evaluation.dataset == str(place / "text.txt")


def test_more_tokens_than_the_models_context(place: Path, calls: Calls) -> None:
    text = "models: [llama]\nrecipes: [int8]\n{}\n"
    for line, field in (
        ("evaluation: {dataset: text.txt, seq_len: 300}", "evaluation.seq_len"),
        ("benchmark: {prompt_tokens: [200], new_tokens: [100]}", "benchmark"),
    ):
        (job,) = outlook(load_plan(write_plan(place / "long.yaml", text.format(line))))
        assert job.failure is not None
        assert job.failure.exit_code == 2
        assert job.failure.message == (f"llama: {field}: 300 tokens at once were asked for, the model's context is 256")


def test_a_device_that_is_not_there(place: Path, calls: Calls) -> None:
    text = "models: [llama]\nrecipes: [int8]\nbenchmark: {devices: [NPU9]}\n"
    with pytest.raises(UsageError, match="there is no device NPU9"):
        outlook(load_plan(write_plan(place / "npu.yaml", text)))


def test_an_engine_that_is_not_installed(place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = "models: [llama]\nrecipes: [int8]\nbenchmark: {engine: genai}\n"
    with pytest.raises(ResourceError, match="engine genai needs openvino-genai"):
        outlook(load_plan(write_plan(place / "genai.yaml", text)))


def test_what_does_not_fit_into_memory(place: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.runner import measuring
    from llmcompress.system.memory import Memory

    little = Memory(total=10**6, available=1000, limit=None)
    monkeypatch.setattr("llmcompress.system.background.memory", lambda: little)
    plan = write_plan(place / "little.yaml", "output: little\nmodels: [llama]\nrecipes: [int8]\n")
    report = run_plan(load_plan(plan))
    assert report.exit_code == 3
    assert report.rows[0].failure is not None
    assert "it needs at least" in report.rows[0].failure.message
    assert [name for name, _ in calls] == ["survey"]
    with pytest.raises(ResourceError, match=r"it needs about 0\.\d\d GB of memory, 0\.00 GB are available"):
        measuring._require(10**8, place)


def test_ctrl_c_ends_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.runner import compressing

    in_process(monkeypatch)

    def interrupted(*arguments: object, **options: object) -> object:
        raise InterruptedRunError("interrupted by Ctrl-C")

    monkeypatch.setattr(compressing, "run_supervised", interrupted)
    plan = write_plan(place / "ctrl.yaml", "output: ctrl\nmodels: [llama]\nrecipes: [int8]\n")
    with pytest.raises(InterruptedRunError):
        run_plan(load_plan(plan))


def test_the_command_line(
    place: Path, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing was measured yet.
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(place / "another-cache"))
    plan = write_plan(
        place / "cli.yaml",
        "output: cli\nmodels: [llama]\nrecipes:\n  - int8\n  - recipe: nf4\n"
        "    set: {weights.group_size: 48, weights.group_size_fallback: error}\n",
    )
    assert run(["run", str(plan), "--dry-run", "--only", "*/int8"]) == 0
    out = capsys.readouterr().out
    assert "compress (not made yet)" in out
    assert "not measured" in out
    assert not (place / "cli").exists()
    assert run(["run", str(plan), "--dry-run", "--json"]) == 2
    captured = capsys.readouterr()
    assert [job["name"] for job in json.loads(captured.out)] == ["llama/int8", "llama/nf4"]
    assert "1 of 2 jobs cannot be done; the first: llama/nf4: weights.group_size: group size 48" in captured.err
    assert run(["run", str(plan)]) == 2
    captured = capsys.readouterr()
    assert "llama/nf4    FAILED    compress: weights.group_size: group size 48" in captured.out
    assert "bits per weight" in captured.out
    assert "llama: compress: done in" in captured.err
    assert "1 of 2 jobs failed; the first: llama/nf4" in captured.err
    page = (place / "cli" / "compare.html").read_text()
    assert "group size 48" in page
    assert str(place / "cli" / "compare.html") in captured.out.replace("\n", "")
    assert run(["run", str(plan), "--json"]) == 2
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["kept"], row["failure"] is None) for row in rows] == [(["compress"], True), ([], False)]


def test_a_kill_for_memory_is_reported_as_such(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.runner import compressing
    from llmcompress.system.progress import Progress
    from llmcompress.system.starting import Death, explain

    in_process(monkeypatch)
    killed = explain(Death(-9, "int8: applying", 3_000_000_000, llmcompress_memory(), 1, ()))
    assert isinstance(killed, KilledForMemoryError)

    def die(target: str, kwargs: dict[str, object], *, progress: object, **options: object) -> object:
        progress(Progress("load and trace", 1, 1))  # type: ignore[operator]
        progress(Progress("int8: applying weight compression", 1, 2))  # type: ignore[operator]
        raise killed

    monkeypatch.setattr(compressing, "run_supervised", die)
    plan = write_plan(place / "killed.yaml", "output: killed\nmodels: [llama]\nrecipes: [int8]\n")
    report = run_plan(load_plan(plan))
    assert report.exit_code == 10
    assert report.rows[0].failure is not None
    assert "killed the worker for its memory" in report.rows[0].failure.message
    assert "peak 3.00 GB" in report.rows[0].failure.message


def llmcompress_memory() -> object:
    from llmcompress.system.memory import memory

    return memory()


def test_the_windows_compared_are_those_of_the_run_where_many_are_held_out(tmp_path: Path) -> None:
    from llmcompress.cli.demo import CHECKPOINT as DIRECTORY
    from llmcompress.compression.preparation import recipe_windows
    from llmcompress.loaders.resolving import resolve
    from llmcompress.loaders.tokenizer import load_tokenizer
    from llmcompress.runner.model import PlannedModel

    (tmp_path / "text.txt").write_text("\n\n".join(f"Sentence {number} of a long text." for number in range(30_000)))
    few = {"dataset": str(tmp_path / "text.txt"), "num_samples": 4, "seq_len": 16}
    control = {"metric": "perplexity", "max_drop": 0.1, "num_samples": 9000}
    recipes = [
        Recipe.model_validate(
            {"name": "test", "method": "activations", "activations": {"accuracy_control": held_out}, "calibration": few}
        )
        for held_out in (None, control)
    ]
    found = resolve(DIRECTORY)
    tokenizer = load_tokenizer(DIRECTORY)
    windows = [recipe_windows(found, recipe, tokenizer, offline=True) for recipe in recipes]
    assert windows[0] is not None
    assert windows[1] is not None
    # So many are held out that more of the text is sampled.
    assert windows[0].record != windows[1].record
    (tmp_path / "plan.yaml").write_text(f"output: out\nmodels: [{DIRECTORY}]\nrecipes: [int8]\n")
    plan = load_plan(tmp_path / "plan.yaml")
    model = PlannedModel(plan, offline=True)
    model.find(planned_jobs(plan, tmp_path)[0])
    assert [model.texts(recipe)["calibration"] for recipe in recipes] == [window.record for window in windows if window]
