"""A model, perhaps its reference, and a text in; a report out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from llmcompress.artifact import MANIFEST, manifest_sha256, read_manifest, write_report
from llmcompress.data import read_texts
from llmcompress.data.protocols import Windows, evaluation_windows, wikitext_pages
from llmcompress.data.tokens import TextEncoder, text_encoder
from llmcompress.errors import ArtifactError, ModelError, ResourceError, UsageError
from llmcompress.evaluation.conversion import check_conversion as compare_conversion
from llmcompress.evaluation.damage import noise_floor as measure_noise_floor
from llmcompress.evaluation.damage import split_damage as measure_damage
from llmcompress.evaluation.gate import carried, combined, finite_check, gate_record, threshold_checks
from llmcompress.evaluation.generations import compare_generations
from llmcompress.evaluation.intervals import judge
from llmcompress.evaluation.measurement import (
    Scored,
    Text,
    check_vocabularies,
    score_against_stored,
    score_alone,
    score_side_by_side,
)
from llmcompress.evaluation.probes import answer_checks, answers, long_context_check
from llmcompress.evaluation.statistics import divergence, perplexity
from llmcompress.evaluation.tasks import check_tasks, score_tasks
from llmcompress.graph.decoding import eos_ids
from llmcompress.graph.device import check_device, differences, properties_of
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.source import Source, fetch_weights, longest_context, resolve
from llmcompress.report.environment import environment_record
from llmcompress.report.evaluation import (
    Check,
    ConversionRecord,
    DamagePart,
    EvalReport,
    ModelRecord,
    TaskScore,
    TextRecord,
)
from llmcompress.report.file_names import EVAL_REPORT
from llmcompress.report.record import FileRecord
from llmcompress.report.stages import Stages
from llmcompress.spec import Access, EvalSpec, Gate
from llmcompress.system.environment import installed_versions, quiet_libraries
from llmcompress.system.memory import ROOM, memory
from llmcompress.system.progress import Progress, Reporter, silent

_log = logging.getLogger(__name__)

ReferenceScores = Literal["auto", "exact", "cached"]


class _Text(NamedTuple):
    """The windows, and the encoder that made them."""

    windows: Windows
    encoder: TextEncoder


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
    progress: Reporter = silent,
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
        reference_scores: ``exact``: both models at once, over the full vocabulary. ``cached``: one after the other, the
            reference's likeliest tokens kept for later runs, a lower bound. ``auto``: exact where memory suffices.
        keep_logits_in: Directory for the reference's logits, where both models run at once: the next candidates find
            them there, and the reference is scored once, exactly. They take four bytes for each scored token and each
            token of the vocabulary; whoever gave the directory removes it.
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
        The report. ``report.gate.passed`` says whether the model may be shipped.

    Raises:
        UsageError: Options that contradict each other, a context beyond the model's, no such source or device.
        DataError: The text cannot be used or is too short.
        ModelError: A model is damaged, or the two have different tokens.
        ResourceError: An extra is missing.
        HubError: The Hub could not give it.
        SecurityError: A source would need pickle files or foreign code.
        WriteError: The report or the reference's scores could not be written.
    """
    quiet_libraries()
    stages = Stages()
    _check_options(reference, reference_revision, reference_scores, num_generations, noise_floor, split_damage)
    _check_split(spec, reference_scores, noise_floor, split_damage)
    if not tasks and (task_limit is not None or task_path is not None):
        raise UsageError("--task-limit and --task-path have no effect without --tasks", hint="name the tasks")
    check_device(spec.device)
    asked = properties_of(spec.device, spec.precision, spec.profile)
    if split_damage or noise_floor:
        properties_of(spec.device, "pinned")
    access = Access(revision, trust_remote_code, offline, allow_nonfinite)
    found = resolve(source, access)
    found_reference = None if reference is None else resolve(reference, access.at(reference_revision))
    if tasks and found.layout != "ir":
        raise UsageError(
            "task scores are measured on an OpenVINO directory, this is a checkpoint",
            where=found.id or str(found.path),
            hint="compress it first, for example with --recipe none",
        )
    if tasks:
        check_tasks(tasks, task_path)
    for each in filter(None, (found, found_reference)):
        _check_context(each, max(spec.seq_len, probe_context or 0))
    with stages.stage("read the text"):
        progress(Progress("read the text", 0, 1))
        documents = _documents(spec, offline)
        found = fetch_weights(found, progress=progress)
        found_reference = None if found_reference is None else fetch_weights(found_reference, progress=progress)
        text = _text(found, documents, spec)
        if found_reference is not None:
            _check_tokenizers(text, _text(found_reference, documents, spec))
        progress(Progress("read the text", 1, 1))
    with stages.stage("load"):
        loaded = load(found, tokenizer=False, allow_nonfinite=allow_nonfinite, progress=progress)
        against = None
        if found_reference is not None:
            against = load(found_reference, tokenizer=False, allow_nonfinite=allow_nonfinite, progress=progress)
            check_vocabularies(loaded, against)
    if against is not None and reference_scores == "auto":
        reference_scores = _affordable(loaded, against, extras=noise_floor or split_damage)
    chunk = spec.effective_chunk
    feed = Text(text.windows, chunk, spec.device)
    with stages.stage("score"):
        scored = _score(loaded, against, asked, feed, reference_scores, keep_logits_in, progress)
    measured_divergence = None
    if against is not None:
        measured_divergence = divergence(
            scored.scores, spec.confidence, top_k=scored.top_k, captured_mass=scored.captured_mass
        )
    floor, generations = None, None
    stores = list(scored.stores)
    parts: tuple[DamagePart, ...] = ()
    if against is not None and noise_floor:
        with stages.stage("noise floor"):
            floor = measure_noise_floor(against, feed, spec.confidence, stores, progress)
    if against is not None and split_damage:
        with stages.stage("split damage"):
            parts = measure_damage(loaded, against, scored.properties, feed, spec.confidence, stores, progress)
    if against is not None and num_generations:
        with stages.stage("generate"):
            generations = compare_generations(
                loaded, against, asked, text.windows, num_generations, spec.device, progress
            )
    manifest = read_manifest(found.path) if (found.path / MANIFEST).is_file() else None
    thresholds = combined(manifest.recipe.gate if manifest else None, gate or Gate())
    with stages.stage("probe"):
        checks = (
            *threshold_checks(thresholds, measured_divergence),
            *_probe(loaded, against, text, scored, probe_context or spec.seq_len, asked, spec.device, progress),
        )
    scores: tuple[TaskScore, ...] = ()
    if tasks:
        with stages.stage("tasks"):
            progress(Progress("tasks", 0, 1))
            scores = score_tasks(
                found.path,
                tasks,
                limit=task_limit,
                include_path=task_path,
                offline=offline,
                device=spec.device,
                properties=asked,
            )
            progress(Progress("tasks", 1, 1))
    verdict = None
    if measured_divergence is not None:
        verdict = judge(
            measured_divergence.kl_divergence,
            measured_divergence.log_perplexity_change,
            kl_margin=spec.kl_margin,
            perplexity_margin=spec.perplexity_margin,
        )
        if verdict == "equivalent" and not measured_divergence.exact:
            # A lower bound below the margin shows nothing.
            verdict = "cannot tell"
    report = EvalReport(
        llmcompress_version=installed_versions(("llmcompress",))["llmcompress"],
        spec=spec.model_copy(update={"dataset": text.windows.record.dataset}),
        chunk=chunk,
        text=text.windows.record,
        model=_model_record(loaded, scored, text.windows, spec, "nll", scored.properties),
        reference=None
        if against is None
        else _model_record(against, scored, text.windows, spec, "reference_nll", scored.reference_properties),
        property_differences=differences(scored.properties, scored.reference_properties) if against else {},
        divergence=measured_divergence,
        verdict=verdict,
        noise_floor=floor,
        split_damage=parts,
        generations=generations,
        gate=gate_record(checks),
        tasks=scores,
        num_windows_resumed=scored.num_resumed,
        environment=environment_record(int(scored.properties.get("INFERENCE_NUM_THREADS", 0))),
        measured=stages.measured(),
        scored_tokens_per_s=scored.tokens_per_s,
    )
    if manifest is not None and found.id is None:
        report = _stored(found.path, report)
    for store in stores:
        store.forget()
    return report


def check_conversion(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    allow_nonfinite: bool = False,
    progress: Reporter = silent,
) -> ConversionRecord:
    """Compare PyTorch with OpenVINO on an uncompressed checkpoint; ``passed`` says whether the conversion is right.

    Raises: as :func:`evaluate`.
    """
    quiet_libraries()
    found = resolve(source, Access(revision, trust_remote_code, offline, allow_nonfinite))
    return compare_conversion(found, allow_nonfinite=allow_nonfinite, progress=progress)


def scored_text(source: Source, spec: EvalSpec, *, offline: bool = False) -> TextRecord:
    """Say which tokens ``evaluate`` would score, without a model.

    Raises:
        DataError: The text cannot be used or is too short.
        HubError: The dataset cannot be had.
    """
    return _text(source, _documents(spec, offline), spec).windows.record


def judge_again(directory: str | Path, gate: Gate) -> EvalReport:
    """Hold an artifact's ``eval.json`` against thresholds that changed since it was written; nothing is measured.

    Args:
        directory: An artifact with a report.
        gate: Thresholds, in addition to those of the artifact's recipe.

    Raises:
        ArtifactError: It is no artifact, or has no report of its bytes.
        WriteError: The report could not be written.
    """
    directory = Path(directory)
    earlier = _earlier(directory)
    manifest = read_manifest(directory)
    if earlier is None or earlier.model.manifest_sha256 != manifest_sha256(directory):
        raise ArtifactError(f"has no {EVAL_REPORT} of its bytes", where=str(directory), hint="run: llmcompress eval")
    probes = [check for check in earlier.gate.checks if check.name not in Gate.model_fields]
    checks = (*threshold_checks(combined(manifest.recipe.gate, gate), earlier.divergence), *probes)
    report = earlier.model_copy(update={"gate": carried(earlier.gate, gate_record(checks))})
    if report != earlier:
        write_report(directory, EVAL_REPORT, report)
    return report


def _check_options(
    reference: object,
    reference_revision: str | None,
    reference_scores: ReferenceScores,
    num_generations: int,
    noise_floor: bool,
    split_damage: bool,
) -> None:
    needing = {
        "--reference-revision": reference_revision is not None,
        "--reference-scores": reference_scores != "auto",
        "--generations": num_generations > 0,
        "--noise-floor": noise_floor,
        "--split-damage": split_damage,
    }
    given = [name for name, used in needing.items() if used]
    if reference is None and given:
        raise UsageError(
            f"{' and '.join(given)} compare with a reference, and none was given",
            hint="add --reference with the model that it was made from",
        )


def _check_split(spec: EvalSpec, reference_scores: ReferenceScores, noise_floor: bool, split_damage: bool) -> None:
    if split_damage and spec.precision == "pinned":
        raise UsageError(
            "--split-damage shows what the runtime adds, and --precision pinned takes that away",
            hint="leave --precision pinned out",
        )
    if split_damage and spec.effective_chunk >= spec.seq_len:
        raise UsageError(
            f"--chunk {spec.effective_chunk} feeds whole windows, in which the cache's precision is not seen",
            hint="leave --chunk out, or take a smaller one",
        )
    if reference_scores == "cached" and (noise_floor or split_damage):
        raise UsageError(
            "--noise-floor and --split-damage run two models at once, which --reference-scores cached avoids",
            hint="leave one or the other out",
        )


def _check_context(source: Source, num_tokens: int) -> None:
    longest = longest_context(source)
    if longest is not None and num_tokens > longest:
        raise UsageError(
            f"{num_tokens} tokens were asked for, the model's context is {longest}",
            where=source.id or source.path.name,
            hint=f"take --seq-len and --probe-context of at most {longest}",
        )


def _documents(spec: EvalSpec, offline: bool) -> list[str]:
    path = spec.dataset_path()
    dataset = spec.dataset if path is None else path
    texts = list(read_texts(dataset, subset=spec.subset, split=spec.split, text_field=spec.text_field, offline=offline))
    return wikitext_pages(texts) if (spec.dataset, spec.protocol) == ("wikitext2", "rolling") else texts


def _text(source: Source, documents: Sequence[str], spec: EvalSpec) -> _Text:
    encoder = text_encoder(source)
    path = spec.dataset_path()
    where = spec.dataset if path is None else path.name
    return _Text(evaluation_windows(documents, spec, encoder, where=where), encoder)


def _check_tokenizers(candidate: _Text, reference: _Text) -> None:
    mine, theirs = candidate.windows.record, reference.windows.record
    if mine.token_ids_sha256 != theirs.token_ids_sha256:
        raise ModelError(
            "its tokenizer reads the text otherwise than the candidate's: "
            f"{theirs.num_scored_tokens} against {mine.num_scored_tokens} scored tokens, or other ids",
            where="--reference",
            hint="give the model that the candidate was made from",
        )


def _score(
    loaded: LoadedModel,
    against: LoadedModel | None,
    asked: dict[str, str],
    feed: Text,
    reference_scores: ReferenceScores,
    keep_logits_in: Path | None,
    progress: Reporter,
) -> Scored:
    if against is None:
        return score_alone(loaded, asked, feed, progress)
    if reference_scores == "exact":
        return score_side_by_side(loaded, against, asked, asked, feed, progress, keep_in=keep_logits_in)
    return score_against_stored(loaded, against, asked, asked, feed, progress)


def _affordable(loaded: LoadedModel, against: LoadedModel, *, extras: bool) -> ReferenceScores:
    """Both models at once where memory suffices."""
    needed = int(sum(_weight_bytes(model.provenance.files) for model in (loaded, against)) * ROOM)
    available = memory().available
    if needed < available:
        return "exact"
    if extras:
        raise ResourceError(
            f"--noise-floor and --split-damage run two models at once: about {needed / 1e9:.1f} GB are needed, "
            f"{available / 1e9:.1f} GB are free",
            hint="leave them out: the rest goes with the reference's scores cached",
        )
    return "cached"


def _stored(directory: Path, report: EvalReport) -> EvalReport:
    """Write the report into the artifact; what an earlier one of the same bytes has shown is not lost by it.

    A check that failed stays failed until it is made again and passes. A report without a reference does not replace
    one with it.
    """
    earlier = _earlier(directory)
    if earlier is not None and earlier.model.manifest_sha256 == report.model.manifest_sha256:
        report = report.model_copy(update={"gate": carried(earlier.gate, report.gate)})
        if earlier.divergence is not None and report.divergence is None:
            _log.warning("%s keeps the earlier report, which has a reference", directory / EVAL_REPORT)
            return report
    write_report(directory, EVAL_REPORT, report)
    return report


def _earlier(directory: Path) -> EvalReport | None:
    try:
        return EvalReport.model_validate_json((directory / EVAL_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _weight_bytes(files: Sequence[FileRecord]) -> int:
    return sum(file.size_bytes for file in files if file.path.endswith((".bin", ".safetensors")))


def _probe(
    loaded: LoadedModel,
    against: LoadedModel | None,
    text: _Text,
    scored: Scored,
    context: int,
    asked: dict[str, str],
    device: str,
    progress: Reporter,
) -> tuple[Check, ...]:
    import numpy as np

    ends = frozenset[int]().union(
        *(eos_ids(config) for config in (loaded.generation_config, loaded.config) if config is not None)
    )
    mine = answers(loaded, text.encoder, ends, device, asked, progress, "probe")
    theirs = None
    if against is not None and mine is not None:
        theirs = answers(against, text.encoder, ends, device, asked, progress, "probe the reference")
    nll = scored.scores.values["nll"]
    stream = np.concatenate([window.token_ids for window in text.windows.windows[:64]])
    return (
        finite_check(int((~np.isfinite(nll)).sum()), len(nll)),
        long_context_check(loaded, stream, context, device, asked, progress),
        *answer_checks(mine, theirs),
    )


def _model_record(
    loaded: LoadedModel, scored: Scored, windows: Windows, spec: EvalSpec, name: str, properties: dict[str, str]
) -> ModelRecord:
    directory = loaded.source.path
    return ModelRecord(
        provenance=loaded.provenance,
        manifest_sha256=manifest_sha256(directory) if (directory / MANIFEST).is_file() else None,
        properties=properties,
        perplexity=perplexity(scored.scores, windows, spec.confidence, name=name),
    )
