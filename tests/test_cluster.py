"""Plans on a Ray cluster: the same bytes, and nothing lost with a node."""

from __future__ import annotations

import importlib.util
import platform
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plan_fixture import artifact_bytes, in_process, write_plan
from tiny_models import build_checkpoint

import llmcompress
from llmcompress import SearchSpec
from llmcompress.errors import LlmcompressError, ResourceError, UsageError
from llmcompress.runner import Event, run_plan
from llmcompress.spec import Calibration
from llmcompress.spec.plan import load_plan
from llmcompress.system.executors import RayExecutor, Task

HELD_OUT = Path(llmcompress.__file__).parent / "data" / "heldout.txt"
PLAN = """
output: out
models: [llama, qwen]
recipes:
  - none
  - int8
  - int8-sym
  - recipe: int4
    set: {weights.group_size: 32}
  - recipe: int4-sym
    set: {weights.group_size: 32}
  - recipe: nf4
    set: {weights.group_size: 32}
"""


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="the executor ray needs Ray, which is not installed") as caught:
        RayExecutor(lambda told: None)
    assert caught.value.exit_code == 3
    assert caught.value.hint == 'pip install "llmcompress[ray]"'


def test_an_address_is_for_ray(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    plan = load_plan(write_plan(tmp_path / "plan.yaml", "models: [m]\nrecipes: [int8]\n"))
    with pytest.raises(UsageError, match="`address` has no effect on the executor local"):
        run_plan(plan, address="head:6379")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that does no work and two nodes, all on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 10**8})
    made.workers = [made.add_node(num_cpus=2, memory=4 * 10**9) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_node_is_killed_in_the_middle(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_checkpoint(tmp_path / "llama", num_hidden_layers=1)
    build_checkpoint(tmp_path / "qwen", "qwen2", num_hidden_layers=1, seed=1)
    plan = load_plan(write_plan(tmp_path / "plan.yaml", PLAN))
    output = tmp_path / "out"
    events: list[Event] = []
    killed: list[str] = []

    def watch(event: Event) -> None:
        events.append(event)
        # Both models are at work, and one has artifacts already.
        made = [path for path in (output / "llama").glob("*/llmcompress.json") if path.is_file()]
        if not killed and made and event.progress is not None and event.task == "llama: compress":
            killed.append(event.task)
            cluster.remove_node(_node_of(cluster, "llama: compress"), allow_graceful=False)

    report = run_plan(plan, executor="ray", watch=watch)
    assert killed
    assert report.exit_code == 0, report
    assert [event.task for event in events if event.kind == "lost"] == ["llama: compress"]
    assert len([event for event in events if event.kind == "begin" and "compress" in event.task]) == 2
    assert all(row.made == ("compress",) for row in report.rows)

    in_process(monkeypatch)
    assert run_plan(plan, output_dir=tmp_path / "undisturbed").exit_code == 0
    assert artifact_bytes(output) == artifact_bytes(tmp_path / "undisturbed")


def _node_of(cluster: Any, label: str) -> Any:
    """The node that a task was sent to, by the executor's own book: all nodes here have one host name."""
    import gc

    (executor,) = (each for each in gc.get_objects() if isinstance(each, RayExecutor))
    node_id = executor._running[label].node
    return next(node for node in cluster.workers if node.node_id == node_id)


@pytest.mark.slow
def test_what_no_node_can_hold_is_refused(cluster: Any) -> None:
    with RayExecutor(lambda told: None) as executor:
        task = Task("big: compress", print, {}, memory_bytes=10**12)
        assert executor.has_room(task)
        assert executor.start(task) == platform.node()
        finished = executor.wait()
        assert isinstance(finished.error, ResourceError)
        assert "the largest node of the cluster offers 4.00 GB" in finished.error.message
        assert not executor.busy


def test_no_cluster_at_the_address() -> None:
    pytest.importorskip("ray")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(LlmcompressError, match="no Ray cluster can be used") as caught:
        RayExecutor(lambda told: None, address)
    assert "ray start --head" in caught.value.hint


@pytest.mark.slow
def test_nodes_search_together(cluster: Any, demo_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    spec = SearchSpec(
        dataset=str(tmp_path / "text.txt"),
        seq_len=64,
        num_samples=8,
        num_windows=8,
        candidates=("int4_sym:128+gptq", "int4_asym:32+gptq", "int8_asym"),
        num_probes=2,
        calibration=Calibration(dataset=str(HELD_OUT), num_samples=4, seq_len=64),
        bits_per_weight=5.6,
    )
    together = llmcompress.search(demo_checkpoint, spec, tmp_path / "together", executor="ray")
    alone = llmcompress.search(demo_checkpoint, spec, tmp_path / "alone")
    for name in ("openvino_model.bin", "recipe.yaml"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert [each.kl_divergence for each in together.contenders] == [each.kl_divergence for each in alone.contenders]


@pytest.mark.slow
def test_a_node_tunes_by_itself(cluster: Any, tmp_path: Path) -> None:
    """The search runs on a node, and its report is found by the next run, wherever that is."""
    build_checkpoint(tmp_path / "llama", num_hidden_layers=1)
    (tmp_path / "text.txt").write_text("\n\n".join(f"The quick fox {n} jumps over the lazy dog." for n in range(400)))
    text = """
output: out
models: [llama]
recipes: [int8]
tune: {dataset: text.txt, seq_len: 96, num_windows: 2, workloads: [tiny:8/4], repetitions: 3,
       properties: [KV_CACHE_PRECISION=f16]}
"""
    plan = load_plan(write_plan(tmp_path / "plan.yaml", text))
    events: list[Event] = []
    report = run_plan(plan, executor="ray", watch=events.append)
    assert report.exit_code == 0, report
    assert report.rows[1].made == ("tune",)
    # Whether it gains anything on so small a model is chance.
    assert (tmp_path / "out/llama/int8-tuned").exists() == (not report.rows[1].note)
    assert [event.task for event in events if event.kind == "begin"] == ["llama: compress", "llama/int8-tuned: tune"]
    assert any(event.kind == "progress" and event.task == "llama/int8-tuned: tune" for event in events)
    assert [row.made for row in run_plan(plan, executor="ray").rows] == [(), ()]
