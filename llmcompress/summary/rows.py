"""What is set next to each other: artifacts with the reports of just their bytes, and jobs that made none."""

from __future__ import annotations

from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import DivergenceRecord, EvalReport
from llmcompress.report.record import Record


class Row(Record):
    """One artifact; a report is None where nothing was measured of these bytes."""

    name: str
    """The shortest ending of its path that no other row has."""
    directory: str
    """As it was given."""
    manifest_sha256: str
    manifest: CompressionReport
    evaluation: EvalReport | None
    benchmark: BenchReport | None
    kept_defaults: str = ""
    """Why tuning found nothing to put into it; empty where it did, and where nothing was tuned."""
    passed_over: dict[str, str]
    """Reports that are there and not shown, by file name, and why."""

    @property
    def divergence(self) -> DivergenceRecord | None:
        """How far it is from its reference on the backend that loses most; None where that was not measured."""
        return self.evaluation.worst.divergence if self.evaluation else None


class FailedRow(Record):
    """A job that made no artifact."""

    name: str
    reason: str
    """One line."""
    exit_code: int
    """Of the class of its error, as in ``llmcompress.errors``."""
