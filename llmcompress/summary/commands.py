"""The commands that lead to a row's figures, from its records.

Records hold no local path. Words in capitals stand for one that is not known here: ``SOURCE`` for the model that was
compressed, ``REFERENCE`` for the one that it was compared with; a text file is called by its name alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmcompress.report.evaluation import EvalReport, ModelRecord
from llmcompress.report.options import eval_options, recipe_option, spec_options
from llmcompress.report.record import Provenance
from llmcompress.spec import BenchSpec
from llmcompress.summary.comparison import Comparison
from llmcompress.summary.rows import Row
from llmcompress.system.command_line import command_line


def commands(comparison: Comparison) -> tuple[str, ...]:
    """What was run, in an order in which it can be run again."""
    rows = comparison.rows
    evaluated = [(row, row.evaluation) for row in rows if row.evaluation]
    return (*map(_compress, rows), *(_eval(row, report, rows) for row, report in evaluated), *_bench(rows))


def _compress(row: Row) -> str:
    manifest = row.manifest
    source, *options = _source(manifest.provenance, "SOURCE")
    options += ["--recipe", recipe_option(manifest.recipe, row.directory), "--output", row.directory]
    options += ["--merge-adapter"] if manifest.provenance.adapter else []
    options += ["--trust-remote-code"] if manifest.provenance.trust_remote_code else []
    options += ["--no-tokenizer"] if manifest.tokenizer == "none" else []
    return command_line(["llmcompress", "compress"], [source], options)


def _eval(row: Row, report: EvalReport, rows: Sequence[Row]) -> str:
    options: list[str] = []
    if report.reference is not None:
        options += ["--reference", *_reference(report.reference, rows)]
    options += eval_options(report, row.manifest.recipe.gate)
    if report.divergence is not None:
        options += ["--reference-scores", report.divergence.reference_scores]
    return command_line(["llmcompress", "eval"], [row.directory], options)


def _reference(reference: ModelRecord, rows: Sequence[Row]) -> list[str]:
    for row in rows:
        if row.manifest_sha256 == reference.manifest_sha256:
            return [row.directory]
    return _source(reference.provenance, "REFERENCE", "--reference-revision")


def _bench(rows: Sequence[Row]) -> Iterator[str]:
    """One command for the rows that were measured in turn; the one that the others were compared with first."""
    runs: dict[tuple[str, BenchSpec], list[Row]] = {}
    for row in rows:
        if row.benchmark is not None:
            runs.setdefault((row.benchmark.measured.created, row.benchmark.spec), []).append(row)
    for (_, spec), members in runs.items():
        first_others = sorted(members, key=lambda row: bool(row.benchmark and row.benchmark.compared_with))
        directories = [row.directory for row in first_others]
        yield command_line(["llmcompress", "bench"], directories, list(spec_options(spec)))


def _source(provenance: Provenance, unknown: str, revision: str = "--revision") -> list[str]:
    of = provenance.adapter or provenance
    if of.id is None:
        return [unknown]
    return [of.id, *([revision, of.revision] if of.revision else [])]
