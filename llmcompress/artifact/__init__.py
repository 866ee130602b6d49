"""The output directory: staged next to its place, listed by its manifest, placed by one rename, verified when read."""

from llmcompress.artifact.failures import write_errors
from llmcompress.artifact.manifest import (
    HUB_FILES,
    REPORTS,
    file_records,
    manifest_sha256,
    read_manifest,
)
from llmcompress.artifact.output import Staging, remove_artifact, remove_leftovers, staging
from llmcompress.artifact.reports import Measurements, add_benchmark, read_measurements, replace_report, write_report
from llmcompress.artifact.verification import Problem, VerifyReport, require_verified, verify
from llmcompress.report.file_names import MANIFEST

__all__ = [
    "HUB_FILES",
    "MANIFEST",
    "REPORTS",
    "Measurements",
    "Problem",
    "Staging",
    "VerifyReport",
    "add_benchmark",
    "file_records",
    "manifest_sha256",
    "read_manifest",
    "read_measurements",
    "remove_artifact",
    "remove_leftovers",
    "replace_report",
    "require_verified",
    "staging",
    "verify",
    "write_errors",
    "write_report",
]
