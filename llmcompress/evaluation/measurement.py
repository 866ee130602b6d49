"""One or two models over all windows: alone, or side by side with the full vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import ModelError, WriteError
from llmcompress.evaluation.graph import Kind, add_scores, vocabulary_size
from llmcompress.evaluation.logits_cache import LogitsCache
from llmcompress.evaluation.score_cache import ScoreCache, ScoringPass, all_scores
from llmcompress.evaluation.scoring import Batch, Feed, batches, calls, score, score_against
from llmcompress.evaluation.statistics import TokenScores, exact_kl, token_scores
from llmcompress.graph.device import compile_model, effective_properties
from llmcompress.graph.paged import to_paged
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.spec.evaluation import Backend
from llmcompress.system.cache import content_key
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_SCORES, cpu_name, installed_versions
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.evaluation.scoring import Arrays


class ModelOnDevice(NamedTuple):
    """A model, and the device, the properties and the form of its graph that it runs with."""

    loaded: LoadedModel
    device: str
    properties: dict[str, str]
    backend: Backend = "stateful"

    def compiled(self) -> ov.CompiledModel:
        """As it is; the loaded graph is not changed by it."""
        return compile_model(self._graph(), self.device, self.properties)

    def scorer(self, kind: Kind, *, top_k: int = 0) -> tuple[ov.CompiledModel, dict[str, str]]:
        """Compiled with the reductions of ``add_scores``, and its effective properties."""
        model = self._graph()
        add_scores(model, kind, top_k=top_k)
        compiled = compile_model(model, self.device, self.properties)
        return compiled, effective_properties(compiled)

    def _graph(self) -> ov.Model:
        model = self.loaded.clone().model
        if self.backend == "paged":
            to_paged(model)
        return model


class Scored(NamedTuple):
    """Scores of all tokens and how they came about."""

    scores: TokenScores
    properties: dict[str, str]
    """Effective properties of the candidate."""
    reference_properties: dict[str, str]
    num_resumed: int
    """Windows whose scores were in the cache."""
    tokens_per_s: float | None
    cache: ScoreCache
    """To be forgotten when the evaluation is done."""
    top_k: int | None = None
    captured_mass: float | None = None
    logits_error: float = 0.0
    """Of each of the reference's logits, in nats, at most."""


def score_alone(candidate: ModelOnDevice, feed: Feed, progress: Reporter, *, stage: str = "score") -> Scored:
    """Negative log-likelihoods of one model."""
    compiled, effective = candidate.scorer("nll")
    cache = ScoreCache("evaluations", scores_key("alone", feed, candidate._replace(properties=effective)))

    def run(todo: Sequence[Batch]) -> Iterator[tuple[Batch, list[Arrays]]]:
        return score(compiled, feed, todo)

    made = batches(feed, vocabulary_size(candidate.loaded.model))
    (found,) = carry_out(ScoringPass(stage, feed, made, cache, run), [(effective, {})], progress)
    return found


def score_side_by_side(
    candidate: ModelOnDevice,
    reference: ModelOnDevice,
    feed: Feed,
    progress: Reporter,
    *,
    stage: str = "score",
    logits_dir: Path | None = None,
) -> Scored:
    """Exact divergence over the full vocabulary: both models are compiled at once.

    With ``logits_dir`` the reference's logits are kept there, and taken from there when the next candidate comes.
    """
    (found,) = score_at_once((candidate,), reference, feed, progress, stage=stage, logits_dir=logits_dir)
    return found


def score_at_once(
    candidates: Sequence[ModelOnDevice],
    reference: ModelOnDevice,
    feed: Feed,
    progress: Reporter,
    *,
    stage: str = "score",
    logits_dir: Path | None = None,
) -> tuple[Scored, ...]:
    """As ``score_side_by_side``, with several forms of one model, for which the reference runs once."""
    kept = None if logits_dir is None else kept_logits(logits_dir, reference, feed)
    return score_against_kept(candidates, reference, feed, progress, kept, stage=stage)


def score_against_kept(
    candidates: Sequence[ModelOnDevice],
    reference: ModelOnDevice,
    feed: Feed,
    progress: Reporter,
    kept: LogitsCache | None,
    *,
    stage: str = "score",
) -> tuple[Scored, ...]:
    """As ``score_at_once``; the reference is compiled only where something is not kept of it."""
    made = batches(feed, vocabulary_size(reference.loaded.model))
    seconds = [candidate.scorer("divergence") for candidate in candidates]
    known = kept.properties() if kept else None
    compiled = None
    if known is None:
        compiled, known = reference.scorer("logits")
        if kept is not None:
            kept.keep_properties(known)

    def first() -> ov.CompiledModel:
        if kept is not None and kept.is_rounded:
            raise WriteError(
                "the reference's logits were removed while models were measured against them",
                where=str(kept.directory),
                hint="run it again, with no other evaluation of the same models and text beside it",
            )
        return compiled or reference.scorer("logits")[0]

    def run(todo: Sequence[Batch]) -> Iterator[tuple[Batch, list[Arrays]]]:
        for batch, found in score_against(first, [second for second, _ in seconds], feed, todo, kept):
            yield batch, [_joined([_with_kl(scores) for scores in window]) for window in zip(*found, strict=True)]

    as_run = [
        candidate._replace(properties=effective) for candidate, (_, effective) in zip(candidates, seconds, strict=True)
    ]
    kind = "rounded pair" if kept is not None and kept.is_rounded else "pair"
    cache = ScoreCache("evaluations", scores_key(kind, feed, *as_run, reference._replace(properties=known)))
    properties = [(effective, known) for _, effective in seconds]
    return carry_out(ScoringPass(stage, feed, made, cache, run), properties, progress)


def check_vocabularies(candidate: LoadedModel, reference: LoadedModel) -> None:
    """Refuse models whose logits are of different tokens.

    Raises:
        ModelError: The numbers of logits differ.
    """
    sizes = vocabulary_size(candidate.model), vocabulary_size(reference.model)
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the candidate's vocabulary has {sizes[0]} tokens, the reference's {sizes[1]}",
            where="`reference`",
            hint="give the model that the candidate was made from",
        )


def carry_out(
    scoring: ScoringPass, properties: Sequence[tuple[dict[str, str], dict[str, str]]], progress: Reporter
) -> tuple[Scored, ...]:
    """Score what the cache does not hold; the scores of each candidate.

    Args:
        properties: Effective properties of each candidate and of the reference.
    """
    by_window, new = all_scores(scoring, progress)
    return tuple(
        Scored(
            scores=token_scores(scoring.feed.windows, [_of(window, number) for window in by_window]),
            properties=mine,
            reference_properties=theirs,
            num_resumed=len(by_window) - new.num_windows,
            tokens_per_s=new.tokens_per_s(),
            cache=scoring.cache,
        )
        for number, (mine, theirs) in enumerate(properties)
    )


def scores_key(kind: str, feed: Feed, *models: ModelOnDevice) -> str:
    """What the scores depend on: models by content, their properties, the tokens, how they are fed, versions, CPU."""
    return content_key(
        {
            "kind": kind,
            "models": [
                [
                    [(file.path, file.sha256) for file in model.loaded.provenance.files],
                    model.properties,
                    model.backend,
                ]
                for model in models
            ],
            "windows": feed.windows.record.token_ids_sha256,
            "chunk": feed.chunk,
            "device": models[0].device,
            "versions": installed_versions(PACKAGES_THAT_DECIDE_SCORES),
            "cpu": cpu_name(),
        }
    )


def kept_logits(directory: Path, reference: ModelOnDevice, feed: Feed, *, rounded: bool = False) -> LogitsCache:
    """Where a reference's logits for a text are kept, in a directory of many."""
    size = vocabulary_size(reference.loaded.model)
    made = batches(feed, size)
    rows = sum(len(batch.numbers) * (call.end - call.first) for batch in made for call in calls(batch, feed.chunk))
    key = scores_key("rounded logits" if rounded else "logits", feed, reference)
    return LogitsCache(directory / key, rows * size, rounded=rounded)


def _with_kl(scores: Arrays) -> Arrays:
    kept = {name: scores[name] for name in ("nll", "reference_nll", "agrees")}
    return {**kept, "kl": exact_kl(scores)}


def _joined(found: Sequence[Arrays]) -> Arrays:
    """The scores of a window by several candidates; those after the first are named by their number."""
    return {
        name if number == 0 else f"{number}/{name}": values
        for number, scores in enumerate(found)
        for name, values in scores.items()
    }


def _of(joined: Arrays, number: int) -> Arrays:
    """What ``_joined`` holds of one candidate."""
    if number == 0:
        return {name: values for name, values in joined.items() if "/" not in name}
    start = f"{number}/"
    return {name.removeprefix(start): values for name, values in joined.items() if name.startswith(start)}
