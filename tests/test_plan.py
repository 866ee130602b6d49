"""Plan files: what they mean, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_fixture import write_plan

from llmcompress.cli import run
from llmcompress.errors import LlmcompressError, UsageError
from llmcompress.runner.run import chosen_jobs
from llmcompress.spec import EvalSpec, load_recipe
from llmcompress.spec.plan import Plan, PlanModel, PlanRecipe, Push, load_plan, planned_jobs

PLAN = """\
models:
  - checkpoint
  - source: some/hub-model
    name: hub
    revision: main
    exclude: [int8]
    overrides: {int4: {weights.group_size: 64}}
recipes:
  - int4
  - int8
  - recipe: int4
    name: small
    set: {weights.group_size: 32, weights.ratio: 0.9}
  - own.yaml
  - optimum-default
evaluation: {dataset: text.txt, seq_len: 64, noise_floor: true}
benchmark: {prompt_tokens: [8]}
gate: {max_kl: 0.1}
card: true
push: {repo_id: "me/{model}-{recipe}-ov", private: true}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "own.yaml").write_text("name: own\nweights: {mode: int8_asym}\n")
    return tmp_path


def test_a_plan_and_its_jobs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    plan = load_plan(write_plan(place / "sweep.yaml", PLAN))
    # Paths start at the file's folder, and the output is named after the file.
    assert plan.output == str(place / "sweep")
    assert plan.models[0].source == str(place / "checkpoint")
    assert plan.models[1].source == "some/hub-model"
    assert plan.evaluation is not None
    assert plan.evaluation.spec() == EvalSpec(dataset=str(place / "text.txt"), seq_len=64)
    jobs = planned_jobs(plan, Path("/elsewhere"))
    assert [job.name for job in jobs] == [
        "checkpoint/int4", "checkpoint/int8", "checkpoint/small", "checkpoint/own", "checkpoint/optimum-default",
        "hub/int4", "hub/small", "hub/own", "hub/optimum-default",
    ]  # fmt: skip
    by_name = {job.name: job for job in jobs}
    assert by_name["checkpoint/int4"].recipe == load_recipe("int4")
    assert by_name["hub/int4"].recipe == load_recipe("int4", ["weights.group_size=64"])
    small = load_recipe("int4", ["weights.group_size=32", "weights.ratio=0.9", "name=small"])
    assert by_name["hub/small"].recipe == small
    assert by_name["hub/optimum-default"].recipe is None
    assert by_name["hub/int4"].directory == Path("/elsewhere/hub/int4")
    assert by_name["hub/int4"].repo_id == "me/hub-int4-ov"


@pytest.mark.parametrize(
    ("old", "new", "where", "message", "hint"),
    [
        ("card:", "crad:", "19:1: crad", "unknown key 'crad'; accepted: output, models, recipes", "did you mean card?"),
        ("- int8\n", "- int9\n", "10:5: recipes[1].recipe", "no packaged recipe of this name", "did you mean int8?"),
        ("ratio: 0.9", "ratio: 2", "13:35: recipes[2].set.weights.ratio", "got 2; accepted: less than", ""),
        ("ratio: 0.9", "rato: 1", "13:35: recipes[2].set.weights.rato", "unknown key 'rato'", "did you mean ratio?"),
        ("32, weights.ratio: 0.9", "32, weights.gptq: true", "13:5: recipes[2].set", "gptq needs calibration", ""),
        ("group_size: 64", "group_size: x", "7:24: models[1].overrides.int4.weights.group_size", "got 'x'", ""),
        ("overrides: {int4", "overrides: {int5", "overrides.int5", "the plan has no recipe int5", "did you mean int"),
        ("overrides: {int4", "overrides: {int8", "overrides.int8", "has no effect: the recipe is excluded", "remove"),
        ("[int8]", "[int3]", "6:15: models[1].exclude[0]", "no recipe int3; it has int4, int8, small", "did you mean"),
        ("name: small", "name: INT4", "recipes[2]", "the name INT4 is that of recipes[0] too", "name of its own"),
        ("name: hub\n", "name: Checkpoint\n", "models[1]", "the name Checkpoint is that of models[0]", "of its own"),
        ("name: hub\n", "name: ../hub\n", "4:5: models[1].name", "got '../hub'; accepted: letters, digits", ""),
        ("- checkpoint", "- ./nothing", "2:5: models[0].source", "there is no directory", "give an existing dir"),
        ("some/hub-model", "some/hub model", "3:5: models[1].source", "neither an existing path nor a Hub id", "copy"),
        ("- source: some/hub-model", "- source: ./checkpoint", "5:5: models[1].revision", "no effect on a", "remove"),
        ("text.txt", "missing.txt", "16:14: evaluation.dataset", "there is no file", "check the path"),
        ("seq_len: 64", "seq_len: 64, reference_scores: cached", "noise_floor", "runs two models", "remove one"),
        ("seq_len: 64", "seq_len: 64, reference_scores: rounded", "noise_floor", "rounded scores avoid", "remove"),
        ("noise_floor: true", "split_damage: true, precision: pinned", "split_damage", "shows what the runtime", ""),
        ("noise_floor: true", "split_damage: true, chunk: 64", "16:66: evaluation.chunk", "needs chunks", "smaller"),
        ("[8]", "8", "17:13: benchmark.prompt_tokens", "got 8; accepted: a list", ""),
        ("{model}", "{modl}", "20:8: push.repo_id", "{modl} stands for nothing; accepted: {model}, {recipe}", "me/"),
        ("{model}", "{", "20:8: push.repo_id", "has a brace too many or too few", "for example"),
        ("{recipe}", "all", "20:8: push.repo_id", "checkpoint/int4 and checkpoint/int8 would both go to", "write"),
        ("me/{", "me-{", "20:8: push.repo_id", "'me-checkpoint-int4-ov' has no namespace", "namespace/name"),
        ("me/{", "m e/{", "20:8: push.repo_id", "cannot be a repository's id", "namespace/name"),
        ("  - checkpoint\n", "  - checkpoint\n  - checkpoint\n", "models[1]", "the name checkpoint is that of", ""),
        ("card: true", "card: yes", "19:7", "'yes' without quotes has no certain meaning", "write true"),
    ],
)  # fmt: skip
def test_what_is_refused(place: Path, old: str, new: str, where: str, message: str, hint: str) -> None:
    assert old in PLAN
    path = write_plan(place / "plan.yaml", PLAN.replace(old, new, 1))
    with pytest.raises(LlmcompressError) as caught:
        load_plan(path)
    assert caught.value.exit_code == 2
    assert caught.value.where.startswith(str(path))
    assert where in caught.value.where
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a plan is a list of fields"),
        ("models: [checkpoint]\n", "is missing"),
        ("models: []\nrecipes: [int8]\n", "got a list"),
        ("models: [{source: checkpoint, exclude: [int8]}]\nrecipes: [int8]\n", "every recipe is excluded"),
        ("models: [checkpoint]\nrecipes: [int8]\ngate: {max_kl: 1}\n", "is judged by an evaluation"),
        (
            "models: [checkpoint]\nrecipes: [int8]\ngate: {max_kl: 1}\n"
            "evaluation: {dataset: text.txt, reference_scores: cached}\n",
            "cannot be passed with reference_scores cached",
        ),
        ("models: [checkpoint]\nrecipes: [bad.yaml]\n", "unknown key 'wights'"),
        (
            "models: [checkpoint]\nrecipes: [{recipe: int4, set: {weights.awq: true, calibration.dataset: no.txt}}]\n",
            "there is no file",
        ),
        ("models: ['a name/with space/']\nrecipes: [int8]\n", "cannot name a directory of the output"),
    ],
)
def test_what_does_not_fit_together(place: Path, text: str, message: str) -> None:
    (place / "bad.yaml").write_text("name: x\nwights: {}\n")
    with pytest.raises(LlmcompressError, match="(?s)" + message.replace("[", r"\[")):
        load_plan(write_plan(place / "plan.yaml", text))


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    with pytest.raises(LlmcompressError, match="no such file"):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(LlmcompressError, match=r"a plan file ends in .yaml or .yml"):
        load_plan(tmp_path / "plan.txt")


def test_a_plan_made_in_python(tmp_path: Path) -> None:
    plan = Plan(
        models=(PlanModel(source="a/b"),),
        recipes=(PlanRecipe(recipe="int8"),),
        push=Push(repo_id="me/{model}-{recipe}"),
    )
    with pytest.raises(UsageError, match="the plan says no output directory"):
        chosen_jobs(plan, None, ())
    assert [job.name for job in chosen_jobs(plan, tmp_path, ())] == ["b/int8"]


def test_only_some_jobs(place: Path) -> None:
    plan = load_plan(write_plan(place / "plan.yaml", PLAN))
    names = [job.name for job in chosen_jobs(plan, None, ["hub/*", "checkpoint/int4"])]
    assert names == ["checkpoint/int4", "hub/int4", "hub/small", "hub/own", "hub/optimum-default"]
    with pytest.raises(UsageError, match="the plan has no job 'hub/int3'; it has checkpoint/int4") as caught:
        chosen_jobs(plan, None, ["hub/int3"])
    assert caught.value.hint == "did you mean hub/int4?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "slurm"], "--executor: got 'slurm'; accepted: local, ray"),
        (["--address", "head:6379"], "--address has no effect on the executor local"),
        (["--only", "x/y"], "--only: the plan has no job 'x/y'"),
    ],
)
def test_options_of_run_that_are_refused(
    place: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(place / "plan.yaml", PLAN)
    assert run(["run", str(plan), *options]) == 2
    assert message in capsys.readouterr().err
