"""The first stage of an evaluation: all that is needed is checked, fetched, cut and loaded."""

from __future__ import annotations

import logging
from typing import NamedTuple

from llmcompress.artifact import MANIFEST, read_manifest
from llmcompress.data.disjoint import require_not_trained_on
from llmcompress.data.documents import read_documents, texts_for
from llmcompress.data.pictures import PictureQuestions, read_pictures
from llmcompress.data.protocols import evaluation_windows, require_same_tokens
from llmcompress.data.tokens import TextEncoder, text_encoder
from llmcompress.errors import LlmcompressError, UsageError, last_line
from llmcompress.evaluation.conversation import prompts
from llmcompress.evaluation.measurement import ModelOnDevice, check_vocabularies
from llmcompress.evaluation.request import EvalRequest, check_request
from llmcompress.evaluation.scoring import Feed, recurrent_chunk
from llmcompress.evaluation.tasks import check_tasks
from llmcompress.graph.decoding import generate
from llmcompress.graph.device import check_device, properties_of
from llmcompress.graph.paged import no_paged_form
from llmcompress.loaders.context import changing_rope, require_context
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.compression import CompressionReport
from llmcompress.report.record import Stages
from llmcompress.spec import EvalSpec
from llmcompress.spec.dataset import BUNDLED
from llmcompress.spec.evaluation import NO_PICTURES
from llmcompress.system.progress import Progress, Reporter

_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """The models and the text, ready to be scored."""

    candidates: tuple[ModelOnDevice, ...]
    """One model in each form of its graph that is measured."""
    paged_refusal: str | None
    """Why the paged form was asked for and is not among them."""
    reference: ModelOnDevice | None
    feed: Feed
    encoder: TextEncoder
    """The candidate's."""
    manifest: CompressionReport | None
    """Of an artifact of ours."""
    questions: PictureQuestions | None = None
    """What a vision-language model is asked about pictures."""
    whole: tuple[LoadedModel, ...] = ()
    """The models with all their parts, where they see: the one that is measured, and its reference."""

    @property
    def candidate(self) -> ModelOnDevice:
        """The model in the first of its forms: stateful, unless only the paged one is measured."""
        return self.candidates[0]


def prepare(request: EvalRequest, stages: Stages, progress: Reporter) -> Prepared:
    """Check what is asked, read the text as both models' tokenizers do, and load the models.

    Raises: as ``evaluate``.
    """
    check_request(request)
    properties = _properties(request)
    found, other = _sources(request)
    access = request.access
    with stages.stage("read the text"):
        progress(Progress("read the text", 0, 1))
        questions = _questions(request.spec, found, access.offline)
        documents = read_documents(request.spec, offline=access.offline)
        spec = documents.spec
        found = fetch_weights(found, progress=progress)
        other = None if other is None else fetch_weights(other, progress=progress)
        encoder = text_encoder(found)
        texts = texts_for(documents, found)
        windows = evaluation_windows(texts, spec, encoder).noting(documents.fallback)
        for each in filter(None, (found, other)):
            require_not_trained_on(each.path, [window.token_ids for window in windows.windows], windows.record.dataset)
            prompts(each.text_path, encoder)  # the probes ask them later: what cannot be asked ends here
        if other is not None:
            require_same_tokens(windows, evaluation_windows(texts, spec, text_encoder(other)))
        progress(Progress("read the text", 1, 1))

    whole: list[LoadedModel] = []

    def model(source: Source) -> ModelOnDevice:
        loaded = load(source, tokenizer=False, allow_nonfinite=access.allow_nonfinite, progress=progress)
        whole.extend([loaded] if loaded.parts else [])
        return ModelOnDevice(loaded.reading_text(), spec.device, properties)

    with stages.stage("load"):
        candidate = model(found)
        reference = None if other is None else model(other)
        if reference is not None:
            # Of codes the original is what they stand for, in floats.
            reference = reference._replace(loaded=reference.loaded.dequantized())
        if reference is not None:
            check_vocabularies(candidate.loaded, reference.loaded)
        candidates, refusal = _in_each_form(candidate, spec)
    manifest = read_manifest(found.path) if (found.path / MANIFEST).is_file() else None
    loaded = [each.loaded for each in (candidate, reference) if each is not None]
    chunk = recurrent_chunk(spec.chunk, loaded) or _chunk(request, [each.source for each in loaded])
    return Prepared(candidates, refusal, reference, Feed(windows, chunk), encoder, manifest, questions, tuple(whole))


def _questions(spec: EvalSpec, found: Source, offline: bool) -> PictureQuestions | None:
    """What a model is asked about pictures, if it sees."""
    if not found.sees and spec.pictures not in (None, NO_PICTURES):
        raise UsageError(
            "`pictures` are shown to vision-language models, this is a text model",
            where=found.name,
            hint="leave `pictures` out",
        )
    if not found.sees or spec.pictures == NO_PICTURES:
        return None
    return read_pictures(spec.pictures or BUNDLED, offline=offline)


def _chunk(request: EvalRequest, sources: list[Source]) -> int:
    """Tokens per call: a whole window, as the runtime reads a prompt, where pieces of it are another function."""
    spec, chunk = request.spec, request.spec.effective_chunk
    for source in sources:
        rope = changing_rope(source.config)
        if rope is None or spec.seq_len <= rope.length:
            continue
        if rope.kind == "dynamic":
            what = "the converted graph keeps the frequencies of fewer, and is another model than in PyTorch"
        elif spec.chunk is None and not request.diagnostics.split_damage:
            chunk = spec.seq_len
            what = "windows are fed whole, as the runtime reads a prompt"
        elif chunk < spec.seq_len:
            what = f"in pieces of {chunk} a window is another function than the whole prompt that the runtime reads"
        else:
            continue
        _log.warning(
            "%s: the frequencies of its positions change beyond %s tokens (%s): %s",
            source.name,
            f"{rope.length:,}",
            rope.kind,
            what,
        )
    return chunk


def _in_each_form(candidate: ModelOnDevice, spec: EvalSpec) -> tuple[tuple[ModelOnDevice, ...], str | None]:
    """The model in each form that is to be measured, and why it has no paged one although that was asked for.

    Raises:
        ModelError: Only the paged form was asked for, and there is none.
    """
    asked = spec.backends(is_ir=candidate.loaded.source.layout == "ir")
    candidates = tuple(candidate._replace(backend=backend) for backend in asked)
    if "paged" not in asked:
        return candidates, None
    try:
        _try_paged(candidates[-1])
    except LlmcompressError as error:
        if len(candidates) == 1:
            raise
        _log.warning("only the stateful graph is scored: %s", error.message)
        return candidates[:-1], error.message
    return candidates, None


def _try_paged(model: ModelOnDevice) -> None:
    try:
        generate(model.compiled(), [0], eos=frozenset(), max_new_tokens=1)
    except RuntimeError as error:
        raise no_paged_form(f"the device refuses it: {last_line(error)}") from error


def _properties(request: EvalRequest) -> dict[str, str]:
    """What is asked of the device; also whether it can do the exact arithmetic that the diagnostics need."""
    spec = request.spec
    check_device(spec.device)
    asked = properties_of(spec.device, spec.precision, spec.profile)
    if request.diagnostics.runs_pairs:
        properties_of(spec.device, "pinned")
    return asked


def _sources(request: EvalRequest) -> tuple[Source, Source | None]:
    """Find the model and its reference; nothing large is fetched."""
    diagnostics, reference = request.diagnostics, request.reference
    # An adapter and a file are the reference's, where there is one: the model that is measured was made of them.
    access = request.access
    if reference.source is not None:
        access = access._replace(merge_adapter=False, file=None)
    found = resolve(request.source, access, vision=True)
    other = None if reference.source is None else resolve(reference.source, reference.access, vision=True)
    if diagnostics.tasks.names and found.sees:
        raise UsageError(
            "task scores are measured of text models, this is a vision-language model",
            where=found.name,
            hint="leave `tasks` out: its language model is measured on text",
        )
    if diagnostics.tasks.names:
        if found.layout != "ir":
            raise UsageError(
                "task scores are measured on an OpenVINO directory, this is a checkpoint",
                where=found.id or str(found.path),
                hint="compress it first, for example: llmcompress compress SOURCE --recipe none",
            )
        check_tasks(diagnostics.tasks)
    num_tokens = max(request.spec.seq_len, diagnostics.probe_context or 0)
    for each in filter(None, (found, other)):
        require_context(
            each,
            num_tokens,
            f"{num_tokens} tokens were asked for",
            hint="take `seq_len` and `probe_context` of at most {longest}",
        )
    return found, other
