"""A compression as it is asked of another process: naming it imports none of what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcompress.report.compression import CompressionReport


def requested(**options: Any) -> CompressionReport:
    """As ``compress``, with its keyword arguments; the process does nothing after it."""
    from llmcompress.compression.compress import compress
    from llmcompress.system.environment import ends_after_this_call

    ends_after_this_call()
    return compress(**options)
