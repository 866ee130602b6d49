"""Windows through a compiled scorer: batched, in calls of at most so many tokens, two batches under way at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.protocols import EvaluationWindows
from llmcompress.evaluation.graph import FIRST, REFERENCE_LOGITS, TARGETS
from llmcompress.evaluation.logits_cache import LogitsCache
from llmcompress.graph.device import decoder_inputs, input_names

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    """Of one window or one call, by name."""

MAX_LOGITS_BYTES = 128 << 20
MAX_CALL_TOKENS = 1024


class Feed(NamedTuple):
    """What is scored, and how it is fed."""

    windows: EvaluationWindows
    chunk: int
    """Tokens per call."""


class Batch(NamedTuple):
    """Windows that go through the model together."""

    numbers: tuple[int, ...]
    """Of the windows, in the order of the text."""
    token_ids: NDArray[np.int64]
    """``[batch, tokens]``, padded on the right, where a causal model cannot see it."""
    first_scored: int
    """The earliest of its windows."""


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
        size = min(MAX_CALL_TOKENS // tokens, MAX_LOGITS_BYTES // (4 * vocabulary_size * scored))
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


class Scorer:
    """One compiled model and one request, with a state of its own."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._names = input_names(compiled)
        self._outputs = [next(iter(port.get_names())) for port in compiled.outputs]
        self._request = compiled.create_infer_request()

    def begin(self) -> None:
        """Forget the past."""
        self._request.reset_state()

    def start(self, batch: Batch, call: Call, **more: ov.Tensor) -> None:
        """Start a call without waiting for it."""
        import numpy as np
        import openvino as ov

        values: Arrays = {
            **decoder_inputs(batch.token_ids[:, call.start : call.end], call.start, self._names),
            TARGETS: batch.token_ids[:, call.start + 1 : call.end + 1],
            FIRST: np.array([call.first - call.start], dtype=np.int64),
        }
        for name, value in values.items():
            if name in self._names:
                self._request.set_tensor(name, ov.Tensor(np.ascontiguousarray(value)))
        for name, tensor in more.items():
            self._request.set_tensor(name, tensor)
        self._request.start_async()

    def finish(self) -> Arrays:
        """Wait for the call; copies of its outputs."""
        self._request.wait()
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}

    def finish_in_place(self, name: str) -> ov.Tensor:
        """Wait for the call; an output where it lies, good until the next call."""
        self._request.wait()
        return self._request.get_tensor(name)


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


def score_pair(
    candidate: ov.CompiledModel,
    reference: Callable[[], ov.CompiledModel],
    feed: Feed,
    made: Iterable[Batch],
    kept: LogitsCache | None = None,
) -> Iterator[tuple[Batch, list[Arrays]]]:
    """Score batches with two models side by side: the reference's logits go straight into the candidate's graph.

    Args:
        candidate: Compiled, with the reference's logits as an input.
        reference: Gives the other one; not called while all its logits are kept.
        feed: All of the text.
        made: What is to be scored.
        kept: Where the reference's logits are looked for first, and kept for the next candidate.
    """
    first, second = None, Scorer(candidate)
    for batch in made:
        planned = list(calls(batch, feed.chunk))
        known = kept.get(batch.numbers, len(planned)) if kept else None
        second.begin()
        if known is None:
            first = first or Scorer(reference())
            first.begin()
        parts = []
        for number, call in enumerate(planned):
            if known is None:
                assert first is not None
                first.start(batch, call)
                logits = first.finish_in_place("logits")
                if kept is not None:
                    kept.add(batch.numbers, number, logits.data)
            else:
                logits = _tensor(known[number])
            second.start(batch, call, **{REFERENCE_LOGITS: logits})
            parts.append((call, second.finish()))
        yield batch, _by_window(batch, feed, parts)


def _tensor(values: NDArray[Any]) -> ov.Tensor:
    import numpy as np
    import openvino as ov

    return ov.Tensor(np.array(values))


def _alone(
    scorer: Scorer,
    feed: Feed,
    batch: Batch,
    more: Callable[[Batch, Call], dict[str, ov.Tensor]] | None,
    free: list[Scorer],
) -> Iterator[tuple[Batch, list[Arrays]] | None]:
    scorer.begin()
    parts = []
    for call in calls(batch, feed.chunk):
        scorer.start(batch, call, **(more(batch, call) if more else {}))
        yield None
        parts.append((call, scorer.finish()))
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
