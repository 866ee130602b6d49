"""What is measured on top of the scores: where the damage comes from, what is noise, and what no average shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.data.pictures import PictureQuestions
from llmcompress.evaluation.damage import noise_floor, split_damage
from llmcompress.evaluation.generations import compare_generations
from llmcompress.evaluation.measurement import Scored
from llmcompress.evaluation.pictures import Looked, Looking, look_where_it_runs
from llmcompress.evaluation.preparation import Prepared
from llmcompress.evaluation.probes import probe
from llmcompress.evaluation.request import EvalRequest
from llmcompress.evaluation.score_cache import ScoreCache
from llmcompress.evaluation.tasks import score_tasks
from llmcompress.report.evaluation import Check, DamagePart, GenerationRecord, NoiseFloor, TaskScore
from llmcompress.report.record import Stages
from llmcompress.system.progress import Progress, Reporter


class DiagnosticResults(NamedTuple):
    """What was found, of what was asked for."""

    noise_floor: NoiseFloor | None
    split_damage: tuple[DamagePart, ...]
    generations: GenerationRecord | None
    probes: tuple[Check, ...]
    tasks: tuple[TaskScore, ...]
    looked: Looked
    """What became of questions about pictures."""
    caches: tuple[ScoreCache, ...]
    """To be forgotten when the evaluation is done."""


def diagnose(
    request: EvalRequest, prepared: Prepared, scored: Sequence[Scored], stages: Stages, progress: Reporter
) -> DiagnosticResults:
    """Measure what was asked for, one after the other, and the probes."""
    asked, confidence = request.diagnostics, request.spec.confidence
    candidate, reference, feed = prepared.candidate, prepared.reference, prepared.feed
    floor, generations, caches = None, None, list[ScoreCache]()
    parts: tuple[DamagePart, ...] = ()
    if reference is not None and asked.noise_floor:
        with stages.stage("noise floor"):
            floor = noise_floor(reference, feed, confidence, caches, progress)
    if reference is not None and asked.split_damage:
        with stages.stage("split damage"):
            pairs = zip(prepared.candidates, scored, strict=True)
            as_used = [model._replace(properties=each.properties) for model, each in pairs]
            parts = split_damage(as_used, reference, feed, confidence, caches, progress)
    if reference is not None and asked.num_generations:
        with stages.stage("generate"):
            generations = compare_generations(candidate, reference, feed.windows, asked.num_generations, progress)
    with stages.stage("probe"):
        probes = probe(
            prepared, [each.scores for each in scored], asked.probe_context or request.spec.seq_len, progress
        )
    tasks: tuple[TaskScore, ...] = ()
    if asked.tasks.names:
        with stages.stage("tasks"):
            progress(Progress("tasks", 0, 1))
            tasks = score_tasks(candidate, asked.tasks, offline=request.access.offline)
            progress(Progress("tasks", 1, 1))
    looked = Looked()
    if prepared.questions is not None:
        with stages.stage("pictures"):
            looked = _look(request, prepared, prepared.questions, progress)
    return DiagnosticResults(floor, parts, generations, (*probes, *looked.checks), tasks, looked, tuple(caches))


def _look(request: EvalRequest, prepared: Prepared, questions: PictureQuestions, progress: Reporter) -> Looked:
    asked, candidate = request.diagnostics, prepared.candidate
    how = Looking(questions, candidate.device, candidate.properties, request.spec.confidence, asked.split_damage)
    whole, *original = prepared.whole
    return look_where_it_runs(whole, original[0] if original else None, how, progress, offline=request.access.offline)
