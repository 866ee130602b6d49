"""Questions about pictures: how far a vision-language model's answers, and what it sees, are from its original's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.data.pictures import PictureQuestions
from llmcompress.errors import LlmcompressError, ModelError
from llmcompress.evaluation.intervals import clustered_mean
from llmcompress.evaluation.probes import is_loop
from llmcompress.evaluation.statistics import TokenScores, divergence
from llmcompress.loaders.environments import fitting_layer, on_layer
from llmcompress.loaders.exporter import VISION_TASK
from llmcompress.loaders.loaded_model import LoadedModel, load_source
from llmcompress.loaders.seeing import Reply, Sight, answer, open_sight, picture_prompt
from llmcompress.loaders.source import Source
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import (
    Check,
    DivergenceRecord,
    PictureAnswer,
    PictureDamage,
    PicturePart,
    PictureRecord,
    VisionError,
)
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

MAX_NEW_TOKENS = 32
"""Of an answer."""

_log = logging.getLogger(__name__)


class Looking(NamedTuple):
    """What is asked, and how the models run."""

    questions: PictureQuestions
    device: str
    properties: dict[str, str]
    confidence: float
    splits: bool = False
    """Whether the damage is split by part."""


class Looked(NamedTuple):
    """What was found."""

    record: PictureRecord | None = None
    checks: tuple[Check, ...] = ()
    refusal: str | None = None
    """Why there is no record."""


class _Said(NamedTuple):
    """What a model answers to one question."""

    prompt: dict[str, torch.Tensor]
    answer: Reply
    text: str


class _Compared(NamedTuple):
    """A model that says an original's answer to one question."""

    scores: dict[str, NDArray[np.float64]]
    """Of each token of the answer, by the names that ``divergence`` reads."""
    cosine: float
    relative_l2: float
    """Of the picture's embeddings."""
    own: _Said
    """What it says of its own accord, where that was asked for."""


def look_where_it_runs(
    candidate: LoadedModel, reference: LoadedModel | None, how: Looking, progress: Reporter, *, offline: bool
) -> Looked:
    """As ``look``, in a process with the transformers that the model's class works with; a refusal is no error.

    Args:
        offline: Nothing may be installed for it.
    """
    source = candidate.source
    layer = fitting_layer(str(source.config.get("model_type")), VISION_TASK)
    try:
        if layer is None:
            return look(candidate, reference, how, progress)
        original = None if reference is None else reference.source._replace(files=None)
        keywords = {"reference": original, "how": how}
        return on_layer(layer, look_at_sources, source, keywords, offline=offline, progress=progress)
    except LlmcompressError as error:
        _log.warning("it is shown no pictures: %s", error.message)
        return Looked(refusal=error.message)


def look_at_sources(source: Source, reference: Source | None, how: Looking, *, progress: Reporter) -> Looked:
    """As ``look``, for a worker; the weights have been checked."""
    original = None if reference is None else load_source(reference, tokenizer=False, allow_nonfinite=True)
    return look(load_source(source, tokenizer=False, allow_nonfinite=True), original, how, progress)


def look(candidate: LoadedModel, reference: LoadedModel | None, how: Looking, progress: Reporter) -> Looked:
    """Ask both models; the original first, whose answers the candidate then says token by token.

    Args:
        candidate: With its parts, and so is the reference.
        reference: What it was made from; None: only the candidate's own answers are looked at.
        how: What is asked.
        progress: Told of each answer.

    Raises:
        ModelError: A model cannot be asked, or the two read a question as other tokens.
    """
    if reference is None:
        return _looked(how, list(_ask(candidate, how, progress, "ask about pictures")), [])
    theirs = list(_ask(reference, how, progress, "ask the reference about pictures"))
    found = list(_compare(candidate, theirs, how, progress, "ask about pictures", own=True))
    damage = list(_split(candidate, reference, theirs, how, progress)) if how.splits else []
    looked = _looked(how, [each.own for each in found], theirs)
    update = {
        "num_scored_tokens": sum(len(each.scores["kl"]) for each in found),
        "divergence": _divergence(found, how.confidence),
        "vision": VisionError(
            cosine=_mean([each.cosine for each in found], how.confidence),
            relative_l2=_mean([each.relative_l2 for each in found], how.confidence),
        ),
        "damage": tuple(damage),
    }
    return looked._replace(record=looked.record.model_copy(update=update) if looked.record else None)


def _split(
    candidate: LoadedModel, reference: LoadedModel, theirs: Sequence[_Said], how: Looking, progress: Reporter
) -> Iterator[PictureDamage]:
    """The candidate's language model among the original's parts, and the other way round."""
    mixed: dict[PicturePart, LoadedModel] = {
        "language_model": replace(candidate, parts=reference.parts),
        "other_parts": replace(candidate, model=reference.model),
    }
    for part, model in mixed.items():
        found = list(_compare(model, theirs, how, progress, f"split damage of pictures: {part}"))
        lost = _divergence(found, how.confidence)
        yield PictureDamage(part=part, kl_divergence=lost.kl_divergence, top1_agreement=lost.top1_agreement)


def _ask(loaded: LoadedModel, how: Looking, progress: Reporter, stage: str) -> Iterator[_Said]:
    """The answers that a model gives of its own accord."""
    for sight, prompt in _prompts(loaded, how, progress, stage):
        yield _said(sight, prompt, answer(sight, prompt, MAX_NEW_TOKENS))


def _compare(
    loaded: LoadedModel, theirs: Sequence[_Said], how: Looking, progress: Reporter, stage: str, *, own: bool = False
) -> Iterator[_Compared]:
    """Have a model say an original's answers.

    Args:
        theirs: The original's, in the order of the questions.
        own: Whether the model's own answer is of interest too.
    """
    import numpy as np

    for (sight, prompt), said in zip(_prompts(loaded, how, progress, stage), theirs, strict=True):
        if not np.array_equal(prompt["input_ids"], said.prompt["input_ids"]):
            raise ModelError(
                "its processor reads a question and a picture as other tokens than the reference's",
                where=sight.where,
                hint="take the model that it was made from as `reference`",
            )
        repeated = answer(sight, prompt, MAX_NEW_TOKENS, said.answer.token_ids.tolist())
        scores = score(repeated, said.answer)
        # Where it prefers each token of the original's answer, that is its own.
        spoken = repeated if scores["agrees"].all() or not own else answer(sight, prompt, MAX_NEW_TOKENS)
        yield _Compared(scores, *embedding_error(repeated.seen, said.answer.seen), _said(sight, prompt, spoken))


def _prompts(
    loaded: LoadedModel, how: Looking, progress: Reporter, stage: str
) -> Iterator[tuple[Sight, dict[str, torch.Tensor]]]:
    questions = how.questions.questions
    progress(Progress(stage, 0, len(questions), "questions"))
    sight = open_sight(loaded, how.device, how.properties)
    for number, each in enumerate(questions, 1):
        yield sight, picture_prompt(sight, each.question, each.picture)
        progress(Progress(stage, number, len(questions), "questions"))


def _said(sight: Sight, prompt: dict[str, torch.Tensor], found: Reply) -> _Said:
    text = sight.processor.tokenizer.decode(found.token_ids.tolist(), skip_special_tokens=True)
    return _Said(prompt, found, str(text).strip())


def score(answer: Reply, reference: Reply) -> dict[str, NDArray[np.float64]]:
    """Scores of each token of an answer that both models say, by the names that ``divergence`` reads.

    Raises:
        ModelError: Their logits are of different tokens.
    """
    import numpy as np
    from scipy.special import log_softmax

    if answer.logits.shape != reference.logits.shape:
        raise ModelError(
            f"the candidate's vocabulary has {answer.logits.shape[1]} tokens, the reference's "
            f"{reference.logits.shape[1]}",
            where="`reference`",
            hint="give the model that the candidate was made from",
        )
    mine, theirs = (log_softmax(each.logits.astype(np.float64), axis=1) for each in (answer, reference))
    said = reference.token_ids[:, None]
    probability = np.exp(theirs)
    with np.errstate(invalid="ignore"):
        # What the reference rules out adds nothing, whatever the candidate thinks of it.
        terms = np.where(probability > 0, probability * (theirs - mine), 0.0)
    return {
        "kl": np.maximum(terms.sum(axis=1), 0.0),
        "nll": -np.take_along_axis(mine, said, 1)[:, 0],
        "reference_nll": -np.take_along_axis(theirs, said, 1)[:, 0],
        "agrees": (mine.argmax(axis=1) == theirs.argmax(axis=1)).astype(np.float64),
    }


def embedding_error(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float]:
    """Mean cosine of embeddings to their originals, and the norm of the difference of all over that of the originals.

    Args:
        mine: ``[embeddings, width]``.
        theirs: The same of the original.
    """
    import numpy as np

    one, other = mine.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (one * other).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return float(cosine.mean()), float(np.linalg.norm(one - other) / max(np.linalg.norm(other), np.finfo(float).tiny))


def _divergence(found: Sequence[_Compared], confidence: float) -> DivergenceRecord:
    import numpy as np

    names = found[0].scores
    values = {name: np.concatenate([each.scores[name] for each in found]) for name in names}
    clusters = np.repeat(np.arange(len(found)), [len(each.scores["kl"]) for each in found])
    return divergence(TokenScores(values, clusters), confidence)


def _mean(values: Sequence[float], confidence: float) -> Estimate:
    import numpy as np

    return clustered_mean(np.asarray(values), np.ones(len(values)), confidence)


def _looked(how: Looking, mine: Sequence[_Said], theirs: Sequence[_Said]) -> Looked:
    import numpy as np

    texts: list[str | None] = [said.text for said in theirs] if theirs else [None] * len(mine)
    answers = tuple(
        PictureAnswer(picture=each.name, question=each.question, text=said.text, reference=text)
        for each, said, text in zip(how.questions.questions, mine, texts, strict=True)
    )
    loops, tolerated = (sum(is_loop(said.answer.token_ids.tolist()) for said in each) for each in (mine, theirs))
    finite = not any(np.isnan(said.answer.logits).any() for said in mine)
    check = Check(
        name="answers_about_pictures",
        passed=finite and loops <= tolerated,
        value=f"{loops} of {len(mine)} loop" if finite else "NaN",
        required="no answer ends in a loop, and every logit is a number",
        detail=f"reference: {tolerated} of {len(theirs)}" if theirs else "",
    )
    record = PictureRecord(
        dataset=how.questions.name,
        sha256=how.questions.sha256,
        num_questions=len(answers),
        num_scored_tokens=0,
        answers=answers,
    )
    return Looked(record, (check,))
