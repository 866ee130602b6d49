"""A model, perhaps its reference, and a text in; a report out: prepare, score, diagnose, judge, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, manifest_sha256
from llmcompress.errors import ResourceError
from llmcompress.evaluation.artifact_report import store_report
from llmcompress.evaluation.diagnostics import DiagnosticResults, diagnose
from llmcompress.evaluation.gate import combined, gate_record, picture_checks, verdict, worst_checks, worst_verdict
from llmcompress.evaluation.in_turn import forget_logits, rounded_logits, score_in_turn
from llmcompress.evaluation.measurement import (
    ModelOnDevice,
    Scored,
    score_alone,
    score_at_once,
    score_side_by_side,
)
from llmcompress.evaluation.preparation import Prepared, prepare
from llmcompress.evaluation.request import Diagnostics, EvalRequest, Reference, ReferenceScores, TaskSelection
from llmcompress.evaluation.statistics import backend_share, divergence, perplexity
from llmcompress.evaluation.top_k import score_against_top_k
from llmcompress.graph.device import differences
from llmcompress.report.evaluation import BackendRecord, EvalReport, GateRecord, ModelRecord, Verdict
from llmcompress.report.record import Stages, environment_record
from llmcompress.spec import Access, EvalSpec, Gate
from llmcompress.system.background import available_for, undisturbed
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.memory import ROOM, memory
from llmcompress.system.progress import Reporter


class Judged(NamedTuple):
    """What the scores come to."""

    backends: tuple[BackendRecord, ...]
    verdict: Verdict | None
    gate: GateRecord


@library_call
def evaluate(
    source: str | Path,
    spec: EvalSpec,
    *,
    reference: str | Path | None = None,
    revision: str | None = None,
    reference_revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    allow_nonfinite: bool = False,
    allow_links: bool = False,
    merge_adapter: bool = False,
    max_context: int | None = None,
    file: str | None = None,
    reference_scores: ReferenceScores = "auto",
    keep_logits_in: Path | None = None,
    gate: Gate | None = None,
    probe_context: int | None = None,
    num_generations: int = 0,
    noise_floor: bool = False,
    split_damage: bool = False,
    tasks: Sequence[str] = (),
    task_limit: int | None = None,
    task_path: Path | None = None,
    progress: ProgressOption = "auto",
) -> EvalReport:
    """Measure a model on the OpenVINO runtime, alone or against its reference.

    Args:
        source: Hub id, checkpoint directory, or OpenVINO IR directory. An artifact of ours gets the report as its
            ``eval.json``.
        spec: Text, protocol, and the runtime's settings.
        reference: What the model was made from; any kind of source.
        revision: Branch, tag or commit of a Hub source.
        reference_revision: The same for the reference.
        trust_remote_code: Run Python code that a checkpoint brings.
        offline: Use local files and caches only.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        allow_links: Follow links that leave a source's directory.
        merge_adapter: Load the base model of an adapter's directory and merge the adapter into it (the extra
            ``adapters``).
        max_context: Tokens that the model's positions reach, where its configuration states another context.
        file: The GGUF or ONNX file that is meant, of the reference where there is one, that has several.
        reference_scores: ``exact``: both models at once, over the full vocabulary. ``rounded``: the same, one after the
            other, the reference's logits kept on disk meanwhile, each within 1/1024 of a nat. ``cached``: one after the
            other, the reference's likeliest tokens kept for later runs, a lower bound. ``auto``: exact where memory
            suffices, else rounded where the disk does.
        keep_logits_in: Directory for the reference's logits: the next candidates find them there, and the reference is
            scored once. They take four bytes for each scored token and each token of the vocabulary, rounded ones two;
            whoever gave the directory removes it.
        gate: Thresholds, in addition to those of the artifact's recipe.
        probe_context: Tokens after which logits must still be finite (None: ``spec.seq_len``).
        num_generations: Continuations to compare with the reference's.
        noise_floor: Also measure the reference against itself under the other execution precision.
        split_damage: Also measure what weights, cache, dynamic quantization and execution precision contribute.
        tasks: Tasks of lm-evaluation-harness (the extra ``lm-eval``).
        task_limit: Samples of each task.
        task_path: Directory with task files of one's own.
        progress: Told of every stage.

    Returns:
        The report. ``report.gate.status`` says what the gate makes of it.

    Raises:
        UsageError: Options that contradict each other, a context beyond the model's, no such source or device.
        DataError: The text cannot be used or is too short.
        ModelError: A model is damaged, or the two have different tokens.
        ResourceError: An extra is missing.
        HubError: The Hub could not give it.
        SecurityError: A source would need pickle files or foreign code.
        WriteError: The report or the reference's scores could not be written.
    """
    progress = reporter(progress)
    quiet_libraries()
    access = Access(
        revision, trust_remote_code, offline, allow_nonfinite, allow_links, merge_adapter, max_context, file=file
    )
    stages = Stages()
    request = EvalRequest(
        source,
        access,
        spec,
        gate or Gate(),
        Reference(reference, access.at(reference_revision), reference_scores, keep_logits_in),
        Diagnostics(
            probe_context,
            num_generations,
            noise_floor,
            split_damage,
            TaskSelection(tuple(tasks), task_limit, task_path),
        ),
    )
    prepared = prepare(request, stages, progress)
    scored = score(request, prepared, stages, progress)
    diagnosis = diagnose(request, prepared, scored, stages, progress)
    judged = judge(request, prepared, scored, diagnosis)
    made = report(request, prepared, scored, diagnosis, judged, stages)
    found = prepared.candidate.loaded.source
    if prepared.manifest is not None and found.id is None:
        made = store_report(found.path, made)
    for cache in (*(each.cache for each in scored), *diagnosis.caches):
        cache.forget()
    if prepared.reference is not None and keep_logits_in is None:
        forget_logits(prepared.candidates, prepared.reference, prepared.feed)
    return made


def score(request: EvalRequest, prepared: Prepared, stages: Stages, progress: Reporter) -> tuple[Scored, ...]:
    """Score the text by each form of the model, with the reference at once where memory suffices, else one by one.

    Raises:
        ResourceError: The diagnostics need both models at once, and memory does not suffice.
        WriteError: The reference's scores could not be kept.
    """
    candidates, reference, feed = prepared.candidates, prepared.reference, prepared.feed
    how = request.reference.scores
    if reference is not None and how == "auto":
        how = _affordable(prepared, reference, request)
    logits_dir = request.reference.logits_dir
    with stages.stage("score"), undisturbed():
        if reference is not None and how == "exact" and _fit((*candidates, reference)):
            return score_at_once(candidates, reference, feed, progress, logits_dir=logits_dir)
        if reference is not None and how == "rounded":
            return score_in_turn(candidates, reference, feed, progress, logits_dir=logits_dir)
        scored = []
        for number, candidate in enumerate(candidates):
            stage = f"score, {candidate.backend}" if number else "score"
            if reference is None:
                scored.append(score_alone(candidate, feed, progress, stage=stage))
            elif how == "exact":
                scored.append(
                    score_side_by_side(candidate, reference, feed, progress, stage=stage, logits_dir=logits_dir)
                )
            else:
                scored.append(score_against_top_k(candidate, reference, feed, progress, stage=stage))
        return tuple(scored)


def judge(request: EvalRequest, prepared: Prepared, scored: Sequence[Scored], diagnosis: DiagnosticResults) -> Judged:
    """Hold the worst of what was measured against the thresholds of the recipe and of this run, and the margins."""
    spec, records = request.spec, []
    for candidate, each in zip(prepared.candidates, scored, strict=True):
        found = None
        if prepared.reference is not None:
            found = divergence(
                each.scores,
                spec.confidence,
                top_k=each.top_k,
                captured_mass=each.captured_mass,
                logits_error=each.logits_error,
            )
        record = BackendRecord(
            backend=candidate.backend,
            properties=each.properties,
            perplexity=perplexity(each.scores, prepared.feed.windows, spec.confidence),
            divergence=found,
            verdict=None if found is None else verdict(found, spec),
        )
        records.append(record)
    thresholds = combined(prepared.manifest.recipe.gate if prepared.manifest else None, request.gate)
    compared = {record.backend: record.divergence for record in records if record.divergence is not None}
    of_pictures = picture_checks(thresholds, diagnosis.looked.record)
    checks = (*worst_checks(thresholds, compared), *of_pictures, *diagnosis.probes)
    worst = worst_verdict(record.verdict for record in records if record.verdict is not None)
    return Judged(tuple(records), worst, gate_record(checks))


def report(
    request: EvalRequest,
    prepared: Prepared,
    scored: Sequence[Scored],
    diagnosis: DiagnosticResults,
    judged: Judged,
    stages: Stages,
) -> EvalReport:
    """Put together what was measured."""
    spec, feed, reference, first = request.spec, prepared.feed, prepared.reference, scored[0]

    def model(ran: ModelOnDevice, nll: str, properties: dict[str, str]) -> ModelRecord:
        directory = ran.loaded.source.path
        return ModelRecord(
            provenance=ran.loaded.provenance,
            manifest_sha256=manifest_sha256(directory) if (directory / MANIFEST).is_file() else None,
            properties=properties,
            perplexity=perplexity(first.scores, feed.windows, spec.confidence, name=nll),
        )

    return EvalReport(
        llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
        spec=spec.model_copy(update={"dataset": feed.windows.record.dataset, "pictures": spec.pictures_name}),
        chunk=feed.chunk,
        text=feed.windows.record,
        model=model(prepared.candidate, "nll", first.properties),
        reference=None if reference is None else model(reference, "reference_nll", first.reference_properties),
        property_differences=differences(first.properties, first.reference_properties) if reference else {},
        divergence=judged.backends[0].divergence,
        verdict=judged.verdict,
        backends=judged.backends,
        backend_share=backend_share([each.scores for each in scored], spec.confidence),
        paged_refusal=prepared.paged_refusal,
        noise_floor=diagnosis.noise_floor,
        split_damage=diagnosis.split_damage,
        generations=diagnosis.generations,
        pictures=diagnosis.looked.record,
        pictures_refusal=diagnosis.looked.refusal,
        gate=judged.gate,
        tasks=diagnosis.tasks,
        num_windows_resumed=first.num_resumed,
        environment=environment_record(int(first.properties.get("INFERENCE_NUM_THREADS", 0))),
        measured=stages.measured(),
        scored_tokens_per_s=first.tokens_per_s,
    )


def _affordable(prepared: Prepared, reference: ModelOnDevice, request: EvalRequest) -> ReferenceScores:
    """Both models at once where memory suffices; else one after the other, over the full vocabulary where disk does."""
    if _fit((prepared.candidate, reference)):
        return "exact"
    if request.diagnostics.runs_pairs:
        needed, available = _needed_bytes((prepared.candidate, reference)), memory().available
        raise ResourceError(
            f"`noise_floor` and `split_damage` run two models at once: about {needed / 1e9:.1f} GB are needed, "
            f"{available / 1e9:.1f} GB are free",
            hint="leave them out: the rest goes with one model after the other",
        )
    kept = rounded_logits(prepared.candidates, reference, prepared.feed, request.reference.logits_dir)
    return "rounded" if kept.has_room else "cached"


def _fit(models: Sequence[ModelOnDevice]) -> bool:
    needed = _needed_bytes(models)
    return needed < available_for(needed)


def _needed_bytes(models: Sequence[ModelOnDevice]) -> int:
    """Predict what compiled models take that are held at once."""
    return int(sum(model.loaded.provenance.weight_bytes for model in models) * ROOM)
