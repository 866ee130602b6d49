"""Which figures may stand on one axis: those of the same text and protocol, reference, shape and machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from llmcompress.report.benchmark import BenchCase, BenchReport, shape_text
from llmcompress.report.evaluation import EvalReport, ModelRecord
from llmcompress.report.file_names import MODEL_BIN
from llmcompress.report.record import Record
from llmcompress.summary.rows import Row

Kind = Literal["perplexity", "kl_divergence", "speed"]
_PREFIXES: dict[Kind, str] = {"perplexity": "P", "kl_divergence": "K", "speed": "S"}
_REFERENCE_PROPERTIES = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
_WEIGHTS = (".bin", ".safetensors")


class Basis(Record):
    """What some rows have in common, so that their figures of one kind can be compared."""

    mark: str
    """``P1``, ``K1``, ``S1``: kind and number."""
    kind: Kind
    facts: dict[str, str]
    """What is the same, by name."""
    rows: tuple[int, ...]
    """Positions of the rows."""
    cases: tuple[int, ...] = ()
    """For ``speed``: of each row the position in its benchmark's cases."""
    references: tuple[int, ...] = ()
    """For ``kl_divergence``: positions of the rows that are the reference; their divergence is zero by definition."""


class _Member(NamedTuple):
    facts: dict[str, str]
    row: int
    case: int = -1


def find_bases(rows: Sequence[Row]) -> tuple[Basis, ...]:
    """Every group of comparable figures, in the order of their first rows."""
    return (
        *_grouped("perplexity", _perplexity_members(rows), rows),
        *_grouped("kl_divergence", _divergence_members(rows), rows),
        *_grouped("speed", _speed_members(rows), rows),
    )


def _grouped(kind: Kind, members: Iterable[_Member], rows: Sequence[Row]) -> list[Basis]:
    groups: dict[tuple[tuple[str, str], ...], list[_Member]] = {}
    for member in members:
        group = groups.setdefault(tuple(member.facts.items()), [])
        # A shape may have been asked for twice.
        if all(known.row != member.row for known in group):
            group.append(member)
    return [
        Basis(
            mark=f"{_PREFIXES[kind]}{number}",
            kind=kind,
            facts=group[0].facts,
            rows=tuple(member.row for member in group),
            cases=tuple(member.case for member in group) if kind == "speed" else (),
            references=_references(rows, group) if kind == "kl_divergence" else (),
        )
        for number, group in enumerate(groups.values(), 1)
    ]


def _perplexity_members(rows: Sequence[Row]) -> Iterable[_Member]:
    for number, row in enumerate(rows):
        if row.evaluation is not None:
            yield _Member(_text_facts(row.evaluation), number)


def _divergence_members(rows: Sequence[Row]) -> Iterable[_Member]:
    for number, row in enumerate(rows):
        evaluation = row.evaluation
        found = row.divergence
        if evaluation is None or found is None or evaluation.reference is None:
            continue
        runtime = [evaluation.reference.properties.get(name, "unknown") for name in _REFERENCE_PROPERTIES]
        bound = f"a lower bound from the reference's top {found.top_k}"
        facts = {
            "reference": _reference_name(evaluation.reference, rows),
            "divergence": "over the whole vocabulary" if found.exact else bound,
            **_text_facts(evaluation),
            "runtime of the reference": "execution {}, cache {}, dynamic quantization {}".format(*runtime),
        }
        yield _Member(facts, number)


def _speed_members(rows: Sequence[Row]) -> Iterable[_Member]:
    for number, row in enumerate(rows):
        if row.benchmark is not None:
            for position, case in enumerate(row.benchmark.cases):
                yield _Member(_speed_facts(row.benchmark, case), number, position)


def _text_facts(evaluation: EvalReport) -> dict[str, str]:
    spec, text = evaluation.spec, evaluation.text
    stride = f", stride {spec.effective_stride}" if spec.protocol == "sliding" else ""
    facts = {
        "text": f"{text.dataset}, {text.num_scored_tokens:,} tokens scored (ids {text.token_ids_sha256[:12]})",
        "protocol": f"{spec.protocol}, windows of {spec.seq_len} tokens{stride}, {evaluation.chunk} tokens a call",
        "runtime": f"{spec.device}, {spec.precision}",
    }
    if spec.precision == "as_used":
        # What a device does by itself depends on which one it is.
        execution = evaluation.model.properties.get("INFERENCE_PRECISION_HINT", "unknown")
        facts["machine"] = f"{evaluation.environment.cpu}, execution in {execution}"
    return facts


def _speed_facts(benchmark: BenchReport, case: BenchCase) -> dict[str, str]:
    spec, environment = benchmark.spec, benchmark.environment
    threads = case.threads or environment.num_threads
    return {
        "shape": f"{shape_text(case)} (prompt + new tokens)",
        "runtime": ", ".join(
            (
                f"{spec.engine}, {spec.effective_backend}",
                case.device,
                spec.precision,
                f"{threads} threads",
                *spec.properties,
            ),
        ),
        "machine": f"{environment.cpu}, {environment.platform}",
        "OpenVINO": environment.versions.get("openvino", "unknown"),
    }


def _weights(model: ModelRecord) -> list[str]:
    return sorted(file.sha256 for file in model.provenance.files if file.path.endswith(_WEIGHTS))


def _reference_name(reference: ModelRecord, rows: Sequence[Row]) -> str:
    """A name that two references share only if their weights are the same bytes."""
    weights = _weights(reference)
    same = [row.name for row in rows if _holds(row, weights)]
    if same:
        return same[0]
    provenance = reference.provenance
    if provenance.id is not None:
        return f"{provenance.id} at {(provenance.revision or 'unknown')[:12]}"
    digest = weights[0][:12] if weights else (reference.manifest_sha256 or "unknown")[:12]
    return f"{provenance.architecture} ({provenance.kind}, weights {digest})"


def _references(rows: Sequence[Row], group: Sequence[_Member]) -> tuple[int, ...]:
    found: set[int] = set()
    for member in group:
        evaluation = rows[member.row].evaluation
        assert evaluation is not None
        assert evaluation.reference is not None
        weights = _weights(evaluation.reference)
        found.update(number for number, row in enumerate(rows) if _holds(row, weights))
    return tuple(sorted(found))


def _holds(row: Row, weights: Sequence[str]) -> bool:
    return bool(weights) and [file.sha256 for file in row.manifest.files if file.path == MODEL_BIN] == list(weights)
