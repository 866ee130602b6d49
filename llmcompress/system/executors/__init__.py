"""Where tasks are carried out: this machine, or a Ray cluster.

local.py     a task and what came of it; this machine: one task after the other
cluster.py   Ray: one task at a time on each node

An executor is used as ``with executor:``; ``has_room(task)``, ``start(task)``, ``busy`` and ``wait()`` are all it does.
"""

from typing import Literal, get_args

from llmcompress.errors import UsageError
from llmcompress.system.executors.cluster import RayExecutor
from llmcompress.system.executors.local import Finished, LocalExecutor, Task, TaskEvent

ExecutorName = Literal["local", "ray"]

__all__ = ["ExecutorName", "Finished", "LocalExecutor", "RayExecutor", "Task", "TaskEvent", "check_executor"]


def check_executor(executor: str, address: str | None) -> None:
    """Refuse what has no effect.

    Raises:
        UsageError: There is no such executor, or an address is given to one that has none.
    """
    accepted = get_args(ExecutorName)
    if executor not in accepted:
        raise UsageError(f"`executor`: got {executor!r}; accepted: {', '.join(accepted)}", hint="write one of these")
    if address is not None and executor != "ray":
        raise UsageError("`address` has no effect on the executor local", hint="add `executor` ray")
