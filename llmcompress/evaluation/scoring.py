"""Windows through a compiled scorer: batched, in calls of at most so many tokens, two batches under way at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.protocols import EvaluationWindows
from llmcompress.errors import UsageError
from llmcompress.evaluation.graph import FIRST, REFERENCE_LOGITS, ROWS, TARGETS
from llmcompress.evaluation.logits_cache import LogitsCache
from llmcompress.graph.decoding import Decoder
from llmcompress.graph.recurrence import find_recurrence
from llmcompress.loaders.loaded_model import LoadedModel

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    """Of one window or one call, by name."""

_log = logging.getLogger(__name__)

MAX_LOGITS_BYTES = 128 << 20
MAX_CALL_TOKENS = 1024
MAX_SEQUENCES = 32
"""In one batch: each has a cache or a state of its own."""


class Feed(NamedTuple):
    """What is scored, and how it is fed."""

    windows: EvaluationWindows
    chunk: int
    """Tokens per call."""


def recurrent_chunk(asked: int | None, models: Sequence[LoadedModel]) -> int | None:
    """Tokens per call where the graph of one of the models reads no text in pieces: 1; None where all do.

    Args:
        asked: Tokens per call that were asked for.
        models: All that read the text.

    Raises:
        UsageError: More were asked for.
    """
    names = [model.source.name for model in models if find_recurrence(model.model) is not None]
    if not names:
        return None
    if asked is not None and asked > 1:
        raise UsageError(
            f"`chunk={asked}`: with its recurrent layers the graph is exact token by token alone",
            where=names[0],
            hint="leave `chunk` out",
        )
    _log.warning(
        "%s: its recurrent layers are exact token by token alone: windows are fed so; a prompt in one call, as Optimum "
        "feeds it, gives other logits",
        names[0],
    )
    return 1


class Batch(NamedTuple):
    """Windows that go through the model together."""

    numbers: tuple[int, ...]
    """Of the windows, in the order of the text."""
    token_ids: NDArray[np.int64]
    """``[batch, tokens]``, padded on the right, where a causal model cannot see it."""
    first_scored: int
    """The earliest of its windows."""
    called: Callable[[Call], None] = lambda call: None
    """Told of each call when it is done."""


class Call(NamedTuple):
    """One call of a batch: positions ``start`` up to ``end``, outputs from position ``first`` on."""

    start: int
    end: int
    first: int


def batches(feed: Feed, vocabulary_size: int) -> list[Batch]:
    """Put windows of similar length together, as many as keep a call's logits and tokens within bounds."""
    import numpy as np

    windows = feed.windows.windows
    order = sorted(range(len(windows)), key=lambda n: (-len(windows[n].token_ids), windows[n].first_scored, n))
    made: list[Batch] = []
    while order:
        longest = len(windows[order[0]].token_ids)
        tokens = min(feed.chunk, longest - 1)
        scored = min(tokens, longest - windows[order[0]].first_scored)
        size = min(MAX_SEQUENCES, MAX_CALL_TOKENS // tokens, MAX_LOGITS_BYTES // (4 * vocabulary_size * scored))
        taken, order = order[: max(1, size)], order[max(1, size) :]
        token_ids = np.zeros((len(taken), longest), dtype=np.int64)
        for row, number in enumerate(taken):
            token_ids[row, : len(windows[number].token_ids)] = windows[number].token_ids
        made.append(Batch(tuple(taken), token_ids, min(windows[number].first_scored for number in taken)))
    return made


def calls(batch: Batch, chunk: int) -> Iterator[Call]:
    """The calls of a batch; the last token is a target only."""
    num_positions = batch.token_ids.shape[1] - 1
    for start in range(0, num_positions, chunk):
        end = min(start + chunk, num_positions)
        # A call without a scored position still has one output row, which is not kept.
        yield Call(start, end, min(max(batch.first_scored - 1, start), end - 1))


def num_scored(feed: Feed, batch: Batch, call: Call) -> int:
    """How many tokens a call scores, over all windows of its batch."""
    windows = [feed.windows.windows[number] for number in batch.numbers]
    spans = [(max(call.start, each.first_scored - 1), min(call.end, len(each.token_ids) - 1)) for each in windows]
    return sum(max(0, end - begin) for begin, end in spans)


class Scorer:
    """One compiled model, stateful or paged, and one request with a past of its own."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._outputs = [next(iter(port.get_names())) for port in compiled.outputs]
        self._decoder = Decoder(compiled)
        self._num_sequences = 0
        self._given: dict[str, ov.Tensor] = {}

    def begin(self, batch: Batch) -> None:
        """Forget the past."""
        self._num_sequences = len(batch.numbers)
        self._decoder.begin(*batch.token_ids.shape)

    def start(self, batch: Batch, call: Call, **more: ov.Tensor) -> None:
        """Start a call without waiting for it."""
        import numpy as np
        import openvino as ov

        # A paged graph reads them where they lie, for as long as the call runs.
        self._given = more
        token_ids = batch.token_ids[:, call.start : call.end]
        targets = batch.token_ids[:, call.start + 1 : call.end + 1]
        values = self._decoder.inputs(token_ids, call.start)
        if self._decoder.is_paged:
            rows = np.arange(token_ids.size, dtype=np.int64).reshape(token_ids.shape)
            values |= {TARGETS: targets.reshape(-1, 1), ROWS: rows[:, call.first - call.start :].reshape(-1)}
            more = {name: _in_rows(tensor) for name, tensor in more.items()}
        else:
            values |= {TARGETS: targets, FIRST: np.array([call.first - call.start], dtype=np.int64)}
        request = self._decoder.request
        for name, value in values.items():
            if name in self._decoder.input_names:
                request.set_tensor(name, ov.Tensor(np.asarray(value, order="C")))
        for name, tensor in more.items():
            request.set_tensor(name, tensor)
        request.start_async()

    def finish(self) -> Arrays:
        """Wait for the call; copies of its outputs, ``[batch, tokens, ...]``."""
        request = self._decoder.request
        request.wait()
        found = {name: request.get_tensor(name).data.copy() for name in self._outputs}
        if not self._decoder.is_paged:
            return found
        return {name: rows.reshape(self._num_sequences, -1, *rows.shape[2:]) for name, rows in found.items()}

    def finish_in_place(self, name: str) -> ov.Tensor:
        """Wait for the call of a stateful model; an output where it lies, good until the next call."""
        self._decoder.request.wait()
        return self._decoder.request.get_tensor(name)


def _in_rows(tensor: ov.Tensor) -> ov.Tensor:
    """``[batch, tokens, ...]`` as the ``[batch * tokens, 1, ...]`` of a paged graph, in the same memory."""
    import openvino as ov

    values = tensor.data
    return ov.Tensor(values.reshape(-1, 1, *values.shape[2:]), shared_memory=True)


def score(
    compiled: ov.CompiledModel,
    feed: Feed,
    made: Iterable[Batch],
    more: Callable[[Batch, Call], dict[str, ov.Tensor]] | None = None,
) -> Iterator[tuple[Batch, list[Arrays]]]:
    """Score batches with one model, two under way at once; yields each with its windows' arrays.

    Args:
        more: Further inputs of a call.
    """
    scorers = [Scorer(compiled), Scorer(compiled)]
    waiting = iter(made)
    running: list[Iterator[tuple[Batch, list[Arrays]] | None]] = []
    while True:
        while scorers and (batch := next(waiting, None)) is not None:
            running.append(_alone(scorers.pop(), feed, batch, more, scorers))
        if not running:
            return
        for steps in list(running):
            done = next(steps)
            if done is not None:
                running.remove(steps)
                # Runs to its end, which gives its scorer back.
                next(steps, None)
                yield done


def score_against(
    reference: Callable[[], ov.CompiledModel],
    candidates: Sequence[ov.CompiledModel],
    feed: Feed,
    made: Iterable[Batch],
    kept: LogitsCache | None = None,
) -> Iterator[tuple[Batch, list[list[Arrays]]]]:
    """Score batches with several models at once: the reference's logits go straight into each candidate's graph.

    Yields each batch with the arrays of its windows, a list for each candidate.

    Args:
        reference: Gives it, stateful; not called while all its logits are kept.
        candidates: Compiled, with the reference's logits as an input.
        feed: All of the text.
        made: What is to be scored.
        kept: Where the reference's logits are looked for first, and kept for the next candidate.
    """
    import openvino as ov

    first, others = None, [Scorer(candidate) for candidate in candidates]
    for batch in made:
        planned = list(calls(batch, feed.chunk))
        known = kept.get(batch.numbers, len(planned)) if kept else None
        if known is None:
            first = first or Scorer(reference())
            first.begin(batch)
        parts: list[list[tuple[Call, Arrays]]] = [[] for _ in others]
        for scorer in others:
            scorer.begin(batch)
        for number, call in enumerate(planned):
            if known is None:
                assert first is not None
                first.start(batch, call)
                logits = first.finish_in_place("logits")
                if kept is not None:
                    kept.add(batch.numbers, number, logits.data)
            else:
                assert kept is not None
                logits = ov.Tensor(kept.opened(known[number]))
            for scorer, found in zip(others, parts, strict=True):
                scorer.start(batch, call, **{REFERENCE_LOGITS: logits})
                found.append((call, scorer.finish()))
            batch.called(call)
        yield batch, [_by_window(batch, feed, found) for found in parts]


def _alone(
    scorer: Scorer,
    feed: Feed,
    batch: Batch,
    more: Callable[[Batch, Call], dict[str, ov.Tensor]] | None,
    free: list[Scorer],
) -> Iterator[tuple[Batch, list[Arrays]] | None]:
    scorer.begin(batch)
    parts = []
    for call in calls(batch, feed.chunk):
        scorer.start(batch, call, **(more(batch, call) if more else {}))
        yield None
        parts.append((call, scorer.finish()))
        batch.called(call)
    free.append(scorer)
    yield batch, _by_window(batch, feed, parts)


def _by_window(batch: Batch, feed: Feed, parts: Sequence[tuple[Call, Arrays]]) -> list[Arrays]:
    """Outputs at the scored positions of each window of a batch, each array ``[scored tokens, ...]``."""
    import numpy as np

    found: list[Arrays] = []
    kept = [(call, outputs) for call, outputs in parts if call.end >= batch.first_scored]
    begin = kept[0][0].first
    joined = {name: np.concatenate([outputs[name] for _, outputs in kept], axis=1) for name in kept[0][1]}
    for row, number in enumerate(batch.numbers):
        window = feed.windows.windows[number]
        scored = slice(window.first_scored - 1 - begin, len(window.token_ids) - 1 - begin)
        found.append({name: values[row, scored] for name, values in joined.items()})
    return found
