"""Run the heavy stage in a process of its own, so that its end, whatever it is, becomes an error that says what to do.

parent.py     start the worker, show its progress, pass on Ctrl-C and SIGTERM, collect its result
worker.py     the child: undisturbed by library output, gone when its parent is gone
death.py      what a worker's sudden end means: memory, a crash, a signal
messages.py   what the two say to one another
"""

from llmcompress.supervisor.parent import run_supervised

__all__ = ["run_supervised"]
