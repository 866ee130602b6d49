"""LoadedModel + Recipe -> compressed ``ov.Model`` -> a complete directory."""

from __future__ import annotations

from llmcompress.compression.pipeline import compress

__all__ = ["compress"]
