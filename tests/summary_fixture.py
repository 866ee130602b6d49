"""Artifacts with reports of chosen figures, for the tests of comparisons: nothing is compressed or measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmcompress.artifact import add_benchmark, file_records, manifest_sha256
from llmcompress.artifact.manifest import manifest_bytes
from llmcompress.report.benchmark import BenchCase, BenchReport, Stats, Steadiness
from llmcompress.report.compression import CompressionReport, LayerRecord
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import (
    DivergenceRecord,
    EvalReport,
    GateRecord,
    Histogram,
    ModelRecord,
    PerplexityRecord,
    TextRecord,
)
from llmcompress.report.record import EnvironmentRecord, Measured, Provenance
from llmcompress.spec import BenchSpec, EvalSpec, Recipe

MEASURED = Measured(created="2026-01-01T00:00:00+00:00", duration_s=1.0, peak_rss_bytes=1, stages=())
EDGES = (1e-3, 1e-2, 1e-1)


def environment(cpu: str = "A CPU") -> EnvironmentRecord:
    return EnvironmentRecord(versions={"openvino": "2026.4.1"}, cpu=cpu, num_threads=2, platform="linux-x86_64")


def estimate(value: float, reach: float = 0.1) -> Estimate:
    return Estimate(value=value, standard_error=value * reach / 2, low=value * (1 - reach), high=value * (1 + reach))


def layer(name: str, mode: str = "int4_asym", num_parameters: int = 1000, size_bytes: int = 530) -> LayerRecord:
    return LayerRecord(
        name=name,
        shape=(num_parameters, 1),
        num_parameters=num_parameters,
        mode=mode,
        group_size=None if mode == "bf16" else 128,
        size_bytes=size_bytes,
    )


LAYERS = (
    layer("self.lm_head._openvino_orig_weight", "int8_asym", 2000, 2010),
    layer("self.model.layers.0.mlp.down_proj._openvino_orig_weight"),
    layer("self.model.layers.0.self_attn.q_proj._openvino_orig_weight", "bf16", 500, 1000),
    layer("self.model.layers.1.mlp.down_proj._openvino_orig_weight"),
    layer("self.model.layers.10.mlp.down_proj._openvino_orig_weight"),
)


def provenance_of(directory: Path) -> Provenance:
    """What an evaluation records of a model it opened as an IR."""
    return Provenance(
        kind="ir", model_type="llama", architecture="LlamaForCausalLM", dtype="bf16", files=file_records(directory)
    )


def write_model(
    directory: Path,
    *,
    size_bytes: int = 1000,
    recipe: str = "int4",
    layers: Sequence[LayerRecord] = LAYERS,
    cpu: str = "A CPU",
) -> Path:
    directory.mkdir(parents=True)
    weights = hashlib.shake_256(f"{directory.name} {recipe}".encode()).digest(size_bytes)
    (directory / "openvino_model.bin").write_bytes(weights)
    files = file_records(directory)
    manifest = CompressionReport(
        llmcompress_version="0.1.0",
        provenance=Provenance(
            kind="hub", id="acme/tiny", revision="a" * 40, model_type="llama", architecture="LlamaForCausalLM",
            dtype="bf16", files=(),
        ),
        recipe=Recipe(name=recipe, method="none"),
        calibration=None,
        environment=environment(cpu),
        num_parameters=1000,
        bits_per_weight=8 * size_bytes / 1000,
        size_bytes=size_bytes,
        mapped_share=1.0,
        tokenizer="equal",
        chat_template="equal",
        layers=tuple(layers),
        files=files,
        measured=MEASURED,
    )  # fmt: skip
    (directory / "llmcompress.json").write_bytes(manifest_bytes(manifest))
    return directory


def write_evaluation(
    directory: Path,
    perplexity: float,
    *,
    kl: float | None = None,
    reference: Path | None = None,
    text: str = "held-out.txt",
    cpu: str = "A CPU",
    top_k: int | None = None,
    histogram: bool = True,
    **changes: Any,
) -> EvalReport:
    def model(of: Path, value: float) -> ModelRecord:
        return ModelRecord(
            provenance=provenance_of(of),
            manifest_sha256=manifest_sha256(of),
            properties={"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "u8"},
            perplexity=PerplexityRecord(perplexity=estimate(value), nll=estimate(1.0)),
        )

    lost = None
    if kl is not None:
        lost = DivergenceRecord(
            exact=top_k is None,
            top_k=top_k,
            kl_divergence=estimate(kl),
            kl_median=kl / 2,
            kl_p90=kl * 2,
            kl_p99=kl * 4,
            kl_p999=kl * 8,
            kl_max=kl * 16,
            kl_histogram=Histogram(edges=EDGES, counts=(5, 80, 14, 1)) if histogram else None,
            top1_agreement=estimate(0.9, 0.01),
            log_perplexity_change=estimate(0.01),
            perplexity_ratio=estimate(perplexity / 10, 0.02),
            rms_probability_change=0.01,
        )
    report = EvalReport(
        llmcompress_version="0.1.0",
        spec=EvalSpec(dataset=text, seq_len=256),
        chunk=64,
        text=TextRecord(
            dataset=text,
            num_documents=1,
            num_windows=8,
            num_clusters=8,
            num_scored_tokens=1000,
            token_ids_sha256=hashlib.sha256(text.encode()).hexdigest(),
        ),
        model=model(directory, perplexity),
        reference=model(reference, 10.0) if reference else None,
        property_differences={},
        divergence=lost,
        verdict="worse" if lost else None,
        gate=GateRecord(status="no_thresholds", passed=None, checks=()),
        environment=environment(cpu),
        measured=MEASURED,
        scored_tokens_per_s=500.0,
    ).model_copy(update=changes)
    (directory / "eval.json").write_text(report.model_dump_json())
    return report


def stats(values: Sequence[float]) -> Stats:
    ordered = sorted(values)
    middle, last = ordered[len(ordered) // 2], ordered[-1]
    return Stats(values=tuple(values), mean=sum(values) / len(values), std=0.1, p50=middle, p90=last, p99=last)


def write_benchmark(
    directory: Path,
    rate: float,
    *,
    shapes: Sequence[tuple[int, int]] = ((16, 4),),
    cpu: str = "A CPU",
    created: str = MEASURED.created,
    added: bool = False,
    **asked: Any,
) -> BenchReport:
    spec = BenchSpec(prompt_tokens=[shape[0] for shape in shapes], new_tokens=[shapes[0][1]], repetitions=3, **asked)
    cases = tuple(
        BenchCase(
            device="CPU",
            threads=None,
            batch_size=1,
            depth=0,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            ttft_s=stats([0.01, 0.011, 0.012]),
            prefill_tokens_per_s=stats([100.0, 110.0, 120.0]),
            tpot_s=stats([1 / rate + 1e-4 * step for step in range(3 * (new_tokens - 1))]) if new_tokens > 1 else None,
            decode_tokens_per_s=stats([rate * 0.9, rate, rate * 1.2]) if new_tokens > 1 else None,
            energy_j_per_token=None,
            roofline=None,
        )
        for prompt_tokens, new_tokens in shapes
    )
    report = BenchReport(
        llmcompress_version="0.1.0",
        spec=spec,
        source=directory.name,
        manifest_sha256=manifest_sha256(directory),
        size_bytes=1000,
        settings=(),
        cases=cases,
        peak_rss_bytes=900_000_000,
        steady_rss_bytes=800_000_000,
        compared_with=None,
        ratios=(),
        steadiness=Steadiness(load_before=None, load_after=None, frequency_mhz=None, temperature_c=None),
        environment=environment(cpu),
        measured=MEASURED.model_copy(update={"created": created}),
    )
    if added:
        add_benchmark(directory, report)
    else:
        (directory / "bench.json").write_text(report.model_dump_json())
    return report


def write_family(
    root: Path, figures: Sequence[tuple[int, float, float, float]], *, name: str = "tiny", **options: Any
) -> list[Path]:
    """A reference and models of chosen size, perplexity, divergence and decode rate, all measured on one basis."""
    reference = write_model(root / f"{name}-none-ov", size_bytes=4000, recipe="none")
    write_evaluation(reference, 10.0, **options)
    write_benchmark(reference, 10.0)
    made = [reference]
    for number, (size_bytes, perplexity, kl, rate) in enumerate(figures):
        directory = write_model(root / f"{name}-r{number}-ov", size_bytes=size_bytes, recipe=f"r{number}")
        write_evaluation(directory, perplexity, kl=kl, reference=reference, **options)
        write_benchmark(directory, rate)
        made.append(directory)
    return made
