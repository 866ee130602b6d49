"""Settings as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping

from llmcompress.report import Trial
from llmcompress.wording import interval_text

_SHORT = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "dynamic quantization",
    "KV_CACHE_PRECISION": "cache",
    "KEY_CACHE_PRECISION": "keys",
    "VALUE_CACHE_PRECISION": "values",
    "KEY_CACHE_GROUP_SIZE": "groups of keys",
    "VALUE_CACHE_GROUP_SIZE": "groups of values",
    "INFERENCE_PRECISION_HINT": "execution",
    "INFERENCE_NUM_THREADS": "threads",
    "SCHEDULING_CORE_TYPE": "cores",
    "ENABLE_HYPER_THREADING": "hyper-threading",
    "ENABLE_CPU_PINNING": "pinning",
    "PERFORMANCE_HINT": "mode",
}
"""For a table, in which the plugin's names would fill the line."""


def settings_text(properties: Mapping[str, str], between: str = ", ") -> str:
    """Settings in short: ``dynamic quantization 128, cache u8``."""
    return between.join(f"{_SHORT.get(name, name)} {value}" for name, value in sorted(properties.items())) or "default"


def gain_text(trial: Trial) -> str:
    """The gain with its interval; nothing for the default, whose gain is 1 by definition."""
    return "" if trial.gain is None or not trial.properties else interval_text(trial.gain, ".3g")


def remark_text(trial: Trial, *, reason: bool = True) -> str:
    """Whether it is on the front, and what became of it."""
    words = ["front"] if trial.on_front else []
    if trial.status not in ("default", "measured"):
        words.append(f"{trial.status}: {trial.reason}" if trial.reason and reason else trial.status)
    return (", " if reason else "\n").join(words)
