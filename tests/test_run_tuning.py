"""Plans that tune: a second artifact beside the untuned one, what is redone, and what is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from plan_fixture import Calls, identities, in_process, write_plan
from summary_fixture import estimate
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.cli import run
from llmcompress.errors import LlmcompressError, ResourceError, UsageError
from llmcompress.runner import RunReport, outlook, run_plan
from llmcompress.runner.run import chosen_jobs
from llmcompress.spec import TuneSpec
from llmcompress.spec.plan import Plan, PlanModel, PlanRecipe, Tuning, load_plan
from llmcompress.tuning import damage
from llmcompress.tuning import trials as trials_module
from llmcompress.tuning.race import Race, race

TEXT = "\n\n".join(
    f"The quick brown fox {number} jumps over the lazy dog, and {number} cats look on." for number in range(300)
)
PLAN = """
output: out
models: [llama]
recipes: [int8]
evaluation: {dataset: text.txt, seq_len: 64, num_windows: 2}
benchmark: {prompt_tokens: [4], new_tokens: [2], repetitions: 1, warmup_runs: 0}
tune:
  dataset: text.txt
  seq_len: 96
  num_windows: 2
  workloads: [tiny:8/4]
  repetitions: 3
  budget: 5m
  properties: [KV_CACHE_PRECISION=f16]
card: true
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tuned-plans")
    build_checkpoint(place / "llama", num_hidden_layers=1)
    (place / "text.txt").write_text(TEXT)
    return place


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return in_process(monkeypatch)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Races are run, and their gains told: the first is the search's, the second the verification's."""
    gains = [1.3, 1.2]

    def tell(candidate: object, default: object, spec: TuneSpec, **options: object) -> Race:
        gain = estimate(gains[0 if options else 1], 0.05)
        found = race(candidate, default, spec)  # type: ignore[arg-type]
        return found._replace(gain=gain, judgement="better" if (gain.low or 0) > 1 else "inside the noise")

    def here(target: str, kwargs: dict[str, object], **options: object) -> object:
        return damage.held_out_divergences(**kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(trials_module, "race", tell)
    monkeypatch.setattr(trials_module, "run_supervised", here)
    return gains


def names(calls: Calls) -> list[str]:
    return [name for name, _ in calls]


def failure_of(report: RunReport, name: str) -> tuple[str, str, int]:
    (found,) = (row.failure for row in report.rows if row.name == name)
    assert found is not None
    return found.step, found.message, found.exit_code


@pytest.mark.slow
def test_a_tuned_artifact_beside_the_untuned_one(place: Path, calls: Calls, told: list[float]) -> None:
    plan = write_plan(place / "plan.yaml", PLAN)
    report = run_plan(load_plan(plan))
    assert report.exit_code == 0, report
    assert [(row.name, row.made, row.note) for row in report.rows] == [
        ("llama/int8", ("compress", "evaluate", "benchmark", "card"), ""),
        ("llama/int8-tuned", ("tune", "evaluate", "benchmark", "card"), ""),
    ]
    # Everything of the untuned one first: nothing runs beside a search, and what fails there is not tuned.
    assert names(calls) == [
        "survey", "compress_loaded", "evaluate", "benchmark", "tune", "apply_tuning", "evaluate", "benchmark",
    ]  # fmt: skip
    asked = calls[4][1]
    assert asked["reference"] == str(place / "llama")
    base, twin = place / "out/llama/int8", place / "out/llama/int8-tuned"
    assert llmcompress.verify(base).ok
    assert llmcompress.verify(twin).ok
    assert (twin / "openvino_model.bin").read_bytes() == (base / "openvino_model.bin").read_bytes()
    manifest = json.loads((twin / "llmcompress.json").read_text())
    assert manifest["recipe"]["runtime"]["kv_cache_precision"] == "f16"
    assert manifest["tuning"]["properties"] == {"KV_CACHE_PRECISION": "f16"}
    # What is measured is the tuned one, read back from the compiled model.
    for directory, precision in ((base, "u8"), (twin, "f16")):
        lost, speed = (json.loads((directory / name).read_text()) for name in ("eval.json", "bench.json"))
        assert lost["model"]["properties"]["KV_CACHE_PRECISION"] == precision
        assert speed["settings"][0]["properties"]["KV_CACHE_PRECISION"] == precision
    assert "`KV_CACHE_PRECISION` `f16`" in (twin / "README.md").read_text()

    # Side by side, with the gain.
    comparison = llmcompress.compare([base, twin])
    table = {line.title: line.texts for line in llmcompress.summary.table.lines(comparison)}
    assert table["runtime options"] == ("default", "cache f16")
    assert table["gain by tuning"] == ("not tuned", "1.2 [1.14, 1.26] decode")

    # The same again touches nothing.
    before = identities(place / "out")
    calls.clear()
    again = run_plan(load_plan(plan))
    assert names(calls) == ["survey"]
    assert again.rows[1].kept == ("tune", "evaluate", "benchmark", "card")
    assert identities(place / "out") == before


@pytest.mark.slow
def test_what_is_tuned_again(place: Path, calls: Calls, told: list[float]) -> None:
    plan = write_plan(place / "again.yaml", PLAN.replace("output: out", "output: again"))
    assert run_plan(load_plan(plan)).exit_code == 0
    base, twin = place / "again/llama/int8", place / "again/llama/int8-tuned"

    # A damaged twin is written again by what was found; nothing is searched.
    with (twin / "openvino_model.bin").open("r+b") as file:
        file.write(b"\xff")
    assert [(each.name, each.reason) for each in outlook(load_plan(plan))] == [
        ("llama/int8", ""),
        ("llama/int8-tuned", "damaged"),
    ]
    calls.clear()
    mended = run_plan(load_plan(plan), only=["*-tuned"])
    assert mended.exit_code == 0
    assert names(calls) == ["survey", "apply_tuning", "evaluate", "benchmark"]
    assert [row.made for row in mended.rows] == [(), ("tune", "evaluate", "benchmark", "card")]
    assert llmcompress.verify(twin).ok

    # Another rule is searched by again; where the defaults stay, the earlier twin goes.
    told[:] = [1.3, 1.01]
    write_plan(plan, PLAN.replace("output: out", "output: again").replace("budget: 5m", "budget: 4m"))
    assert [each.reason for each in outlook(load_plan(plan))] == ["", "the tuning changed"]
    calls.clear()
    report = run_plan(load_plan(plan))
    assert names(calls) == ["survey", "tune"]
    assert report.exit_code == 0
    why = "in fresh processes the best was better only inside the noise; the defaults stay"
    assert (report.rows[1].made, report.rows[1].kept, report.rows[1].note) == (("tune",), (), why)
    assert not twin.exists()
    (only,) = llmcompress.compare([base]).rows
    assert only.kept_defaults == why
    assert f"llama/int8: tuning put nothing into the model: {why}." in [
        note.replace("int8:", "llama/int8:") for note in llmcompress.summary.table.notes(llmcompress.compare([base]))
    ]
    calls.clear()
    report = run_plan(load_plan(plan))
    assert names(calls) == ["survey"]
    assert (report.rows[1].made, report.rows[1].kept, report.rows[1].note) == ((), ("tune",), why)
    # Another text of the same name.
    (place / "text.txt").write_text(TEXT.replace("fox", "dog"))
    assert [each.reason for each in outlook(load_plan(plan))] == ["the text changed", "the text changed"]
    (place / "text.txt").write_text(TEXT)


@pytest.mark.slow
def test_the_command_shows_both(
    place: Path, calls: Calls, told: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    told[:] = [1.3, 1.01]
    text = PLAN.replace("benchmark:", "#").replace("evaluation:", "#").replace("output: out", "output: shown")
    plan = write_plan(place / "shown.yaml", text)
    assert run(["run", str(plan)]) == 0
    seen = " ".join(capsys.readouterr().out.split())
    assert "llama/int8-tuned done tune; in fresh processes the best was better only inside the noise" in seen
    assert "int8: tuning put nothing into the model: in fresh" in seen
    assert "tuning put nothing into the model" in (place / "shown" / "compare.html").read_text()


@pytest.mark.slow
def test_what_is_not_tuned(place: Path, calls: Calls, told: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not pass the gate, or was not made, is no candidate; a search that fails is a row of its own."""
    text = PLAN.replace("benchmark:", "#").replace("output: out", "output: failed") + "gate: {max_kl: 0.0000001}\n"
    plan = write_plan(place / "failed.yaml", text)
    report = run_plan(load_plan(plan))
    assert names(calls) == ["survey", "compress_loaded", "evaluate"]
    assert failure_of(report, "llama/int8")[::2] == ("evaluate", 7)
    step, message, exit_code = failure_of(report, "llama/int8-tuned")
    assert (step, exit_code) == ("tune", 7)
    assert message.startswith("llama/int8 is not there to be tuned: ")
    assert "the gate is not passed" in message

    def refuse(*arguments: object, **options: object) -> None:
        raise ResourceError("about 9.9 GB of memory are needed")

    text = text.replace("0.0000001", "0.5")
    write_plan(plan, text)
    with monkeypatch.context() as patch:
        patch.setattr("llmcompress.tuning.tune.open_models", refuse)
        report = run_plan(load_plan(plan))
    assert report.rows[0].failure is None
    assert failure_of(report, "llama/int8-tuned") == ("tune", "about 9.9 GB of memory are needed", 3)
    # Not even the defaults keep the limit: that stands until something is changed.
    text = text.replace("budget: 5m", "max_kl: 0.00000001")
    write_plan(plan, text)
    for expected in (["survey", "tune"], ["survey"]):
        calls.clear()
        report = run_plan(load_plan(plan))
        assert names(calls) == expected
        assert failure_of(report, "llama/int8-tuned")[::2] == ("tune", 7)
        assert "nothing that was measured is permitted" in failure_of(report, "llama/int8-tuned")[1]
    # The gate that a choice has to keep is part of what was asked.
    write_plan(plan, text.replace("max_kl: 0.5", "max_kl: 0.4"))
    assert [each.reason for each in outlook(load_plan(plan))] == ["the gate changed", "the gate changed"]


def test_a_tuned_job_needs_what_it_is_tuned_from(place: Path) -> None:
    plan = load_plan(write_plan(place / "jobs.yaml", PLAN.replace("[int8]", "[int8, none]")))
    assert [job.name for job in chosen_jobs(plan, None, [])] == [
        "llama/int8", "llama/int8-tuned", "llama/none", "llama/none-tuned",
    ]  # fmt: skip
    assert [job.name for job in chosen_jobs(plan, None, ["llama/none-tuned"])] == ["llama/none", "llama/none-tuned"]
    assert [job.name for job in chosen_jobs(plan, None, ["llama/none"])] == ["llama/none"]
    pushed = PLAN + 'push: {repo_id: "me/{model}-{recipe}"}\n'
    jobs = chosen_jobs(load_plan(write_plan(place / "jobs.yaml", pushed)), None, [])
    assert [job.repo_id for job in jobs] == ["me/llama-int8", "me/llama-int8-tuned"]
    some = PLAN.replace("[int8]", "[int8, none]").replace("budget: 5m", "only: [none]")
    jobs = chosen_jobs(load_plan(write_plan(place / "jobs.yaml", some)), None, [])
    assert [job.name for job in jobs] == ["llama/int8", "llama/none", "llama/none-tuned"]


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("budget: 5m", "budget: 5", "tune.budget", "got '5'; hours, minutes and seconds are accepted"),
        ("budget: 5m", "budget: 5m\n  budget_s: 3.0", "tune.budget", "budget_s says the same"),
        ("[tiny:8/4]", "[8/4]", "tune.workloads[0]", "got '8/4'; NAME:PROMPT/NEW or"),
        ("[tiny:8/4]", "tiny:8/4", "tune.workloads", "got 'tiny:8/4'; accepted: a list"),
        ("budget: 5m", "bugdet: 5m", "tune.bugdet", "unknown key 'bugdet'; accepted: dataset, "),
        ("budget: 5m", "scope: all", "tune.scope", "what a model cannot hold is in none"),
        ("budget: 5m", "only: [int9]", "tune.only[0]", "the plan has no recipe int9; it has int8"),
        ("dataset: text.txt\n", "dataset: no.txt\n", "tune.dataset", "there is no file"),
        ("tune:\n", "gate: {max_kl: 1}\ntune:\n  reference: itself\n", "tune.reference", "compares with the original"),
        ("[int8]", "[{recipe: int8, set: {gate.max_kl: 1}}]\n#", "tune.reference", "the gate of int8 asks"),
        ("[int8]", "[int8, {recipe: int4, name: INT8-tuned}]", "recipes[1]", "the name int8-tuned is that of the"),
    ],
)
def test_what_is_refused(place: Path, old: str, new: str, where: str, message: str) -> None:
    text = PLAN.replace(old, new, 1)
    if "the gate of" in message:
        text = text.replace("tune:\n", "tune:\n  reference: itself\n")
    assert text != PLAN
    with pytest.raises(LlmcompressError) as caught:
        load_plan(write_plan(place / "bad.yaml", text))
    assert caught.value.exit_code == 2
    assert where in caught.value.where
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("KV_CACHE_PRECISION=f16", "KV_CACHE_PRECISON=f16", "tune.properties: CPU has no property KV_CACHE_PRECISON"),
        ("KV_CACHE_PRECISION=f16", "KV_CACHE_PRECISION=i3", "the device refuses KV_CACHE_PRECISION=i3"),
        ("KV_CACHE_PRECISION=f16", "INFERENCE_NUM_THREADS=1", "CPU does not read INFERENCE_NUM_THREADS=1 from a model"),
        ("budget: 5m", "device: NPU9", "there is no device NPU9"),
    ],
)
def test_what_the_device_refuses_before_anything_is_made(
    place: Path, calls: Calls, old: str, new: str, message: str
) -> None:
    plan = load_plan(
        write_plan(place / "refused.yaml", PLAN.replace(old, new).replace("output: out", "output: refused"))
    )
    with pytest.raises(UsageError) as caught:
        run_plan(plan)
    assert message in str(caught.value)
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seq_len: 96", "seq_len: 9000", "9000 tokens at once were asked for, the model's context is"),
        ("tiny:8/4", "tiny:8000/4", "8004 tokens at once were asked for, the model's context is"),
        ("num_windows: 2\n", "num_windows: 2\n  text_field: x\n", "has no effect with a .txt file"),
    ],
)
def test_what_the_model_cannot_do(place: Path, calls: Calls, old: str, new: str, message: str) -> None:
    text = PLAN.replace(old, new).replace("output: out", "output: refused")
    if "no effect" in message:
        with pytest.raises(LlmcompressError, match=message):
            load_plan(write_plan(place / "bad.yaml", text))
        return
    looks = outlook(load_plan(write_plan(place / "bad.yaml", text)))
    assert all(look.failure is not None and message in look.failure.message for look in looks)


def test_a_plan_made_in_python(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    plan = Plan(
        models=(PlanModel(source="llama"),),
        recipes=(PlanRecipe(recipe="int8"),),
        tune=Tuning(dataset="text.txt", workloads=["tiny:8/4"], budget="90s"),  # type: ignore[call-arg]
    )
    assert plan.tune is not None
    assert (plan.tune.budget_s, plan.tune.scope, str(plan.tune.workloads[0])) == (90, "model", "tiny:8/4")
    assert [look.steps for look in outlook(plan, output_dir=place / "python")] == [("compress",), ("tune",)]


@pytest.mark.slow
def test_what_was_found_elsewhere_is_searched_here(place: Path, calls: Calls, told: list[float]) -> None:
    text = PLAN.replace("benchmark:", "#").replace("evaluation:", "#").replace("card:", "#")
    plan = write_plan(place / "else.yaml", text.replace("output: out", "output: else"))
    assert run_plan(load_plan(plan)).exit_code == 0
    base, twin = place / "else/llama/int8", place / "else/llama/int8-tuned"
    calls.clear()
    found = json.loads((base / "tune.json").read_text())
    found["environment"]["cpu"] = "Another CPU"
    (base / "tune.json").write_text(json.dumps(found))
    shutil.rmtree(twin)
    assert run_plan(load_plan(plan)).exit_code == 0
    assert names(calls) == ["survey", "tune", "apply_tuning"]
    assert json.loads((twin / "llmcompress.json").read_text())["tuning"]["cpu"] != "Another CPU"
