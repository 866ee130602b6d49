"""A comparison as a table: the same texts in the terminal, in Markdown and on the page; raw numbers as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from llmcompress.report.benchmark import BenchCase, rate_text, shape_text
from llmcompress.report.estimate import Estimate, interval_text
from llmcompress.report.evaluation import GATE_STATUSES, quoted_text
from llmcompress.report.text import settings_text, size_text
from llmcompress.summary.comparability import Kind
from llmcompress.summary.comparison import Comparison
from llmcompress.summary.rows import Row
from llmcompress.summary.trade_offs import pruned_and_beaten

Group = Literal["size", "quality", "speed", "memory", "runtime"]
NOT_MEASURED = "not measured"
REFERENCE = "the reference"
_WORDS: dict[Kind, str] = {"perplexity": "Perplexities", "kl_divergence": "KL divergences", "speed": "Speeds"}


class Line(NamedTuple):
    """One figure of every row."""

    title: str
    texts: tuple[str, ...]
    numeric: bool = True
    group: Group = "runtime"
    folded: bool = False
    """Where there is little room, the page shows it only when it is asked for."""


class _Figure(NamedTuple):
    """How one figure is read from a row."""

    title: str
    text: Callable[[Row], str | None]
    group: Group
    numeric: bool = True
    folded: bool = False
    kind: Kind | None = None
    """Where values are comparable only within a basis: what tells the bases apart."""
    against_reference: bool = False
    """A row that others were compared with has no such figure, and says that it is the reference."""


def _perplexity(row: Row) -> str | None:
    return interval_text(row.evaluation.worst.perplexity.perplexity, ".4g") if row.evaluation else None


def _kl_divergence(row: Row) -> str | None:
    if row.divergence is None:
        return None
    return ("" if row.divergence.exact else "at least ") + interval_text(row.divergence.kl_divergence, ".3g")


def _agreement(row: Row) -> str | None:
    return interval_text(row.divergence.top1_agreement, ".1%") if row.divergence else None


def _gate(row: Row) -> str | None:
    return GATE_STATUSES[row.evaluation.gate.status] if row.evaluation else None


def _of_case(text: Callable[[BenchCase], str | None]) -> Callable[[Row], str | None]:
    return lambda row: text(case) if (case := _case(row)) else None


_FIGURES = (
    _Figure("recipe", lambda row: row.manifest.recipe.name, "size", numeric=False),
    _Figure("size", lambda row: size_text(row.manifest.size_bytes), "size"),
    _Figure("bits per weight", lambda row: f"{row.manifest.bits_per_weight:.2f}", "size", folded=True),
    _Figure("perplexity", _perplexity, "quality", kind="perplexity"),
    _Figure("KL divergence", _kl_divergence, "quality", kind="kl_divergence", against_reference=True),
    _Figure("top-1 agreement", _agreement, "quality", folded=True, against_reference=True),
    _Figure(
        "verdict",
        lambda row: row.evaluation.verdict if row.evaluation else None,
        "quality",
        numeric=False,
        against_reference=True,
    ),
    _Figure("gate", _gate, "quality", numeric=False),
    _Figure("shape", _of_case(shape_text), "speed", kind="speed"),
    _Figure("ttft", _of_case(lambda case: f"{case.ttft_s.p50 * 1e3:.4g} ms"), "speed"),
    _Figure(
        "tpot", _of_case(lambda case: f"{case.tpot_s.p50 * 1e3:.4g} ms" if case.tpot_s else None), "speed", folded=True
    ),
    _Figure("prefill tokens/s", _of_case(lambda case: rate_text(case.prefill_tokens_per_s)), "speed"),
    _Figure("decode tokens/s", _of_case(lambda case: rate_text(case.decode_tokens_per_s)), "speed"),
    _Figure("peak memory", lambda row: size_text(row.benchmark.peak_rss_bytes) if row.benchmark else None, "memory"),
)


def lines(comparison: Comparison) -> tuple[Line, ...]:
    """The figures of all rows as texts; what cannot be compared with all others carries the mark of its basis."""
    references = {number for basis in comparison.bases for number in basis.references}
    found = []
    for figure in _FIGURES:
        marks = _marks(comparison, figure.kind) if figure.kind else {}
        texts = []
        for number, row in enumerate(comparison.rows):
            text = figure.text(row)
            missing = REFERENCE if figure.against_reference and number in references else NOT_MEASURED
            texts.append(text + marks.get(number, "") if text else missing)
        found.append(Line(figure.title, tuple(texts), figure.numeric, figure.group, figure.folded))
        if figure.kind == "perplexity":
            found += _of_originals(comparison)
        if figure.kind == "kl_divergence":
            found += _of_pictures(comparison.rows)
    return (*found, *_hints(comparison.rows))


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What a reader has to know before comparing two figures, one sentence each."""
    found = []
    for kind, words in _WORDS.items():
        bases = comparison.bases_of(kind)
        if len(bases) > 1:
            all_facts = [basis.facts for basis in bases]
            kinds = "; ".join(f"[{basis.mark}] {_differing(basis.facts, all_facts)}" for basis in bases)
            found.append(f"{words} are of {len(bases)} kinds that cannot be compared with each other: {kinds}.")
    if quoted := quoted_text({row.name: row.evaluation for row in comparison.rows if row.evaluation}):
        found.append(quoted)
    found += [
        f"{pruned.name} is pruned, and {other.name}, which is not, is no larger and loses less: prefer it where speed "
        "is not what was pruned for."
        for pruned, other in pruned_and_beaten(comparison.rows, comparison.trade_offs)
    ]
    for row in comparison.rows:
        if row.kept_defaults:
            found.append(f"{row.name}: tuning put nothing into the model: {row.kept_defaults}.")
        found += [f"{row.name}: {name} is not shown: {why}." for name, why in row.passed_over.items()]
    return tuple(found)


def markdown(comparison: Comparison) -> str:
    """A table with a row for each artifact, a table of failures, and what cannot be compared, as GitHub renders it."""
    parts = []
    if comparison.rows:
        table = lines(comparison)
        parts.append(
            _markdown_table(
                ["model", *(line.title for line in table)],
                [False, *(line.numeric for line in table)],
                [[row.name, *(line.texts[number] for line in table)] for number, row in enumerate(comparison.rows)],
            )
        )
    if comparison.failures:
        cells = [[failed.name, str(failed.exit_code), failed.reason] for failed in comparison.failures]
        parts.append(_markdown_table(["failed", "exit code", "reason"], [False, True, False], cells))
    found = notes(comparison)
    if found:
        parts.append("\n".join(f"- {_escaped(note)}" for note in found) + "\n")
    return "\n".join(parts)


def csv_text(comparison: Comparison) -> str:
    """One row for each artifact and each failure, raw numbers in SI units; empty where not measured.

    Speed is that of the benchmark's first shape. Two figures of one kind can be compared where their ``_basis`` is the
    same.
    """
    stream = io.StringIO()
    records = [_record(comparison, number) for number in range(len(comparison.rows))]
    records += [{"name": row.name, "failure": row.reason, "exit_code": row.exit_code} for row in comparison.failures]
    writer = csv.DictWriter(stream, _CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


_CSV_FIELDS = (
    "name", "directory", "recipe", "size_bytes", "bits_per_weight",
    "backend", "perplexity", "perplexity_low", "perplexity_high", "perplexity_basis",
    "kl_divergence", "kl_divergence_low", "kl_divergence_high", "kl_divergence_exact", "kl_divergence_basis",
    "kl_median", "kl_p90", "kl_p99", "kl_p999", "kl_max",
    "top1_agreement", "top1_agreement_low", "top1_agreement_high", "verdict", "gate_passed", "gate_status",
    "device", "threads", "batch_size", "depth", "prompt_tokens", "new_tokens",
    "ttft_p50_s", "prefill_p50_tokens_per_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s",
    "decode_p50_tokens_per_s", "decode_std_tokens_per_s", "speed_basis", "peak_rss_bytes",
    "runtime_options", "tuning_objective", "tuning_gain", "tuning_gain_low", "tuning_gain_high",
    "failure", "exit_code",
)  # fmt: skip


def _record(comparison: Comparison, number: int) -> dict[str, Any]:
    row = comparison.rows[number]
    found: dict[str, Any] = {
        "name": row.name,
        "directory": row.directory,
        "recipe": row.manifest.recipe.name,
        "size_bytes": row.manifest.size_bytes,
        "bits_per_weight": row.manifest.bits_per_weight,
    }
    if row.evaluation is not None:
        found |= _estimate("perplexity", row.evaluation.worst.perplexity.perplexity)
        found["backend"] = row.evaluation.worst.backend
        gate = row.evaluation.gate
        found |= {"verdict": row.evaluation.verdict, "gate_passed": gate.passed, "gate_status": gate.status}
    if options := row.manifest.runtime_options:
        found["runtime_options"] = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
    if (tuning := row.manifest.tuning) is not None:
        found |= {"tuning_objective": tuning.objective} | _estimate("tuning_gain", tuning.gain)
    lost = row.divergence
    if lost is not None:
        found |= _estimate("kl_divergence", lost.kl_divergence) | _estimate("top1_agreement", lost.top1_agreement)
        found["kl_divergence_exact"] = lost.exact
        found |= {name: getattr(lost, name) for name in ("kl_median", "kl_p90", "kl_p99", "kl_p999", "kl_max")}
    case = _case(row)
    if row.benchmark is not None and case is not None:
        found |= {
            name: getattr(case, name)
            for name in ("device", "threads", "batch_size", "depth", "prompt_tokens", "new_tokens")
        }
        found |= {"ttft_p50_s": case.ttft_s.p50, "prefill_p50_tokens_per_s": case.prefill_tokens_per_s.p50}
        if case.tpot_s is not None:
            found |= {f"tpot_{name}_s": getattr(case.tpot_s, name) for name in ("p50", "p90", "p99")}
        if case.decode_tokens_per_s is not None:
            found |= {f"decode_{name}_tokens_per_s": getattr(case.decode_tokens_per_s, name) for name in ("p50", "std")}
        found["peak_rss_bytes"] = row.benchmark.peak_rss_bytes
    return found | {f"{kind}_basis": _mark(comparison, kind, number) for kind in _WORDS}


def _estimate(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _case(row: Row) -> BenchCase | None:
    return row.benchmark.cases[0] if row.benchmark and row.benchmark.cases else None


def _of_originals(comparison: Comparison) -> list[Line]:
    """Perplexities of the models that rows were compared with; no line where each of these is a row itself."""
    if all(basis.references for basis in comparison.bases_of("kl_divergence")):
        return []
    reports = [row.evaluation for row in comparison.rows]
    texts = (interval_text(report.reference.perplexity.perplexity, ".4g") if report and report.reference
             else NOT_MEASURED for report in reports)  # fmt: skip
    return [Line("perplexity of the original", tuple(texts), group="quality")]


def _of_pictures(rows: Sequence[Row]) -> list[Line]:
    """What answers about pictures lost; no line where no model was asked about any."""
    found = [row.evaluation.pictures if row.evaluation else None for row in rows]
    lost = [each.divergence.kl_divergence if each and each.divergence else None for each in found]
    if not any(lost):
        return []
    # Of other questions it is another figure.
    several = len({each.sha256 for each in found if each}) > 1
    marks = [f" [{each.dataset} {each.sha256[:8]}]" if each and several else "" for each in found]
    texts = [
        interval_text(each, ".3g") + mark if each else NOT_MEASURED for each, mark in zip(lost, marks, strict=True)
    ]
    return [Line("KL divergence about pictures", tuple(texts), group="quality")]


def _hints(rows: Sequence[Row]) -> tuple[Line, ...]:
    """Runtime options that models hold, and what was gained by tuning; no lines where there is nothing to tell."""
    found = []
    options = [row.manifest.runtime_options for row in rows]
    if any(options):
        found.append(Line("runtime options", tuple(map(settings_text, options)), numeric=False, folded=True))
    tunings = [row.manifest.tuning for row in rows]
    if any(tunings):
        gains = (f"{interval_text(each.gain, '.3g')} {each.objective}" if each else "not tuned" for each in tunings)
        found.append(Line("gain by tuning", tuple(gains), folded=True))
    return tuple(found)


def _mark(comparison: Comparison, kind: Kind, number: int) -> str | None:
    """The basis of one row's figure; of speed, that of the benchmark's first case."""
    for basis in comparison.bases_of(kind):
        if number in basis.rows and (kind != "speed" or basis.cases[basis.rows.index(number)] == 0):
            return basis.mark
    return None


def _marks(comparison: Comparison, kind: Kind) -> dict[int, str]:
    """`` [K1]`` for each row; empty where all rows with such a figure share one basis."""
    found = {number: _mark(comparison, kind, number) for number in range(len(comparison.rows))}
    marks = {number: mark for number, mark in found.items() if mark is not None}
    return {number: f" [{mark}]" for number, mark in marks.items()} if len(set(marks.values())) > 1 else {}


def _differing(facts: dict[str, str], others: Sequence[dict[str, str]]) -> str:
    """Those of the facts that are not the same for all."""
    differing = [f"{name} {value}" for name, value in facts.items() if any(o.get(name) != value for o in others)]
    return ", ".join(differing)


def _markdown_table(titles: Sequence[str], numeric: Sequence[bool], cells: Sequence[Sequence[str]]) -> str:
    rows = [titles, ["---:" if right else "---" for right in numeric]]
    rows += [[_escaped(cell) for cell in line] for line in cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _escaped(text: str) -> str:
    """Text on one line in which nothing is markup, neither Markdown's nor HTML's."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", " ".join(text.split()))
