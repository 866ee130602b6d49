"""What was measured, as the rows of the card's tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from llmcompress.artifact import Measurements
from llmcompress.publishing.base_model import BaseModel, is_base
from llmcompress.publishing.markdown import code, prose
from llmcompress.report.benchmark import BenchCase, BenchReport, rate_text, shape_text
from llmcompress.report.estimate import interval_text
from llmcompress.report.evaluation import (
    DAMAGE_PARTS,
    GATE_STATUSES,
    PICTURE_DAMAGE_PARTS,
    DivergenceRecord,
    EvalReport,
    PictureRecord,
)
from llmcompress.report.text import size_text

Row = dict[str, Any]

NOT_MEASURED = "not measured"
DEVICES = ("CPU", "GPU", "NPU")
"""What OpenVINO runs language models on."""

_PERPLEXITIES = {
    "perplexity": "Perplexity, per token",
    "word_perplexity": "Perplexity, per word",
    "byte_perplexity": "Perplexity, per byte",
    "bits_per_byte": "Bits per byte",
}


def result_rows(found: Measurements, base: BaseModel) -> list[Row]:
    """Size, quality, speed and memory: ``name``, ``base``, ``model``, ``change``; empty where there can be none.

    ``group`` is quality or speed, and what few readers need is a ``detail``.
    """
    groups = {"quality": (*_size(found, base), *_quality(found)), "speed": tuple(_speed(found.benchmark))}
    return [{**row, "group": group} for group, rows in groups.items() for row in rows]


def damage_rows(report: EvalReport | None) -> list[Row]:
    """What each property of the runtime adds to the damage; none where it was not split."""
    return [
        {
            "name": DAMAGE_PARTS[part.part],
            "kl": interval_text(part.kl_divergence),
            "top1": interval_text(part.top1_agreement, ".2%"),
        }
        for part in (report.split_damage if report else ())
    ]


def task_rows(report: EvalReport | None) -> list[Row]:
    """Scores of lm-evaluation-harness."""
    return [
        {
            "task": score.task,
            "metric": score.metric,
            "score": f"{score.value:.4g}" + ("" if score.standard_error is None else f" ± {score.standard_error:.3g}"),
            "samples": "" if score.num_samples is None else score.num_samples,
        }
        for score in (report.tasks if report else ())
    ]


def device_rows(found: Measurements) -> list[Row]:
    """Each device, and what was measured there."""
    quality = {found.evaluation.spec.device: found.evaluation.environment.cpu} if found.evaluation else {}
    speed = dict.fromkeys(found.benchmark.spec.devices, found.benchmark.environment.cpu) if found.benchmark else {}
    return [
        {"device": name, "quality": _tested(name, quality), "speed": _tested(name, speed)}
        for name in dict.fromkeys((*DEVICES, *quality, *speed))
    ]


def property_rows(found: Measurements) -> list[Row]:
    """Effective properties of the runtime, read back from the compiled models."""
    sides: dict[str, dict[str, str]] = {}
    if found.evaluation is not None:
        backends = found.evaluation.backends
        for record in backends or (found.evaluation.worst,):
            sides["quality" if len(backends) < 2 else f"quality, {record.backend}"] = record.properties
        if found.evaluation.reference is not None:
            sides["reference"] = found.evaluation.reference.properties
    for setting in found.benchmark.settings if found.benchmark else ():
        threads = f", {setting.threads} threads" if setting.threads else ""
        sides[f"speed, {setting.device}{threads}"] = setting.properties
    names = sorted({name for side in sides.values() for name in side})
    return [{"name": name, "values": [side.get(name, "") for side in sides.values()], "of": list(sides)}
            for name in names]  # fmt: skip


def _tested(name: str, machines: dict[str, str]) -> str:
    if name not in machines:
        return "not tested"
    # Of other devices the report names no chip.
    return f"tested, {machines[name]}" if name == "CPU" else "tested"


def _row(name: str, model: str, *, base: str = "", change: str | Markup = "", detail: bool = False) -> Row:
    # Figures are ours: the brackets of an interval need no escapes.
    return {"name": name, "base": Markup(base), "model": Markup(model), "change": Markup(change), "detail": detail}


def _size(found: Measurements, base: BaseModel) -> Iterator[Row]:
    manifest = found.manifest
    ours = sum(file.size_bytes for file in manifest.model_files)
    theirs = base.weight_bytes
    yield _row(
        "Weights on disk",
        size_text(ours),
        base=size_text(theirs) if theirs else "unknown",
        change=f"× {ours / theirs:.3g}" if theirs else "",
    )
    theirs_per_weight = f"{theirs * 8 / manifest.num_parameters:.2f}" if theirs and manifest.num_parameters else ""
    yield _row("Bits per weight", f"{manifest.bits_per_weight:.2f}", base=theirs_per_weight)


def _quality(found: Measurements) -> Iterator[Row]:
    report = found.evaluation
    if report is None:
        for name in (_PERPLEXITIES["perplexity"], "KL divergence, nats per token", "Top-1 agreement", "Verdict"):
            yield _row(name, NOT_MEASURED)
        return
    lost = report.worst.divergence
    for field, name in _PERPLEXITIES.items():
        mine = getattr(report.worst.perplexity, field)
        theirs = getattr(report.reference.perplexity, field) if report.reference else None
        if mine is None:
            continue
        ratio = lost.perplexity_ratio if lost and field == "perplexity" else None
        yield _row(
            name,
            interval_text(mine, ".5g"),
            base=interval_text(theirs, ".5g") if theirs else NOT_MEASURED,
            change=f"× {interval_text(ratio, '.5g')}" if ratio else "",
            detail=field != "perplexity",
        )
    if lost is None:
        yield _row("KL divergence, nats per token", NOT_MEASURED)
        yield _row("Top-1 agreement", NOT_MEASURED)
    else:
        yield from _divergence(report, lost)
    if report.generations is not None:
        made = report.generations
        yield _row(f"Equal greedy continuations, of {made.num_prompts}", f"{made.identical_share:.0%}", detail=True)
    yield from _pictures(report.pictures)
    yield _row("Verdict", f"**{report.verdict}**" if report.verdict else NOT_MEASURED)
    gate = GATE_STATUSES[report.gate.status]
    yield _row("Gate", f"**{gate}**" if report.gate.status == "failed" else gate)


def _pictures(found: PictureRecord | None) -> Iterator[Row]:
    """Answers to questions about pictures, and what the model sees."""
    if found is None or found.divergence is None:
        return
    yield _row("KL divergence of answers about pictures, nats per token", interval_text(found.divergence.kl_divergence))
    agreement = interval_text(found.divergence.top1_agreement, ".2%")
    yield _row("Top-1 agreement of answers about pictures", agreement, detail=True)
    for part in found.damage:
        name = f"KL divergence of answers about pictures: {PICTURE_DAMAGE_PARTS[part.part]}"
        yield _row(name, interval_text(part.kl_divergence), detail=True)
    if found.vision is not None:
        yield _row("Embeddings of pictures: relative L2 error", interval_text(found.vision.relative_l2))
        yield _row("Embeddings of pictures: cosine", interval_text(found.vision.cosine, ".5f"), detail=True)


def _divergence(report: EvalReport, lost: DivergenceRecord) -> Iterator[Row]:
    bound = "" if lost.exact else f", a lower bound from the top {lost.top_k}"
    yield _row(f"KL divergence, nats per token{bound}", interval_text(lost.kl_divergence))
    spread = (lost.kl_median, lost.kl_p90, lost.kl_p99, lost.kl_p999, lost.kl_max)
    yield _row(
        "KL divergence: median, p90, p99, p99.9, maximum", ", ".join(f"{value:.3g}" for value in spread), detail=True
    )
    for record in report.backends:
        if record.divergence is not None and record.backend != report.worst.backend:
            name = f"KL divergence on the {record.backend} graph, which loses less{bound}"
            yield _row(name, interval_text(record.divergence.kl_divergence), detail=True)
    if report.noise_floor is not None:
        floor = report.noise_floor
        name = f"KL divergence: noise floor, {' against '.join(floor.precisions)}"
        yield _row(name, interval_text(floor.kl_divergence), detail=True)
    yield _row("Top-1 agreement", interval_text(lost.top1_agreement, ".2%"))
    yield _row("RMS change of the probability of the true token", f"{lost.rms_probability_change:.2%}", detail=True)


def _speed(report: BenchReport | None) -> Iterator[Row]:
    if report is None:
        for name in ("Time to first token", "Prefill, tokens/s", "Decode, tokens/s", "Peak memory"):
            yield _row(name, NOT_MEASURED)
        return
    for number, case in enumerate(report.cases):
        threads = f", {case.threads} threads" if case.threads else ""
        where = f"{case.device}{threads}, {shape_text(case)}"
        figures = {
            **_encoding(case, where),
            "ttft_s": (f"Time to first token, ms ({where})", f"{case.ttft_s.p50 * 1e3:.4g}"),
            "prefill_tokens_per_s": (f"Prefill, tokens/s ({where})", rate_text(case.prefill_tokens_per_s)),
            "decode_tokens_per_s": (f"Decode, tokens/s ({where})", rate_text(case.decode_tokens_per_s)),
        }
        for figure, (name, value) in figures.items():
            yield _row(name, value or NOT_MEASURED, change=_ratio(report, number, figure), detail=number > 0)
    yield _row("Peak memory", size_text(report.peak_rss_bytes))
    yield _row("Memory after the runs", size_text(report.steady_rss_bytes), detail=True)
    for setting in report.settings:
        load = setting.load
        for name, phase in (("cold", load.cold), ("warm", load.warm)):
            seconds = f"{phase.read_s + phase.compile_s:.3g}"
            yield _row(f"Load time, s, {name} ({setting.device})", seconds, detail=True)


def _encoding(case: BenchCase, where: str) -> dict[str, tuple[str, str]]:
    encoding = case.image_encoding_s
    return (
        {} if encoding is None else {"image_encoding_s": (f"Image encoding, ms ({where})", f"{encoding.p50 * 1e3:.4g}")}
    )


def _ratio(report: BenchReport, case: int, figure: str) -> Markup:
    for ratio in report.ratios:
        if ratio.case == case and ratio.figure == figure:
            # The name of a directory, which can be anything.
            return Markup("× {} of {}, {}").format(
                Markup(interval_text(ratio.ratio, ".3g")), code(report.compared_with), prose(ratio.judgement)
            )
    return Markup("")


def reference_name(found: Measurements) -> str:
    """What the figures are compared with: the base itself, or another model."""
    report = found.evaluation
    return "reference" if report and report.reference and not is_base(found.manifest, report) else "base"
