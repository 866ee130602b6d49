"""Machines that share the work of a search: each makes some of the weights by GPTQ, and measures some of the plans.

The machine that searches takes sensitivities, solves, and writes plans; these lie next to the output, which is at the
same path on every machine, and so is what the others make.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llmcompress.errors import ResourceError
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.resolving import resolve
from llmcompress.spec import Access
from llmcompress.system.executors import ExecutorName, RayExecutor, Task, TaskEvent, check_executor
from llmcompress.system.progress import Progress, Reporter, silent

_log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")


class Crew(NamedTuple):
    """Other machines, and how they open the model."""

    executor: Any
    """As ``llmcompress.system.executors`` describes one."""
    num_machines: int
    source: str
    access: Access
    memory_bytes: int
    """What a task needs."""
    place: Path = Path()
    """Where machines hand over what they made."""

    def shares(self, items: Sequence[ItemT]) -> list[list[ItemT]]:
        """The items in as many parts as there are machines, none of them empty."""
        parts = [list(items[number :: self.num_machines]) for number in range(self.num_machines)]
        return [part for part in parts if part]

    def carry_out(
        self, stage: str, function: Callable[..., object], calls: Sequence[Mapping[str, Any]], progress: Reporter
    ) -> list[Any]:
        """Call a function on the machines, at most one call at a time on each.

        Args:
            stage: What is done, for people.
            function: It takes ``source``, ``access``, ``progress`` and ``logs`` besides; a pickle names it.
            calls: Its other arguments.
            progress: Told of each call that is done.

        Returns:
            What the calls gave, in their order.

        Raises:
            LlmcompressError: The first call that failed.
        """
        opened = {"source": self.source, "access": self.access}
        waiting = [
            Task(f"{stage} {number}", function, {**opened, **call}, self.memory_bytes)
            for number, call in enumerate(calls)
        ]
        labels, found = [task.label for task in waiting], dict[str, Any]()
        while len(found) < len(labels):
            progress(Progress(stage, len(found), len(labels), "parts"))
            while waiting and self.executor.has_room(waiting[0]):
                self.executor.start(waiting.pop(0))
            finished = self.executor.wait()
            if finished.error is not None:
                raise finished.error
            found[finished.task.label] = finished.result
        progress(Progress(stage, len(labels), len(labels), "parts"))
        return [found[label] for label in labels]


@contextlib.contextmanager
def crew_of(
    executor: ExecutorName, address: str | None, source: str, access: Access, memory_bytes: int
) -> Iterator[Crew | None]:
    """The nodes of a Ray cluster; None: this machine does everything.

    Raises: as ``check_executor`` and ``RayExecutor``; ResourceError: No node takes tasks.
    """
    check_executor(executor, address)
    if executor == "local":
        yield None
        return
    with RayExecutor(_say_what_was_lost, address) as workers:
        if not workers.num_nodes:
            raise ResourceError(
                "no node of the cluster takes tasks",
                where=address or "`executor` ray",
                hint="start one with `ray start --address HOST:6379`, or leave `executor` out",
            )
        yield Crew(workers, workers.num_nodes, source, access, memory_bytes)


def _say_what_was_lost(event: TaskEvent) -> None:
    if event.kind == "lost":
        _log.warning("%s: %s was lost, another machine does it: %s", event.task.label, event.where, event.text)


def loaded_there(source: str, access: Access, progress: Reporter = silent) -> LoadedModel:
    """Open the model on another machine.

    Raises: as ``resolve``, ``fetch_weights`` and ``load``.
    """
    found = fetch_weights(resolve(source, access, vision=True), progress=progress)
    return load(found, tokenizer=False, allow_nonfinite=access.allow_nonfinite, progress=progress)
