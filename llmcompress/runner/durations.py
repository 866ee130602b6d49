"""How long a step took on this machine, so that the same step can be predicted: nothing is extrapolated."""

from __future__ import annotations

import contextlib
import json
import os
import platform

from pydantic import BaseModel

from llmcompress.loaders.source import Source, identity
from llmcompress.system.cache import cache_dir, content_key
from llmcompress.system.environment import cpu_name
from llmcompress.system.files import replace_file
from llmcompress.system.json_file import noted

KIND = "durations"


def remember(step: str, found: Source, settings: tuple[BaseModel, ...], duration_s: float) -> None:
    """Note how long a step took; a cache that cannot be written stops nothing."""
    path = cache_dir() / KIND / f"{_key(step, found, settings)}.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"step": step, "duration_s": float(duration_s)}).encode(), durable=False)


def remembered(step: str, found: Source, settings: tuple[BaseModel, ...]) -> float | None:
    """Return the duration, in seconds, of the last such step of this source with these settings on this machine."""
    known = noted(cache_dir() / KIND / f"{_key(step, found, settings)}.json").get("duration_s")
    return known if isinstance(known, float) else None


def _key(step: str, found: Source, settings: tuple[BaseModel, ...]) -> str:
    return content_key(
        {
            "step": step,
            "source": identity(found),
            "settings": [part.model_dump(mode="json") for part in settings],
            "machine": [platform.node(), cpu_name(), os.cpu_count()],
        }
    )
