"""Figures as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcompress.report.benchmark import BenchCase, Stats
    from llmcompress.report.evaluation import Estimate, EvalReport, GateStatus

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

DAMAGE_PARTS = {
    "weights": "weights alone",
    "kv_cache": "with the cache's precision",
    "dynamic_quantization": "with dynamic quantization",
    "execution_precision": "with the execution precision",
    "all": "all as used",
    "paged": "all as used, paged",
}
"""What is added, step by step, from the weights alone to the model as it is used."""

PICTURE_DAMAGE_PARTS = {
    "language_model": "the language model alone",
    "other_parts": "what sees and embeds alone",
}
"""What is compressed where the other parts are the original's."""

GATE_STATUSES: dict[GateStatus, str] = {
    "no_thresholds": "no thresholds set",
    "passed": "passed",
    "failed": "FAILED",
    "not_judged": "not judged",
}
"""What the gate says of a model."""


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


def rate_text(stats: Stats | None) -> str:
    """A rate with its spread over the repetitions: `52.3 ± 0.4`."""
    if stats is None:
        return ""
    return f"{stats.p50:,.0f} ± {stats.std:,.0f}" if stats.p50 >= 100 else f"{stats.p50:.1f} ± {stats.std:.1f}"


def quoted_text(reports: Mapping[str, EvalReport]) -> str:
    """Say of which graph a table's quality is, where more than one was measured; empty where none of them was."""
    of: dict[str, list[str]] = {}
    for name, report in reports.items():
        if len(report.backends) > 1:
            of.setdefault(report.worst.backend, []).append(name)
    words = "; ".join(f"{backend} of {', '.join(names)}" for backend, names in of.items())
    return words and f"Quality is that of the graph that loses more, where both were measured: {words}."


def settings_text(properties: Mapping[str, str], between: str = ", ") -> str:
    """Settings in short: ``dynamic quantization 128, cache u8``."""
    return between.join(property_text(name, value) for name, value in sorted(properties.items())) or "default"


def property_text(name: str, value: str) -> str:
    """One setting in short: ``cache u8``."""
    return f"{_PROPERTIES.get(name, name)} {value}"


def shape_text(case: BenchCase) -> str:
    """A shape in short: `512+128`, `4 x 512+128 at 2048`, `448 px, 64+128` with a picture."""
    batch = f"{case.batch_size} x " if case.batch_size > 1 else ""
    depth = f" at {case.depth}" if case.depth else ""
    picture = f"{case.picture_size} px, " if case.picture_size else ""
    return f"{picture}{batch}{case.prompt_tokens}+{case.new_tokens}{depth}"


def interval_text(estimate: Estimate, form: str = ".4g") -> str:
    """A value with its interval: `0.00479 [0.00457, 0.00501]`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}} [no interval]"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
