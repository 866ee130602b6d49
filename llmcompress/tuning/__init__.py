"""Which settings of the runtime make the same bits faster on this device, and what they cost."""

from llmcompress.tuning.application import (
    apply_tuning,
    check_profile_path,
    read_tuning,
    runtime_profile,
    tuning_origin,
    write_profile,
)
from llmcompress.tuning.damage import searched_text
from llmcompress.tuning.page import write_tuning_page
from llmcompress.tuning.space import check_properties

__all__ = [
    "apply_tuning",
    "check_profile_path",
    "check_properties",
    "read_tuning",
    "runtime_profile",
    "searched_text",
    "tuning_origin",
    "write_profile",
    "write_tuning_page",
]
