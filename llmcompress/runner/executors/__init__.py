"""Where the tasks of a run are carried out: this machine, or a Ray cluster.

local.py     a task and what came of it; this machine: one task after the other
cluster.py   Ray: one task at a time on each node

An executor is used as ``with executor:``; ``has_room(task)``, ``start(task)``, ``busy`` and ``wait()`` are all it does.
"""

from llmcompress.runner.executors.cluster import RayExecutor
from llmcompress.runner.executors.local import Finished, LocalExecutor, Task, TaskEvent

__all__ = ["Finished", "LocalExecutor", "RayExecutor", "Task", "TaskEvent"]
