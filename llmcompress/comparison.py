"""What is known of an artifact: its manifest and the reports beside it, as one row."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from llmcompress.artifact import manifest_sha256, read_manifest
from llmcompress.report import BenchCase, BenchReport, Estimate, EvalReport, Record, Stats, Verdict

Report = TypeVar("Report", EvalReport, BenchReport)


class Summary(Record):
    """One artifact; None where nothing was measured of these bytes."""

    directory: str
    recipe: str
    size_bytes: int
    bits_per_weight: float
    perplexity: Estimate | None = None
    kl_divergence: Estimate | None = None
    top1_agreement: Estimate | None = None
    verdict: Verdict | None = None
    gate_passed: bool | None = None
    shape: BenchCase | None = None
    """The benchmark's first case."""
    ttft_s: Stats | None = None
    tpot_s: Stats | None = None
    decode_tokens_per_s: Stats | None = None
    prefill_tokens_per_s: Stats | None = None
    peak_rss_bytes: int | None = None


def summary(directory: Path) -> Summary:
    """Read the manifest and the reports of an artifact; a report of other bytes is passed over.

    Raises:
        ArtifactError: The directory is no artifact.
    """
    manifest = read_manifest(directory)
    digest = manifest_sha256(directory)
    quality = _report(directory / "eval.json", EvalReport)
    if quality is not None and quality.model.manifest_sha256 != digest:
        quality = None
    speed = _report(directory / "bench.json", BenchReport)
    if speed is not None and speed.manifest_sha256 != digest:
        speed = None
    lost = quality.divergence if quality else None
    case = speed.cases[0] if speed else None
    return Summary(
        directory=str(directory),
        recipe=manifest.recipe.name,
        size_bytes=manifest.size_bytes,
        bits_per_weight=manifest.bits_per_weight,
        perplexity=quality.model.perplexity.perplexity if quality else None,
        kl_divergence=lost.kl_divergence if lost else None,
        top1_agreement=lost.top1_agreement if lost else None,
        verdict=quality.verdict if quality else None,
        gate_passed=quality.gate.passed if quality else None,
        shape=case,
        ttft_s=case.ttft_s if case else None,
        tpot_s=case.tpot_s if case else None,
        decode_tokens_per_s=case.decode_tokens_per_s if case else None,
        prefill_tokens_per_s=case.prefill_tokens_per_s if case else None,
        peak_rss_bytes=speed.peak_rss_bytes if speed else None,
    )


def _report(path: Path, kind: type[Report]) -> Report | None:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
