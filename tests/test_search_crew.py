"""A search whose machines share the work finds what one machine finds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmcompress
from llmcompress import SearchReport, SearchSpec
from llmcompress.errors import DataError, ResourceError, UsageError
from llmcompress.loaders.source import Source
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.searching import candidates, crew
from llmcompress.searching.crew import Crew, crew_of
from llmcompress.searching.shelf import deciding_versions
from llmcompress.spec import Access, Calibration
from llmcompress.system.executors import LocalExecutor, TaskEvent
from llmcompress.system.progress import Progress, silent

OTHER = Path(llmcompress.__file__).parent / "data" / "heldout.txt"
"""A text for GPTQ that has nothing in common with that of the verdict."""


def _spec(text: Path) -> SearchSpec:
    return SearchSpec(
        dataset=str(text),
        seq_len=64,
        num_samples=8,
        num_windows=8,
        candidates=("int4_sym:128", "int4_sym:128+gptq", "int4_asym:32+gptq", "int8_asym"),
        num_probes=3,
        calibration=Calibration(dataset=str(OTHER), num_samples=4, seq_len=64),
        bits_per_weight=5.6,
    )


@pytest.fixture
def text(demo_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    return path


def _made(directory: Path) -> list[str]:
    names = ("openvino_model.bin", "openvino_model.xml", "recipe.yaml")
    return [hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names]


def _two_here(calls: list[tuple[str, dict[str, Any]]]) -> Callable[..., Any]:
    """In the place of a cluster: this machine does the work of two, call after call."""

    class Here(LocalExecutor):
        num_nodes = 2

        def start(self, task: Any) -> str:
            calls.append((task.function.__name__, task.kwargs))
            return super().start(task)

    return lambda tell, address: Here(tell)


@pytest.mark.slow
def test_machines_find_together_what_one_finds(
    demo_checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache-alone"))
    alone = llmcompress.search(demo_checkpoint, _spec(text), tmp_path / "alone")
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache-together"))
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(crew, "RayExecutor", _two_here(calls))
    in_torch: list[str] = []

    def watched(source: Source) -> Any:
        in_torch.append(source.name)
        return load_torch_model(source)

    monkeypatch.setattr(candidates, "load_torch_model", watched)
    together = llmcompress.search(demo_checkpoint, _spec(text), tmp_path / "together", executor="ray")
    assert _made(tmp_path / "together") == _made(tmp_path / "alone")
    assert _compared(together) == _compared(alone)
    shares = [given["share"].names for name, given in calls if name == "make_there"]
    assert len(shares) == 2
    assert all(shares)
    assert not shares[0] & shares[1]
    assert "model.embed_tokens.weight" in shares[0] | shares[1]
    # The other machine has no embedding to make.
    assert len(in_torch) == 1
    measured = [len(given["directories"]) for name, given in calls if name == "score_there"]
    # Three plans for corrections, and the plan with its rivals.
    assert measured[:2] == [2, 1]
    assert len(measured) == 4
    assert not list(tmp_path.glob(".together*"))


def _compared(report: SearchReport) -> list[Any]:
    return [(each.name, each.kl_divergence.value, each.size_bytes) for each in report.contenders] + [
        (each.name, each.format, each.predicted) for each in report.weights
    ]


class _Failing(LocalExecutor):
    """It has room for all at once, and carries out the last first."""

    def __init__(self) -> None:
        super().__init__(lambda told: None)
        self.tasks: list[Any] = []

    def has_room(self, task: Any) -> bool:
        return True

    def start(self, task: Any) -> str:
        self.tasks.append(task)
        return "there"

    def wait(self) -> Any:
        self._task = self.tasks.pop()
        return super().wait()


def _called(*, source: str, access: Access, number: int, progress: Any, logs: Any) -> str:
    if number > 2:
        raise DataError(f"there are no {number}")
    return f"{source} {access.revision} {number}"


def test_answers_come_in_the_order_of_the_calls() -> None:
    machines, told = Crew(_Failing(), 2, "model", Access(revision="main"), 0), list[Progress]()
    found = machines.carry_out("count", _called, [{"number": 0}, {"number": 1}, {"number": 2}], told.append)
    assert found == ["model main 0", "model main 1", "model main 2"]
    assert [(step.stage, step.done, step.total) for step in told] == [("count", done, 3) for done in range(4)]


def test_what_fails_on_a_machine_fails_here() -> None:
    machines = Crew(_Failing(), 2, "model", Access(), 0)
    with pytest.raises(DataError, match="there are no 3"):
        machines.carry_out("count", _called, [{"number": 3}, {"number": 1}], silent)


def test_a_cluster_without_a_node_for_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Headless(LocalExecutor):
        num_nodes = 0

    monkeypatch.setattr(crew, "RayExecutor", lambda tell, address: Headless(tell))
    with (
        pytest.raises(ResourceError, match="no node of the cluster takes tasks") as caught,
        crew_of("ray", "head:6379", "model", Access(), 0),
    ):
        pass
    assert caught.value.where == "head:6379"


def test_nodes_of_other_versions_are_refused() -> None:
    here = deciding_versions()
    candidates._require_same_versions([here, here])
    with pytest.raises(ResourceError, match=f"has nncf 0.1, openvino None; this machine has {here['nncf']}, "):
        candidates._require_same_versions([here, {**{n: v for n, v in here.items() if n != "openvino"}, "nncf": "0.1"}])


@pytest.mark.parametrize(
    ("items", "shares"), [([1, 2, 3, 4, 5], [[1, 3, 5], [2, 4]]), ([1], [[1]]), ([], [])], ids=["more", "one", "none"]
)
def test_shares(items: list[int], shares: list[list[int]]) -> None:
    assert Crew(None, 2, "model", Access(), 0).shares(items) == shares


def test_a_lost_machine_is_named(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(crew, "RayExecutor", lambda tell, address: told.append(tell) or _two_here([])(tell, address))
    with crew_of("ray", None, "model", Access(), 0), caplog.at_level(logging.WARNING):
        task = crew.Task("measure 1", print, {}, 0)
        told[0](TaskEvent("progress", task, "there"))
        assert not caplog.records
        told[0](TaskEvent("lost", task, "there", text="it is gone"))
    assert caplog.messages == ["measure 1: there was lost, another machine does it: it is gone"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"executor": "slurm"}, "`executor`: got 'slurm'; accepted: local, ray"),
        ({"address": "head:6379"}, "`address` has no effect on the executor local"),
    ],
)
def test_executors_that_are_refused(
    given: dict[str, str], problem: str, demo_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=problem):
        llmcompress.search(demo_checkpoint, _spec(text), tmp_path / "out", **given)
