"""Searches in plans: how they are written, what is refused, and when they are made again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import in_process, write_plan

import llmcompress
from llmcompress import SearchSpec
from llmcompress.artifact import read_measurements
from llmcompress.errors import LlmcompressError, RecipeError
from llmcompress.runner import outlook, run_plan
from llmcompress.runner.compressing import CompressJob, compress_loaded
from llmcompress.runner.state import Original, search_reason
from llmcompress.searching import search as search_module
from llmcompress.spec import Access
from llmcompress.spec.plan import load_plan, planned_jobs
from llmcompress.system.progress import Progress

PLAN = """
output: out
models: [model]
recipes:
  - name: small
    search: {max_bytes: 2.2MB, dataset: text.txt, calibration: {dataset: other.txt}, budget: 5m}
"""


@pytest.fixture
def place(tmp_path: Path, demo_checkpoint: Path) -> Path:
    (tmp_path / "model").symlink_to(demo_checkpoint)
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "other.txt").write_text("b")
    return tmp_path


def test_a_search_is_written_as_a_recipe_is(place: Path) -> None:
    plan = load_plan(write_plan(place / "plan.yaml", PLAN + "tune: {budget: 1m}\n"))
    job, tuned = planned_jobs(plan, place / "out")
    assert job.name == "model/small"
    assert job.search is not None
    assert (job.search.max_bytes, job.search.budget_s) == (2_200_000, 300)
    assert type(job.search) is SearchSpec
    assert job.search.dataset == str(place / "text.txt")
    assert job.search.calibration is not None
    assert job.search.calibration.dataset == str(place / "other.txt")
    assert (tuned.name, tuned.search, tuned.tuned_from) == ("model/small-tuned", None, job.directory)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small\n    ", "", r"name: is missing; what a search makes has no name of its own"),
        ("name: small", "recipe: int4\n    name: small", "got both of recipe and search; exactly one is accepted"),
        ("search: {", "set: {", "got neither of recipe and search"),
        ("budget: 5m}", "budget: 5m}\n    set: {weights.ratio: 0.5}", "set: has no effect on a search"),
        ("budget: 5m", "front: [1000]", "front: has no effect in a plan"),
        ("2.2MB", "many", "max_bytes: got 'many'; a number of bytes"),
        ("dataset: text.txt", "dataset: gone.txt", "there is no file .*gone.txt"),
        ("dataset: other.txt", "dataset: gone.txt", "there is no file .*gone.txt"),
        ("[model]", "[{source: model, requantize: true}]", "the search small does not take it"),
        ("[model]", "[{source: model, overrides: {small: {name: b}}}]", "has no effect on a search, which writes"),
    ],
)
def test_refusals(place: Path, old: str, new: str, message: str) -> None:
    assert old in PLAN
    with pytest.raises(RecipeError, match=message):
        load_plan(write_plan(place / "plan.yaml", PLAN.replace(old, new)))


def test_one_search_that_fails_does_not_stop_the_next(
    place: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def search(source: str, spec: SearchSpec, directory: Path, **given: Any) -> None:
        asked.append({"source": source, "spec": spec, **given})
        given["progress"](Progress("candidates", 0, 1))
        if spec.max_bytes == 1:
            raise LlmcompressError("no plan", where="small")

    stages: list[str] = []
    monkeypatch.setattr(search_module, "search", search)
    recipe = llmcompress.load_recipe("int4")
    jobs = [
        CompressJob(f"s{size}", recipe, place / f"s{size}", None, None, SearchSpec(max_bytes=size))  # type: ignore[arg-type]
        for size in (1, 2)
    ]
    access = Access(offline=True)
    outcomes = compress_loaded(str(demo_checkpoint), access, jobs, progress=lambda step: stages.append(step.stage))
    assert "no plan" in str(outcomes["s1"])
    assert outcomes["s2"] is None
    assert [each["spec"].max_bytes for each in asked] == [1, 2]
    assert all(each["offline"] and each["overwrite"] for each in asked)
    assert {"s1: begin", "s1: candidates", "s2: candidates"} <= set(stages)


@pytest.mark.slow
def test_a_search_is_made_once_and_again_where_the_plan_changes(
    place: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = in_process(monkeypatch)
    shutil.copy(demo_checkpoint / "LICENSE-PYTHON.txt", place / "text.txt")
    few = "seq_len: 64, num_samples: 4, num_windows: 8, candidates: [int4_sym:128, int8_asym]"
    spec = f"{{max_bytes: 2.2MB, dataset: text.txt, {few}}}"
    text = PLAN.splitlines()[:-1]
    path = write_plan(place / "plan.yaml", "\n".join([*text, f"    search: {spec}\n"]))
    plan = load_plan(path)
    (row,) = outlook(plan)
    assert row.steps == ("compress",)
    assert row.size_bytes == 2_200_000
    report = run_plan(plan)
    assert report.exit_code == 0
    directory = place / "out" / "model" / "small"
    found = read_measurements(directory)
    assert found.search is not None
    assert (directory / "openvino_model.bin").stat().st_size <= 2_200_000
    assert not outlook(load_plan(path))[0].steps
    num_calls = len([name for name, _ in calls if name == "compress_loaded"])
    assert run_plan(load_plan(path)).exit_code == 0
    assert len([name for name, _ in calls if name == "compress_loaded"]) == num_calls
    write_plan(path, path.read_text().replace("2.2MB", "2.4MB"))
    (row,) = outlook(load_plan(path))
    assert (row.steps, row.reason) == (("compress",), "the search changed")
    original = Original(llmcompress.load(demo_checkpoint, tokenizer=False).source)
    (job,) = planned_jobs(plan, place / "out")
    assert job.search is not None
    (directory / "search.json").unlink()
    assert search_reason(directory, job.search, original) == "not searched yet"
    assert search_reason(place / "gone", job.search, original) == "not made yet"
