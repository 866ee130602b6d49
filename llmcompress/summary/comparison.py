"""Artifacts next to each other, as data: with the reports of just their bytes, and jobs that made no artifact."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llmcompress.artifact import Measurements, read_measurements
from llmcompress.errors import UsageError
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.readable import Readable
from llmcompress.report.text import size_text
from llmcompress.spec import BenchSpec
from llmcompress.summary.comparability import Basis, Kind, find_bases
from llmcompress.summary.rows import FailedRow, Row
from llmcompress.summary.trade_offs import TradeOff, find_trade_offs


class Comparison(Readable):
    """Artifacts with their reports, jobs that failed, and what may be compared with what."""

    rows: tuple[Row, ...]
    failures: tuple[FailedRow, ...]
    bases: tuple[Basis, ...]
    trade_offs: tuple[TradeOff, ...]

    def bases_of(self, kind: Kind) -> tuple[Basis, ...]:
        """What figures of one kind have in common; more than one: not all of them can be compared."""
        return tuple(basis for basis in self.bases if basis.kind == kind)

    def facts(self) -> dict[str, str]:
        """Each artifact in a line."""
        facts = {}
        for row in self.rows:
            parts = [size_text(row.manifest.size_bytes), f"{row.manifest.bits_per_weight:.2f} bits/weight"]
            if row.evaluation is not None:
                parts.append(f"perplexity {row.evaluation.worst.perplexity.perplexity.value:.4g}")
            if row.divergence is not None:
                parts.append(f"KL {row.divergence.kl_divergence.value:.3g}")
            facts[row.name] = ", ".join(parts)
        return facts | {row.name: row.reason for row in self.failures}


def compare(directories: Sequence[str | Path], failures: Sequence[FailedRow] = ()) -> Comparison:
    """Read artifacts and the reports next to them, and find out which of their figures may stand on one axis.

    Args:
        directories: Output directories of ``compress``, with what ``evaluate`` and ``benchmark`` have put there.
        failures: Jobs that made no artifact, to be shown with the others.

    Raises:
        ArtifactError: A directory is not an artifact.
        UsageError: A directory is given twice.
    """
    rows = _rows(directories)
    bases = find_bases(rows)
    return Comparison(rows=rows, failures=tuple(failures), bases=bases, trade_offs=find_trade_offs(rows, bases))


def _rows(directories: Sequence[str | Path]) -> tuple[Row, ...]:
    paths = [Path(directory) for directory in directories]
    names = _names(paths)
    found = [read_measurements(path) for path in paths]
    speeds = _benchmarks(found)
    return tuple(_row(*each) for each in zip(paths, names, found, speeds, strict=True))


def _benchmarks(found: Sequence[Measurements]) -> list[BenchReport | None]:
    """Of each artifact the run of the question that most of them answered on one processor, of several the newest."""
    runs = [each.benchmarks for each in found]
    asked: dict[tuple[BenchSpec, str], list[str]] = {}
    for of_one in runs:
        for question, created in {_question(run): run.measured.created for run in reversed(of_one)}.items():
            asked.setdefault(question, []).append(created)
    rank = {question: (len(created), max(created)) for question, created in asked.items()}
    return [max(of_one, key=lambda run: rank[_question(run)], default=None) for of_one in runs]


def _question(run: BenchReport) -> tuple[BenchSpec, str]:
    return run.spec.question(), run.environment.cpu


def _row(directory: Path, name: str, found: Measurements, benchmark: BenchReport | None) -> Row:
    return Row(
        name=name,
        directory=_unicode(directory),
        manifest_sha256=found.manifest_sha256,
        manifest=found.manifest,
        evaluation=found.evaluation,
        benchmark=benchmark,
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
