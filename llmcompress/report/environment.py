"""The libraries and the machine that a result's bytes depend on."""

from __future__ import annotations

import platform

from llmcompress.report.record import EnvironmentRecord
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, cpu_name, installed_versions, platform_name


def environment_record(num_threads: int) -> EnvironmentRecord:
    """Record what the result's bytes depend on besides its inputs; no host name, user or time.

    `num_threads` is the number of threads it was computed with: sums split over threads round differently.
    """
    return EnvironmentRecord(
        versions=installed_versions(PACKAGES_THAT_DECIDE_BYTES) | {"python": platform.python_version()},
        cpu=cpu_name(),
        num_threads=num_threads,
        platform=platform_name(),
    )
