"""The machine while it is measured: how steady it is, how fast it reads memory, what energy it takes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmcompress.report.benchmark import Steadiness
from llmcompress.system.memory import memory

RAPL = Path("/sys/class/powercap")
MAX_ARRAY_BYTES = 1 << 30
BEST_OF = 5


def memory_bandwidth_bytes_per_s(num_threads: int) -> float:
    """The best of five reads of an array far larger than the caches, each thread summing its own part.

    The array is at most 1 GiB and a quarter of the memory that is free.
    """
    import numpy as np

    num_bytes = min(MAX_ARRAY_BYTES, memory().available // 4)
    # Written once, so that every page is there.
    parts = np.array_split(np.ones(num_bytes // 8, dtype=np.int64), max(1, num_threads))
    best = float("inf")
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(BEST_OF):
            started = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - started)
    return sum(part.nbytes for part in parts) / best


class Observer:
    """Looks at the machine between runs."""

    def __init__(self) -> None:
        self._load_before = _load()
        self._frequencies: list[float] = []
        self._temperatures: list[float] = []

    def look(self) -> None:
        """Note frequency and temperature, where the machine shows them."""
        import psutil

        with contextlib.suppress(Exception):
            frequency = psutil.cpu_freq()
            if frequency and frequency.current:
                self._frequencies.append(float(frequency.current))
        with contextlib.suppress(Exception):
            for sensors in psutil.sensors_temperatures().values():
                self._temperatures += [float(sensor.current) for sensor in sensors]

    def steadiness(self) -> Steadiness:
        """What was seen."""
        return Steadiness(
            load_before=self._load_before,
            load_after=_load(),
            frequency_mhz=(min(self._frequencies), max(self._frequencies)) if self._frequencies else None,
            temperature_c=max(self._temperatures, default=None),
        )


class EnergyMeter:
    """The counters of the processors' packages (RAPL); none where the machine shows none or they may not be read."""

    def __init__(self, root: Path = RAPL) -> None:
        self._counters = []
        for counter in sorted(root.glob("intel-rapl:[0-9]*/energy_uj")):
            if counter.parent.name.count(":") == 1 and _read(counter) is not None:
                self._counters.append((counter, _read(counter.with_name("max_energy_range_uj")) or 0))

    @contextlib.contextmanager
    def measured(self, joules: list[float]) -> Iterator[None]:
        """Add the energy of what happens meanwhile to ``joules``; nothing where there is no counter."""
        before = [_read(counter) for counter, _ in self._counters]
        yield
        total = 0
        for (counter, span), first in zip(self._counters, before, strict=True):
            last = _read(counter)
            if first is None or last is None:
                return
            # The counter starts again at its end.
            total += last - first if last >= first else last - first + span
        if self._counters:
            joules.append(total / 1e6)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
