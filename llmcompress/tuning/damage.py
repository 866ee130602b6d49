"""What settings cost: the divergence under them from a reference in exact execution, on text of two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.data.documents import read_documents, texts_for
from llmcompress.data.protocols import EvaluationWindows, evaluation_windows, require_same_tokens
from llmcompress.data.tokens import text_encoder
from llmcompress.errors import DataError, ResourceError
from llmcompress.evaluation.measurement import ModelOnDevice, check_vocabularies, score_side_by_side
from llmcompress.evaluation.scoring import Feed, recurrent_chunk
from llmcompress.evaluation.statistics import divergence
from llmcompress.graph.device import properties_of
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.loaded_model import load
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.evaluation import DivergenceRecord, TextRecord
from llmcompress.spec import Gate, TuneSpec
from llmcompress.spec.access import Access
from llmcompress.system.background import available_for
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.memory import ROOM
from llmcompress.system.progress import Reporter, silent

FEWEST_WINDOWS = 2
"""Of each part: one window has no interval."""


class TuneRequest(NamedTuple):
    """One search: what is tuned, how, and what the divergence is measured from."""

    directory: Path
    spec: TuneSpec
    reference: str | Path | None = None
    """None: the artifact itself."""
    access: Access = Access()
    """How the reference is opened."""
    gate: Gate = Gate()
    """What the choice must keep."""
    logits_dir: Path | None = None
    """For the reference's logits, which are the same for every setting."""


class Models(NamedTuple):
    """A model and its reference in exact execution, and the text of the search and of the verification."""

    candidate: ModelOnDevice
    reference: ModelOnDevice
    search: Feed
    held_out: Feed
    logits_dir: Path | None


def open_models(request: TuneRequest, progress: Reporter) -> Models:
    """Load both, and cut the text into the windows of the search and as many that follow them.

    Raises:
        DataError: The text is too short.
        ModelError: A model cannot be used, or the reference has other tokens.
        ResourceError: Too little memory for two models and two workers.
    """
    spec, access = request.spec, request.access
    found = resolve(request.directory, request.access.of_candidate(), vision=True)
    other = None if request.reference is None else resolve(request.reference, access, vision=True)
    documents = read_documents(spec.evaluation(), offline=access.offline)
    texts = texts_for(documents, found)
    windows = evaluation_windows(texts, documents.spec, text_encoder(found)).noting(documents.fallback)
    search, held_out = _parts(windows, spec)
    if other is not None:
        other = fetch_weights(other, progress=progress)
        require_same_tokens(windows, evaluation_windows(texts, documents.spec, text_encoder(other)))

    def model(source: Source, properties: dict[str, str]) -> ModelOnDevice:
        loaded = load(source, tokenizer=False, allow_nonfinite=access.allow_nonfinite, progress=progress)
        return ModelOnDevice(loaded.reading_text(), spec.device, properties)

    exact = properties_of(spec.device, "pinned")
    candidate = model(found, {})
    reference = candidate._replace(properties=exact) if other is None else model(other, exact)
    check_vocabularies(candidate.loaded, reference.loaded)
    _check_memory(candidate, reference)
    chunk = recurrent_chunk(spec.chunk, (candidate.loaded, reference.loaded)) or spec.effective_chunk
    return Models(candidate, reference, Feed(search, chunk), Feed(held_out, chunk), request.logits_dir)


def divergence_under(
    models: Models, properties: dict[str, str], feed: Feed, confidence: float, progress: Reporter
) -> tuple[DivergenceRecord, dict[str, str]]:
    """Divergence of the model under properties from the reference in exact execution, and the reference's properties.

    Raises:
        UsageError: The device refuses a property.
    """
    candidate = models.candidate._replace(properties=properties)
    scored = score_side_by_side(candidate, models.reference, feed, progress, logits_dir=models.logits_dir)
    scored.cache.forget()
    return divergence(scored.scores, confidence), scored.reference_properties


def held_out_divergences(
    request: TuneRequest, settings: Sequence[dict[str, str]], *, progress: Reporter = silent
) -> tuple[TextRecord, list[DivergenceRecord]]:
    """The held-out text and each setting's divergence on it; for a process of its own, which loads all of it again."""
    quiet_libraries()
    models = open_models(request, progress)
    feed, confidence = models.held_out, request.spec.confidence
    found = [divergence_under(models, each, feed, confidence, progress)[0] for each in settings]
    return feed.windows.record, found


def searched_text(found: Source, spec: TuneSpec, *, offline: bool = False) -> TextRecord:
    """What ``tune`` would search on, as a model's tokenizer reads it.

    Raises:
        DataError: The text cannot be used or is too short.
    """
    documents = read_documents(spec.evaluation(), offline=offline)
    windows = evaluation_windows(texts_for(documents, found), documents.spec, text_encoder(found))
    return _parts(windows.noting(documents.fallback), spec)[0].record


def _parts(windows: EvaluationWindows, spec: TuneSpec) -> tuple[EvaluationWindows, EvaluationWindows]:
    """For the search, and for the verification."""
    available = len(windows.windows)
    count = min(spec.num_windows, available // 2)
    if count < FEWEST_WINDOWS:
        raise DataError(
            f"the text has {available} windows of {spec.seq_len} tokens; the search and the verification "
            f"need {FEWEST_WINDOWS} each",
            where=windows.record.dataset,
            hint="take more text, or a smaller `seq_len`",
        )
    return windows.part(0, count), windows.part(count, 2 * count)


def _check_memory(candidate: ModelOnDevice, reference: ModelOnDevice) -> None:
    """Two workers hold the model while it is timed; the model and its reference run while they are compared."""
    weights = 3 * candidate.loaded.provenance.weight_bytes + reference.loaded.provenance.weight_bytes
    needed = int(ROOM * weights)
    available = available_for(needed)
    if needed > available:
        raise ResourceError(
            f"about {needed / 1e9:.1f} GB of memory are needed, {available / 1e9:.1f} GB are free",
            where=candidate.loaded.source.path.name,
            hint="free memory, or leave `reference` out",
        )
