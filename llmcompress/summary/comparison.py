"""Artifacts side by side, as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmcompress.report.record import Record
from llmcompress.summary.comparability import Basis, Kind, find_bases
from llmcompress.summary.rows import FailedRow, Row, read_rows
from llmcompress.summary.trade_offs import TradeOff, find_trade_offs


class Comparison(Record):
    """Artifacts with their reports, jobs that failed, and what may be compared with what."""

    rows: tuple[Row, ...]
    failures: tuple[FailedRow, ...]
    bases: tuple[Basis, ...]
    trade_offs: tuple[TradeOff, ...]

    def bases_of(self, kind: Kind) -> tuple[Basis, ...]:
        """What figures of one kind have in common; more than one: not all of them can be compared."""
        return tuple(basis for basis in self.bases if basis.kind == kind)


def compare(directories: Sequence[str | Path], failures: Sequence[FailedRow] = ()) -> Comparison:
    """Read artifacts and the reports next to them, and find out which of their figures may stand on one axis.

    Args:
        directories: Output directories of ``compress``, with what ``evaluate`` and ``benchmark`` have put there.
        failures: Jobs that came to no artifact, to be shown with the others.

    Raises:
        ArtifactError: A directory is no artifact.
        UsageError: A directory is given twice.
    """
    rows = read_rows(directories)
    bases = find_bases(rows)
    return Comparison(rows=rows, failures=tuple(failures), bases=bases, trade_offs=find_trade_offs(rows, bases))
