"""Source -> ``LoadedModel``."""

from __future__ import annotations

from llmcompress.loaders.loaded_model import LoadedModel, load

__all__ = ["LoadedModel", "load"]
