"""One or two models over all windows: alone, side by side, or against scores of the reference that are stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.protocols import Windows
from llmcompress.errors import ModelError, WriteError
from llmcompress.evaluation.graph import REFERENCE_IDS, Kind, add_scores, vocabulary_size
from llmcompress.evaluation.logits_cache import KeptLogits
from llmcompress.evaluation.score_cache import StoredScores
from llmcompress.evaluation.scoring import Batch, Call, batches, calls, score, score_pair
from llmcompress.evaluation.statistics import TokenScores, exact_kl, token_scores
from llmcompress.graph.device import compile_model, effective_properties
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.system.cache import cache_dir, content_key
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_SCORES, cpu_name, installed_versions
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import openvino as ov
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

MASS = 0.99
"""Of the reference's probability, to be captured on average by its K likeliest tokens."""
SAMPLE_TOKENS = 256
SMALLEST_K = 64
ROUNDING = 1e-6


class Text(NamedTuple):
    """What is scored and how it is fed."""

    windows: Windows
    chunk: int
    device: str


@dataclass
class Anew:
    """What was not stored and had to be scored."""

    numbers: set[int] = field(default_factory=set)
    """Of windows."""
    num_tokens: int = 0
    duration_s: float = 0.0

    def tokens_per_s(self) -> float | None:
        """Scored tokens a second, compiling aside; None where nothing was scored."""
        return self.num_tokens / self.duration_s if self.num_tokens else None


class Scored(NamedTuple):
    """Scores of all tokens and how they came about."""

    scores: TokenScores
    properties: dict[str, str]
    """Effective properties of the candidate."""
    reference_properties: dict[str, str]
    num_resumed: int
    """Windows that were not scored anew."""
    tokens_per_s: float | None
    stores: tuple[StoredScores, ...]
    """To be forgotten when the evaluation is done."""
    top_k: int | None = None
    captured_mass: float | None = None


def score_alone(loaded: LoadedModel, properties: dict[str, str], text: Text, progress: Reporter) -> Scored:
    """Negative log-likelihoods of one model."""
    compiled, effective = _compiled(loaded, "nll", properties, text)
    store = StoredScores("evaluations", _key("alone", text, [(loaded, effective)]))
    made = _batches(loaded, text)

    def run(todo: Sequence[Batch]) -> Iterator[tuple[Batch, list[Arrays]]]:
        return score(compiled, text.windows.windows, todo, text.chunk)

    by_window, anew = _all(made, store, run, text, "score", progress)
    return _scored(by_window, anew, effective, {}, text, store)


def score_side_by_side(
    candidate: LoadedModel,
    reference: LoadedModel,
    properties: dict[str, str],
    reference_properties: dict[str, str],
    text: Text,
    progress: Reporter,
    *,
    stage: str = "score",
    keep_in: Path | None = None,
) -> Scored:
    """Exact divergence over the full vocabulary: both models are compiled at once.

    With ``keep_in`` the reference's logits are kept there, and taken from there when the next candidate comes.
    """
    check_vocabularies(candidate, reference)
    made = _batches(candidate, text)
    kept = None if keep_in is None else _kept_logits(keep_in, reference, reference_properties, text, made)
    second, effective = _compiled(candidate, "divergence", properties, text)
    known = kept.properties() if kept else None
    compiled = None
    if known is None:
        compiled, known = _compiled(reference, "logits", reference_properties, text)
        if kept is not None:
            kept.keep_properties(known)
    reference_effective = known

    def first() -> ov.CompiledModel:
        return compiled or _compiled(reference, "logits", reference_properties, text)[0]

    store = StoredScores("evaluations", _key("pair", text, [(candidate, effective), (reference, reference_effective)]))

    def run(todo: Sequence[Batch]) -> Iterator[tuple[Batch, list[Arrays]]]:
        for batch, scores in score_pair(second, first, text.windows.windows, todo, text.chunk, kept):
            yield batch, [_with_kl(window) for window in scores]

    by_window, anew = _all(made, store, run, text, stage, progress)
    return _scored(by_window, anew, effective, reference_effective, text, store)


def score_against_stored(
    candidate: LoadedModel,
    reference: LoadedModel,
    properties: dict[str, str],
    reference_properties: dict[str, str],
    text: Text,
    progress: Reporter,
) -> Scored:
    """A lower bound of the divergence, from the reference's K likeliest tokens and the mass of the rest.

    The reference runs first and alone, and only for what the cache does not hold yet; then the candidate. By the
    log-sum inequality, putting tokens together to one can only lower a KL divergence.
    """
    check_vocabularies(candidate, reference)
    made = _batches(reference, text)
    reference_store, top_k, reference_effective, mass = _reference_scores(
        reference, reference_properties, text, made, progress
    )
    compiled, effective = _compiled(candidate, "at_top_k", properties, text)
    store = StoredScores(
        "evaluations",
        _key(f"top {top_k}", text, [(candidate, effective), (reference, reference_effective)]),
    )

    def run(todo: Sequence[Batch]) -> Iterator[tuple[Batch, list[Arrays]]]:
        stored: dict[tuple[int, ...], list[Arrays]] = {}

        def reference_ids(batch: Batch, call: Call) -> dict[str, ov.Tensor]:
            if batch.numbers not in stored:
                stored[batch.numbers] = _stored(reference_store, batch)
            return {REFERENCE_IDS: _ids_of_call(batch, call, text, stored[batch.numbers], top_k)}

        for batch, scores in score(compiled, text.windows.windows, todo, text.chunk, reference_ids):
            at_reference = stored.pop(batch.numbers)
            yield batch, [_bound(mine, theirs) for mine, theirs in zip(scores, at_reference, strict=True)]

    by_window, anew = _all(made, store, run, text, "score", progress)
    scored = _scored(by_window, anew, effective, reference_effective, text, store)
    return scored._replace(top_k=top_k, captured_mass=mass)


def _kept_logits(
    keep_in: Path, reference: LoadedModel, properties: dict[str, str], text: Text, made: Sequence[Batch]
) -> KeptLogits:
    size = vocabulary_size(reference.model) * 4
    rows = sum(len(batch.numbers) * (call.end - call.first) for batch in made for call in calls(batch, text.chunk))
    return KeptLogits(keep_in / _key("logits", text, [(reference, properties)]), rows * size)


def check_vocabularies(candidate: LoadedModel, reference: LoadedModel) -> None:
    """Refuse models whose logits are of different tokens.

    Raises:
        ModelError: The numbers of logits differ.
    """
    sizes = vocabulary_size(candidate.model), vocabulary_size(reference.model)
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the candidate's vocabulary has {sizes[0]} tokens, the reference's {sizes[1]}",
            where="--reference",
            hint="give the model that the candidate was made from",
        )


def _reference_scores(
    reference: LoadedModel, properties: dict[str, str], text: Text, made: Sequence[Batch], progress: Reporter
) -> tuple[StoredScores, int, dict[str, str], float]:
    import numpy as np

    compiled, effective = _compiled(reference, "logits", properties, text)
    key = _key("reference", text, [(reference, effective)])
    known = StoredScores("reference-scores", key).get(made[0].numbers)
    top_k = known[0]["ids"].shape[1] if known else _choose_k(compiled, text, made[0])
    # It is large: never two of it at once.
    del compiled
    vocabulary = vocabulary_size(reference.model)
    while True:
        store = StoredScores("reference-scores", key)

        def run(todo: Sequence[Batch], top_k: int = top_k) -> Iterator[tuple[Batch, list[Arrays]]]:
            if todo:
                compiled, _ = _compiled(reference, "top_k", properties, text, top_k=top_k)
                yield from score(compiled, text.windows.windows, todo, text.chunk)

        masses: list[float] = []
        num_tokens = 0
        for _, scores in _each(made, store, run, text, "score the reference", progress, keep=True):
            for window in scores:
                masses.append(float(np.exp(window["log_probabilities"].astype(np.float64)).sum()))
                num_tokens += len(window["nll"])
        mass = sum(masses) / num_tokens
        if mass >= MASS or top_k >= vocabulary:
            return store, top_k, effective, mass
        top_k = min(2 * top_k, vocabulary)
        store.forget()


def _choose_k(compiled: ov.CompiledModel, text: Text, batch: Batch) -> int:
    """The smallest power of two whose tokens hold enough of the mass on the first tokens of the text."""
    import numpy as np

    number = batch.numbers[0]
    window = text.windows.windows[number]
    only = Batch((number,), window.token_ids[None], window.first_scored)
    _, scores = next(score(compiled, text.windows.windows, [only], text.chunk))
    logits = scores[0]["logits"][:SAMPLE_TOKENS].astype(np.float64)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    mass = np.cumsum(np.sort(probabilities, axis=1)[:, ::-1], axis=1).mean(axis=0)
    top_k = SMALLEST_K
    while top_k < len(mass) and mass[top_k - 1] < MASS:
        top_k *= 2
    return min(top_k, len(mass))


def _scored(
    by_window: Sequence[Arrays],
    anew: Anew,
    properties: dict[str, str],
    reference_properties: dict[str, str],
    text: Text,
    store: StoredScores,
) -> Scored:
    return Scored(
        scores=token_scores(text.windows, by_window),
        properties=properties,
        reference_properties=reference_properties,
        num_resumed=len(by_window) - len(anew.numbers),
        tokens_per_s=anew.tokens_per_s(),
        stores=(store,),
    )


def _compiled(
    loaded: LoadedModel, kind: Kind, properties: dict[str, str], text: Text, *, top_k: int = 0
) -> tuple[ov.CompiledModel, dict[str, str]]:
    model = loaded.clone().model
    add_scores(model, kind, top_k=top_k)
    compiled = compile_model(model, text.device, properties)
    return compiled, effective_properties(compiled)


def _batches(loaded: LoadedModel, text: Text) -> list[Batch]:
    return batches(text.windows.windows, text.chunk, vocabulary_size(loaded.model))


def _key(kind: str, text: Text, models: Iterable[tuple[LoadedModel, Mapping[str, str]]]) -> str:
    """What the scores depend on: models by content, their properties, the tokens, how they are fed, versions, CPU."""
    return content_key(
        {
            "kind": kind,
            "models": [
                [[(file.path, file.sha256) for file in loaded.provenance.files], dict(properties)]
                for loaded, properties in models
            ],
            "windows": text.windows.record.token_ids_sha256,
            "chunk": text.chunk,
            "device": text.device,
            "versions": installed_versions(PACKAGES_THAT_DECIDE_SCORES),
            "cpu": cpu_name(),
        }
    )


def _all(
    made: Sequence[Batch],
    store: StoredScores,
    run: Callable[[Sequence[Batch]], Iterator[tuple[Batch, list[Arrays]]]],
    text: Text,
    stage: str,
    progress: Reporter,
) -> tuple[list[Arrays], Anew]:
    """The arrays of every window, in the order of the text."""
    found: dict[int, Arrays] = {}
    anew = Anew()
    for batch, scores in _each(made, store, run, text, stage, progress, anew=anew):
        found.update(zip(batch.numbers, scores, strict=True))
    return [found[number] for number in range(len(found))], anew


def _each(
    made: Sequence[Batch],
    store: StoredScores,
    run: Callable[[Sequence[Batch]], Iterator[tuple[Batch, list[Arrays]]]],
    text: Text,
    stage: str,
    progress: Reporter,
    *,
    anew: Anew | None = None,
    keep: bool = False,
) -> Iterator[tuple[Batch, list[Arrays]]]:
    """Every batch with its scores: the stored ones first, then the others, which are stored."""
    total, done = text.windows.record.num_scored_tokens, 0
    progress(Progress(stage, 0, total, "tokens"))
    todo = []
    for batch in made:
        scores = store.get(batch.numbers)
        if scores is None:
            todo.append(batch)
            continue
        done += sum(len(window["nll"]) for window in scores)
        progress(Progress(stage, done, total, "tokens"))
        yield batch, scores
    started = time.perf_counter()
    for batch, scores in run(todo):
        if not store.add(batch.numbers, scores) and keep:
            raise _no_cache()
        num_tokens = sum(len(window["nll"]) for window in scores)
        if anew is not None:
            anew.numbers.update(batch.numbers)
            anew.num_tokens += num_tokens
            anew.duration_s = time.perf_counter() - started
        done += num_tokens
        progress(Progress(stage, done, total, "tokens"))
        yield batch, scores


def _stored(store: StoredScores, batch: Batch) -> list[Arrays]:
    scores = store.get(batch.numbers)
    if scores is None:
        raise _no_cache()
    return scores


def _no_cache() -> WriteError:
    return WriteError(
        "the reference's scores cannot be kept in the cache",
        where=str(cache_dir()),
        hint="free disk space, set LLMCOMPRESS_CACHE to another disk, or take --reference-scores exact",
    )


def _ids_of_call(batch: Batch, call: Call, text: Text, stored: Sequence[Arrays], top_k: int) -> ov.Tensor:
    """The reference's tokens for each output row of a call; rows that are not scored get token 0."""
    import numpy as np
    import openvino as ov

    ids = np.zeros((len(batch.numbers), call.end - call.first, top_k), dtype=np.int32)
    for row, number in enumerate(batch.numbers):
        # Position of the first stored row, counted from the call's first output row.
        offset = text.windows.windows[number].first_scored - 1 - call.first
        known = stored[row]["ids"]
        begin, end = max(0, offset), min(ids.shape[1], offset + len(known))
        if begin < end:
            ids[row, begin:end] = known[begin - offset : end - offset]
    return ov.Tensor(ids)


def _with_kl(scores: Arrays) -> Arrays:
    kept = {name: scores[name] for name in ("nll", "reference_nll", "agrees")}
    return {**kept, "kl": exact_kl(scores)}


def _bound(mine: Arrays, theirs: Arrays) -> Arrays:
    import numpy as np

    reference = theirs["log_probabilities"].astype(np.float64)
    candidate = mine["log_probabilities"].astype(np.float64)
    probabilities = np.exp(reference)
    # Below this the mass of the rest is rounding; no value above it makes the bound larger than it is.
    rest = np.clip(1.0 - probabilities.sum(axis=1), ROUNDING, 1.0)
    candidate_rest = np.clip(1.0 - np.exp(candidate).sum(axis=1), ROUNDING, 1.0)
    tail = rest * (np.log(rest) - np.log(candidate_rest))
    kl = (probabilities * (reference - candidate)).sum(axis=1) + tail
    return {
        "nll": mine["nll"],
        "reference_nll": theirs["nll"],
        "agrees": (mine["top_id"] == theirs["ids"][:, 0]).astype(np.float32),
        "kl": np.maximum(kl, 0.0),
    }
