"""What is compared: artifacts with the reports that were measured of just their bytes, and jobs that came to none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from llmcompress.artifact import manifest_sha256, read_manifest
from llmcompress.errors import UsageError
from llmcompress.report import BenchReport, CompressionReport, DivergenceRecord, EvalReport, Record

Report = TypeVar("Report", EvalReport, BenchReport)

_OTHER_BYTES = "is of other bytes than the directory now holds: measure again"


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
    """Read the manifests and the reports beside them.

    Raises:
        ArtifactError: A directory is no artifact.
        UsageError: The same directory is given twice.
    """
    paths = [Path(directory) for directory in directories]
    names = _names(paths)
    return tuple(_row(path, name) for path, name in zip(paths, names, strict=True))


def _row(directory: Path, name: str) -> Row:
    manifest = read_manifest(directory)
    digest = manifest_sha256(directory)
    passed_over: dict[str, str] = {}
    evaluation = _report(directory / "eval.json", EvalReport, passed_over)
    if evaluation is not None and evaluation.model.manifest_sha256 != digest:
        evaluation, passed_over["eval.json"] = None, _OTHER_BYTES
    benchmark = _report(directory / "bench.json", BenchReport, passed_over)
    if benchmark is not None and benchmark.manifest_sha256 != digest:
        benchmark, passed_over["bench.json"] = None, _OTHER_BYTES
    return Row(
        name=name,
        directory=_unicode(directory),
        manifest_sha256=digest,
        manifest=manifest,
        evaluation=evaluation,
        benchmark=benchmark,
        passed_over=passed_over,
    )


def _report(path: Path, kind: type[Report], passed_over: dict[str, str]) -> Report | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        passed_over[path.name] = "cannot be read: measure again"
        return None


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
