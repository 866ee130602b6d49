"""Which settings of the runtime make the same bits faster on this device, and what they cost."""

from llmcompress.tuning.application import TUNE_REPORT, apply_tuning, read_tuning, runtime_profile, write_profile
from llmcompress.tuning.pipeline import tune

__all__ = ["TUNE_REPORT", "apply_tuning", "read_tuning", "runtime_profile", "tune", "write_profile"]
