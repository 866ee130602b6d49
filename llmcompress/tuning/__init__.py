"""Which settings of the runtime make the same bits faster on this device, and what they cost."""

from llmcompress.tuning.application import (
    TUNE_REPORT,
    apply_tuning,
    check_profile_path,
    read_tuning,
    runtime_profile,
    write_profile,
)
from llmcompress.tuning.page import write_tuning_page
from llmcompress.tuning.pipeline import tune

__all__ = [
    "TUNE_REPORT",
    "apply_tuning",
    "check_profile_path",
    "read_tuning",
    "runtime_profile",
    "tune",
    "write_profile",
    "write_tuning_page",
]
