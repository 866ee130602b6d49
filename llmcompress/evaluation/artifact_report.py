"""The report of an artifact, its ``eval.json``: written, and judged again by other thresholds."""

from __future__ import annotations

import logging
from pathlib import Path

from llmcompress.artifact import manifest_sha256, read_manifest, write_report
from llmcompress.errors import ArtifactError
from llmcompress.evaluation.gate import carried, combined, gate_record, picture_checks, worst_checks
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import EVAL_REPORT
from llmcompress.spec import Gate

_log = logging.getLogger(__name__)


def store_report(directory: Path, report: EvalReport) -> EvalReport:
    """Write the report into the artifact; what an earlier one of the same bytes has shown is not lost by it.

    A check that failed stays failed until it is made again and passes. A report without a reference does not replace
    one with it.

    Raises:
        WriteError: The disk refuses; the earlier report is still there.
    """
    earlier = _earlier(directory)
    if earlier is not None and earlier.model.manifest_sha256 == report.model.manifest_sha256:
        report = report.model_copy(update={"gate": carried(earlier.gate, report.gate)})
        if earlier.divergence is not None and report.divergence is None:
            _log.warning("%s keeps the earlier report, which has a reference", directory / EVAL_REPORT)
            return report
    write_report(directory, EVAL_REPORT, report)
    return report


def judge_again(directory: str | Path, gate: Gate) -> EvalReport:
    """Hold an artifact's ``eval.json`` against thresholds that changed since it was written; nothing is measured.

    Args:
        directory: An artifact with a report.
        gate: Thresholds, in addition to those of the artifact's recipe.

    Raises:
        ArtifactError: It is no artifact, or has no report of its bytes.
        WriteError: The report could not be written.
    """
    directory = Path(directory)
    earlier = _earlier(directory)
    manifest = read_manifest(directory)
    if earlier is None or earlier.model.manifest_sha256 != manifest_sha256(directory):
        raise ArtifactError(f"has no {EVAL_REPORT} of its bytes", where=str(directory), hint="run: llmcompress eval")
    probes = [check for check in earlier.gate.checks if check.name not in Gate.model_fields]
    thresholds = combined(manifest.recipe.gate, gate)
    of_pictures = picture_checks(thresholds, earlier.pictures)
    checks = (*worst_checks(thresholds, earlier.divergences), *of_pictures, *probes)
    report = earlier.model_copy(update={"gate": carried(earlier.gate, gate_record(checks))})
    if report != earlier:
        write_report(directory, EVAL_REPORT, report)
    return report


def _earlier(directory: Path) -> EvalReport | None:
    try:
        return EvalReport.model_validate_json((directory / EVAL_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
