"""Reports that later steps put into an output directory, and what they say of the bytes that lie there now."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from llmcompress.artifact.failures import write_errors
from llmcompress.artifact.manifest import manifest_sha256, read_manifest
from llmcompress.report.benchmark import BenchFile, BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import BENCH_REPORT, EVAL_REPORT, SEARCH_REPORT, TUNE_REPORT
from llmcompress.report.record import Record
from llmcompress.report.search import SearchReport
from llmcompress.report.tuning import TuneReport
from llmcompress.system.files import replace_file

_Report = TypeVar("_Report", EvalReport, BenchFile, TuneReport, SearchReport)


class Measurements(NamedTuple):
    """The manifest of an artifact and the reports that were measured on these very bytes."""

    manifest: CompressionReport
    manifest_sha256: str
    evaluation: EvalReport | None
    benchmark: BenchReport | None
    """The newest run."""
    tuning: TuneReport | None
    search: SearchReport | None
    unused: dict[str, str]
    """Reports that are there and are not used, each with the reason."""
    benchmarks: tuple[BenchReport, ...]
    """Every run, the newest first."""


def read_measurements(directory: Path) -> Measurements:
    """Read the manifest and the reports of an artifact; a report of other bytes is not used.

    Raises:
        ArtifactError: The directory is not an artifact, or its manifest cannot be read.
    """
    manifest = read_manifest(directory)
    digest = manifest_sha256(directory)
    unused: dict[str, str] = {}
    evaluation = _read(directory / EVAL_REPORT, EvalReport, digest, unused)
    speeds = _read(directory / BENCH_REPORT, BenchFile, digest, unused)
    tuning = _read(directory / TUNE_REPORT, TuneReport, digest, unused)
    search = _read(directory / SEARCH_REPORT, SearchReport, digest, unused)
    runs = speeds.runs if speeds else ()
    return Measurements(manifest, digest, evaluation, runs[0] if runs else None, tuning, search, unused, runs)


def write_report(directory: Path, name: str, report: Record) -> Path:
    """Put a report into an artifact by one rename; an earlier one of that name is replaced.

    Args:
        name: One of ``REPORTS``; such files are no part of what the manifest lists.

    Raises:
        WriteError: The disk refuses; the earlier report is still there.
    """
    return replace_report(directory, name, (report.model_dump_json(indent=2) + "\n").encode())


def add_benchmark(directory: Path, report: BenchReport) -> Path:
    """Put a run into an artifact's ``bench.json``; of earlier ones of these bytes those of other questions stay.

    Raises:
        ArtifactError: The directory is not an artifact.
        WriteError: The disk refuses; the earlier file is still there.
    """
    asked = report.spec.question()
    others = tuple(run for run in read_measurements(directory).benchmarks if run.spec.question() != asked)
    return write_report(directory, BENCH_REPORT, BenchFile(**dict(report), other_runs=others) if others else report)


def replace_report(directory: Path, name: str, content: bytes) -> Path:
    """As ``write_report``, for a report that is not a record."""
    directory = directory.absolute()
    with write_errors(directory / name):
        # Next to the directory, in which a file left by a kill would be one too many.
        replace_file(directory / name, content, next_to=directory)
    return directory / name


def _read(path: Path, kind: type[_Report], digest: str, unused: dict[str, str]) -> _Report | None:
    try:
        report = kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        unused[path.name] = f"it cannot be read: {error.strerror}"
        return None
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"])
        unused[path.name] = f"it cannot be read: {place}: {detail['msg']}" if place else "it is not JSON"
        return None
    known = kind.model_fields["schema_version"].default
    if report.schema_version > known:
        unused[path.name] = f"it has version {report.schema_version}, and this llmcompress reads up to {known}"
        return None
    measured_on = report.model.manifest_sha256 if isinstance(report, EvalReport) else report.manifest_sha256
    if measured_on == digest:
        return report
    unused[path.name] = f"it was measured on other bytes, of manifest {measured_on[:12] if measured_on else 'unknown'}"
    return None
