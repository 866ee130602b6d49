"""A compression as it is asked of another process: naming it imports none of what it needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcompress.compression.replay.key import GraphCacheOption
    from llmcompress.report.compression import CompressionReport


def requested(*, graph_cache: GraphCacheOption, **options: Any) -> CompressionReport:
    """As ``compress``, with its keyword arguments; the process does nothing after it.

    Where nothing says what becomes of the graph, it is kept in the background.
    """
    from llmcompress.compression.compress import compress
    from llmcompress.compression.replay.key import setting
    from llmcompress.system.environment import ends_after_this_call

    ends_after_this_call()
    if graph_cache is None and setting() is None and not _ends_with_command():
        graph_cache = "background"
    return compress(graph_cache=graph_cache, **options)


def _ends_with_command() -> bool:
    """Whether this place goes with the command that asked: a service's job, or a container that it is the first of."""
    import psutil

    try:
        return bool(os.environ.get("CI")) or psutil.Process(os.getppid()).ppid() <= 1
    except psutil.Error:
        return True
