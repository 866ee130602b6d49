"""A Ray cluster: one task at a time on each node, which so has the whole node, and another node where one is lost.

Ray's own queue is not used to choose the node: a task asks for the node it is meant for, with all of its processors and
the memory it is predicted to need, so that other users' work keeps away from a benchmark too. Sources and outputs must
be at the same path on every node.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from llmcompress.errors import InterruptedRunError, LlmcompressError, ResourceError, one_line
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.executors.local import Finished, Task, TaskEvent
from llmcompress.system.messages import sendable
from llmcompress.system.progress import Progress

MAX_LOST = 3
"""Nodes that one task may lose before it counts as failed."""
SETTLE_S = 5.0
"""Until a lost node's processes have noticed, and given up their locks."""
KNOCK_S = 10.0
_LOOK_S = 0.25


@dataclass
class _Running:
    task: Task
    node: str
    where: str
    reference: Any


@dataclass
class _Retry:
    task: Task
    not_before: float


class RayExecutor:
    """Sends tasks to the nodes of a cluster, or to a Ray of its own on this machine.

    Raises:
        ResourceError: Ray is not installed.
        LlmcompressError: No cluster answers at the address.
    """

    def __init__(self, tell: Callable[[TaskEvent], None], address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ResourceError(
                "the executor ray needs Ray, which is not installed",
                where="`executor`",
                hint='pip install "llmcompress[ray]"',
            )
        # It reports usage to its makers otherwise.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._tell = tell
        self._started_here = not ray.is_initialized()
        if self._started_here:
            address = address or os.environ.get("RAY_ADDRESS")
            _require_answer(address)
            try:
                ray.init(
                    address=address,
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _no_cluster(address, error) from error
        self._running: dict[str, _Running] = {}
        self._retries: list[_Retry] = []
        self._refused: list[Finished] = []
        self._num_lost: dict[str, int] = {}
        self._gone: set[str] = set()
        self._board: Any = None

    @property
    def busy(self) -> bool:
        """Whether there is something to wait for."""
        return bool(self._running or self._retries or self._refused)

    @property
    def num_nodes(self) -> int:
        """That take tasks."""
        return len(self._nodes())

    def has_room(self, task: Task) -> bool:
        """Whether an idle node has the memory, or no node of the cluster has it: then ``wait`` says so."""
        return self._node_for(task) is not None or all(_memory(node) < task.memory_bytes for node in self._nodes())

    def start(self, task: Task) -> str:
        """Send the task; returns where it runs."""
        node = self._node_for(task)
        if node is None:
            most = max((_memory(node) for node in self._nodes()), default=0)
            error = ResourceError(
                f"it needs {task.memory_bytes / 1e9:.2f} GB of memory, "
                f"the largest node of the cluster offers {most / 1e9:.2f} GB",
                where=task.label,
                hint="add a node with more memory, or run ray start ... --memory BYTES",
            )
            self._refused.append(Finished(task, platform.node(), None, error))
            return platform.node()
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._board is None:
            # With the driver, which is lost only with the whole run.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        whole = {"num_cpus": node["Resources"]["CPU"], "memory": task.memory_bytes}
        perform = ray.remote(_perform_there).options(**whole, max_retries=0, scheduling_strategy=there)
        reference = perform.remote(task, self._board)
        where = str(node["NodeManagerHostname"])
        self._running[task.label] = _Running(task, node["NodeID"], where, reference)
        return where

    def wait(self) -> Finished:
        """Wait until a task ends; one whose node was lost is started again on another."""
        import ray

        while not self._refused:
            now = time.monotonic()
            for retry in [each for each in self._retries if each.not_before <= now]:
                if self.has_room(retry.task):
                    self._retries.remove(retry)
                    self.start(retry.task)
            self._pass_on()
            by_reference = {running.reference: running for running in self._running.values()}
            if not by_reference:
                time.sleep(_LOOK_S)
                continue
            ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=_LOOK_S)
            for reference in ready:
                running = by_reference[reference]
                finished = self._finished(running)
                if finished is not None:
                    self._pass_on()
                    return finished
        return self._refused.pop()

    def _finished(self, running: _Running) -> Finished | None:
        """What came of a task; None: its node was lost, and it will be done again."""
        import ray

        del self._running[running.task.label]
        try:
            result, error = ray.get(running.reference)
        except ray.exceptions.RayError as lost:
            if isinstance(lost, (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)):
                # Ray lists a dead node as alive for a while.
                self._gone.add(running.node)
            result, error = None, InterruptedRunError(one_line(lost, 300))
        if not isinstance(error, InterruptedRunError):
            self._num_lost.pop(running.task.label, None)
            return Finished(running.task, running.where, result, error)
        count = self._num_lost[running.task.label] = self._num_lost.get(running.task.label, 0) + 1
        if count >= MAX_LOST:
            gone = LlmcompressError(
                f"the machine that worked on it was lost {count} times; the last time: {error.message}",
                where=running.where,
                hint="see what ends the nodes (memory, a batch system's limit), then run the same command again",
            )
            return Finished(running.task, running.where, None, gone)
        self._tell(TaskEvent("lost", running.task, running.where, text=error.message))
        self._retries.append(_Retry(running.task, time.monotonic() + SETTLE_S))
        return None

    def _pass_on(self) -> None:
        import ray

        if self._board is None:
            return
        for label, step in ray.get(self._board.taken.remote()):
            if label in self._running:
                running = self._running[label]
                self._tell(TaskEvent("progress", running.task, running.where, step))

    def _nodes(self) -> list[dict[str, Any]]:
        import ray

        there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self._gone]
        # The head of a cluster may be there for the book-keeping only.
        return [node for node in there if node["Resources"].get("CPU", 0) >= 1]

    def _node_for(self, task: Task) -> dict[str, Any] | None:
        taken = {running.node for running in self._running.values()}
        idle = (node for node in self._nodes() if node["NodeID"] not in taken)
        return next((node for node in idle if _memory(node) >= task.memory_bytes), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        import ray

        for running in self._running.values():
            ray.cancel(running.reference, force=True)
        self._running.clear()
        if self._started_here:
            ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Knock at an address first: Ray itself would go on trying for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> LlmcompressError:
    return LlmcompressError(
        f"no Ray cluster can be used: {one_line(error, 300)}",
        where=address or "`executor` ray",
        hint="start one with `ray start --head`, and give `address` HOST:6379",
    )


def _memory(node: dict[str, Any]) -> float:
    return float(node["Resources"].get("memory", 0))


class _Board:
    """The last step of each task, for the driver to fetch."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Progress]] = []

    def tell(self, label: str, step: Progress) -> None:
        self._steps.append((label, step))

    def taken(self) -> list[tuple[str, Progress]]:
        """What was told since the last time."""
        steps, self._steps = self._steps, []
        return steps


def _perform_there(task: Task, board: Any) -> tuple[object, Exception | None]:
    """On a node: errors travel as values, so that what Ray raises is Ray's own."""
    quiet_libraries()
    last, stage = 0.0, ""

    def progress(step: Progress) -> None:
        nonlocal last, stage
        now = time.monotonic()
        # The end of a stage and each new one are told; in between a few a second are enough.
        if step.stage != stage or step.done >= step.total or now - last > _LOOK_S:
            last, stage = now, step.stage
            board.tell.remote(task.label, step)

    try:
        return task.function(**task.kwargs, progress=progress, logs=None), None
    except Exception as error:  # noqa: BLE001 - whatever ends a task is its outcome
        return None, sendable(error)
