"""A graph is kept in the background: by a process of its own, after the command has ended, beside the user's work."""

from __future__ import annotations

import logging

from llmcompress.compression.forecast import forecast
from llmcompress.compression.replay.key import KIND, why_not
from llmcompress.compression.replay.recording import FinishedRun, keep_run
from llmcompress.system.background import start_background
from llmcompress.system.cache import cache_dir
from llmcompress.system.files import free_bytes
from llmcompress.system.memory import memory
from llmcompress.system.progress import Progress, Reporter, silent

STAGE = "keep the graph in the background"

_log = logging.getLogger(__name__)


def keep_in_background(made: FinishedRun, progress: Reporter) -> str:
    """Start a process that keeps the graph of an artifact that is in place.

    Returns:
        Why it is not kept; empty where the process goes on.
    """
    reason = why_not(made.source, made.recipe, made.engine)
    if reason:
        return reason
    what = f"keeps the graph of {made.source.name} by {made.recipe.name}"
    if not start_background(keep_beside, {"made": made}, what=what):
        return "another one is being kept, or no process can be left behind here"
    progress(Progress(STAGE, 1, 1))
    return ""


def keep_beside(made: FinishedRun) -> None:
    """Keep a graph where there is room for it beside other work, with one thread."""
    reason = _no_room(made)
    if not reason:
        import torch

        torch.set_num_threads(1)
        reason = keep_run(made, silent, in_background=True)
    _log.info("%s by %s: %s", made.source.name, made.recipe.name, f"not kept: {reason}" if reason else "kept")


def _no_room(made: FinishedRun) -> str:
    """Whether a run of the same size would still fit beside this one, in memory and on disk."""
    needed = forecast(made.source, made.recipe, None, engine=made.engine).min_memory_bytes
    if 2 * needed > memory().available:
        return f"{2 * needed:,} bytes of memory should be free beside other work"
    # What is kept is compared with the artifact beside it, and takes its room for a moment.
    if 2 * made.report.size_bytes > min(free_bytes(made.artifact), free_bytes(cache_dir() / KIND)):
        return f"{2 * made.report.size_bytes:,} bytes of the disk should be free beside other work"
    return ""
