"""What is compared: artifacts with the reports that were measured of just their bytes, and jobs that came to none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llmcompress.artifact import read_measurements
from llmcompress.errors import UsageError
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
        """How far it is from its reference; None where that was not measured."""
        return self.evaluation.divergence if self.evaluation else None


class FailedRow(Record):
    """A job that came to no artifact."""

    name: str
    reason: str
    """One line."""
    exit_code: int
    """Of the class of its error, as in ``llmcompress.errors``."""


def read_rows(directories: Sequence[str | Path]) -> tuple[Row, ...]:
    """Read the manifests and the reports next to them.

    Raises:
        ArtifactError: A directory is no artifact.
        UsageError: The same directory is given twice.
    """
    paths = [Path(directory) for directory in directories]
    names = _names(paths)
    return tuple(_row(path, name) for path, name in zip(paths, names, strict=True))


def _row(directory: Path, name: str) -> Row:
    found = read_measurements(directory)
    return Row(
        name=name,
        directory=_unicode(directory),
        manifest_sha256=found.manifest_sha256,
        manifest=found.manifest,
        evaluation=found.evaluation,
        benchmark=found.benchmark,
        kept_defaults=found.tuning.reason if found.tuning and not found.tuning.in_model else "",
        passed_over=found.unused,
    )


def _names(paths: Sequence[Path]) -> list[str]:
    found = [path.resolve() for path in paths]
    for number, path in enumerate(found):
        if path in found[:number]:
            raise UsageError("is given twice", where=str(paths[number]), hint="name each directory once")
    length = 1
    while len({path.parts[-length:] for path in found}) < len(found):
        length += 1
    return [_unicode(Path(*path.parts[-length:])) for path in found]


def _unicode(path: Path) -> str:
    """The path as text; bytes of a file name that are no UTF-8 become replacement characters."""
    return os.fsencode(path).decode("utf-8", "replace")
