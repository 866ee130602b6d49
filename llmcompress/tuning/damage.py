"""What settings cost: the divergence under them from a reference in exact execution, on text of two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.data import read_texts
from llmcompress.data.protocols import Window, Windows, evaluation_windows, windows_sha256
from llmcompress.data.tokens import text_encoder
from llmcompress.errors import DataError, ModelError, ResourceError
from llmcompress.evaluation.measurement import Text, check_vocabularies, score_side_by_side
from llmcompress.evaluation.statistics import divergence
from llmcompress.graph.device import properties_of
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.source import Source, fetch_weights, resolve
from llmcompress.report.evaluation import DivergenceRecord, TextRecord
from llmcompress.spec import TuneSpec
from llmcompress.spec.access import Access
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.memory import ROOM, memory
from llmcompress.system.progress import Reporter, silent

FEWEST_WINDOWS = 2
"""Of each part: one window has no interval."""
"""A model that runs needs about this times its files."""


class Reference(NamedTuple):
    """What the divergence is measured from; the model itself where ``source`` is None."""

    source: str | Path | None = None
    access: Access = Access()


class Models(NamedTuple):
    """A model and what it is compared with, and the text of the search and of the verification."""

    candidate: LoadedModel
    reference: LoadedModel
    search: Text
    held_out: Text
    keep_in: Path | None
    """Directory for the reference's logits, which are the same for every setting."""


class HeldOut(NamedTuple):
    """Of each setting, on text that the search has not seen."""

    text: TextRecord
    divergences: tuple[DivergenceRecord, ...]


def open_models(
    directory: Path, reference: Reference, spec: TuneSpec, progress: Reporter, keep_in: Path | None = None
) -> Models:
    """Load both, and cut the text into the windows of the search and as many that follow them.

    Raises:
        DataError: The text is too short.
        ModelError: A model cannot be used, or the reference has other tokens.
        ResourceError: Too little memory for two models and two workers.
    """
    found = resolve(directory)
    other = None
    if reference.source is not None:
        other = resolve(reference.source, reference.access)
    search, held_out = _texts(found, other, spec, reference.access.offline)
    other = None if other is None else fetch_weights(other, progress=progress)
    candidate = load(found, tokenizer=False, allow_nonfinite=reference.access.allow_nonfinite, progress=progress)
    against = (
        candidate
        if other is None
        else load(other, tokenizer=False, allow_nonfinite=reference.access.allow_nonfinite, progress=progress)
    )
    check_vocabularies(candidate, against)
    _check_memory(candidate, against)
    return Models(candidate, against, search, held_out, keep_in)


def divergence_under(
    models: Models, properties: dict[str, str], text: Text, confidence: float, progress: Reporter
) -> tuple[DivergenceRecord, dict[str, str]]:
    """Divergence of the model under properties from the reference in exact execution, and the reference's properties.

    Raises:
        UsageError: The device refuses a property.
    """
    exact = properties_of(text.device, "pinned")
    scored = score_side_by_side(
        models.candidate, models.reference, properties, exact, text, progress, keep_in=models.keep_in
    )
    for store in scored.stores:
        store.forget()
    return divergence(scored.scores, confidence), scored.reference_properties


def held_out_divergences(
    directory: Path,
    reference: Reference,
    spec: TuneSpec,
    settings: Sequence[dict[str, str]],
    keep_in: Path | None,
    *,
    progress: Reporter = silent,
) -> HeldOut:
    """Each setting's divergence on the held-out text; for a process of its own, which loads all anew."""
    quiet_libraries()
    models = open_models(directory, reference, spec, progress, keep_in)
    text = models.held_out
    found = tuple(divergence_under(models, each, text, spec.confidence, progress)[0] for each in settings)
    return HeldOut(text.windows.record, found)


def searched_text(found: Source, spec: TuneSpec, *, offline: bool = False) -> TextRecord:
    """What ``tune`` would search on, as a model's tokenizer reads it.

    Raises:
        DataError: The text cannot be used or is too short.
    """
    return _texts(found, None, spec, offline)[0].windows.record


def _texts(found: Source, other: Source | None, spec: TuneSpec, offline: bool) -> tuple[Text, Text]:
    cut = spec.evaluation()
    path = cut.dataset_path()
    documents = list(
        read_texts(cut.dataset if path is None else path, subset=cut.subset, split=cut.split,
                   text_field=cut.text_field, offline=offline)
    )  # fmt: skip
    where = cut.dataset if path is None else path.name
    windows = evaluation_windows(documents, cut, text_encoder(found), where=where)
    if other is not None:
        theirs = evaluation_windows(documents, cut, text_encoder(other), where=where)
        if theirs.record.token_ids_sha256 != windows.record.token_ids_sha256:
            raise ModelError(
                "its tokenizer reads the text otherwise than the artifact's",
                where="--reference",
                hint="give the model that the artifact was made from",
            )
    count = min(spec.num_windows, len(windows.windows) // 2)
    if count < FEWEST_WINDOWS:
        raise DataError(
            f"the text has {len(windows.windows)} windows of {spec.seq_len} tokens; the search and the verification "
            f"need {FEWEST_WINDOWS} each",
            where=where,
            hint="take more text, or a smaller --seq-len",
        )
    first, rest = windows.windows[:count], windows.windows[count : 2 * count]
    return _text(first, windows.record, spec), _text(rest, windows.record, spec)


def _text(windows: Sequence[Window], whole: TextRecord, spec: TuneSpec) -> Text:
    record = TextRecord(
        dataset=whole.dataset,
        num_documents=whole.num_documents,
        num_windows=len(windows),
        num_clusters=len({window.cluster for window in windows}),
        num_scored_tokens=sum(len(window.token_ids) - window.first_scored for window in windows),
        token_ids_sha256=windows_sha256(windows),
    )
    return Text(Windows(tuple(windows), record, None, None), spec.effective_chunk, spec.device)


def _check_memory(candidate: LoadedModel, reference: LoadedModel) -> None:
    """Two workers hold the model while it is timed; the model and its reference run while they are compared."""
    sizes = [
        sum(file.size_bytes for file in model.provenance.files if file.path.endswith((".bin", ".safetensors")))
        for model in (candidate, reference)
    ]
    needed, available = int(ROOM * (sum(sizes) + 2 * sizes[0])), memory().available
    if needed > available:
        raise ResourceError(
            f"about {needed / 1e9:.1f} GB of memory are needed, {available / 1e9:.1f} GB are free",
            where=candidate.source.path.name,
            hint="free memory, or leave --reference out",
        )
