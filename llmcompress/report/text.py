"""Figures as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping

_PROPERTIES = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "dynamic quantization",
    "KV_CACHE_PRECISION": "cache",
    "KEY_CACHE_PRECISION": "keys",
    "VALUE_CACHE_PRECISION": "values",
    "KEY_CACHE_GROUP_SIZE": "groups of keys",
    "VALUE_CACHE_GROUP_SIZE": "groups of values",
    "INFERENCE_PRECISION_HINT": "execution",
    "INFERENCE_NUM_THREADS": "threads",
    "NUM_STREAMS": "streams",
    "SCHEDULING_CORE_TYPE": "cores",
    "ENABLE_HYPER_THREADING": "hyper-threading",
    "ENABLE_CPU_PINNING": "pinning",
    "PERFORMANCE_HINT": "mode",
}
"""For a table, in which the plugin's names would fill the line."""


def size_text(num_bytes: float) -> str:
    """Return a number of bytes in the SI unit that keeps it short: `512 B`, `7.9 MB`, `1.47 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}" if num_bytes < 100 * scale else f"{num_bytes / scale:,.0f} {unit}"
    return f"{num_bytes:.0f} B"


def count_text(count: int) -> str:
    """Return a number of parameters in millions or billions: `8.13 M`, `1.1 B`."""
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:,}"


def duration_text(seconds: float) -> str:
    """Return a duration as people say it: `0.4 s`, `27 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def settings_text(properties: Mapping[str, str], between: str = ", ") -> str:
    """Settings in short: ``dynamic quantization 128, cache u8``."""
    return between.join(property_text(name, value) for name, value in sorted(properties.items())) or "default"


def property_text(name: str, value: str) -> str:
    """One setting in short: ``cache u8``."""
    return f"{_PROPERTIES.get(name, name)} {value}"
