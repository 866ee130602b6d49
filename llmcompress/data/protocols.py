"""The windowing protocols: which tokens are fed together, and which of them are scored.

``llama.cpp``: ``llama-perplexity`` (llama.cpp, tools/perplexity): disjoint windows, the second half scored, the first
token replaced by the beginning-of-text token where the model has one. ``sliding``: "Perplexity of fixed-length models"
in the documentation of transformers. ``rolling``: ``loglikelihood_rolling`` of lm-evaluation-harness, document by
document in disjoint windows.

Of conversations each token of the rendered text counts, whoever speaks, the template's own included. They follow one
another without anything between, and under ``rolling`` each is a document, before which no second beginning-of-text
token is put.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.data.conversations import Conversations
from llmcompress.data.documents import Texts, read_documents, texts_for
from llmcompress.data.tokens import TextEncoder, text_encoder
from llmcompress.errors import DataError, ModelError, UsageError
from llmcompress.loaders.source import Source
from llmcompress.report.evaluation import TextRecord
from llmcompress.spec import EvalSpec
from llmcompress.spec.evaluation import DEFAULT_SCORED_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Window(NamedTuple):
    """One piece of text that the model sees at once."""

    token_ids: NDArray[np.int64]
    first_scored: int
    """Tokens from this position on are scored, each from those before it."""
    cluster: int

    @property
    def num_scored(self) -> int:
        """How many tokens are scored."""
        return len(self.token_ids) - self.first_scored


class EvaluationWindows(NamedTuple):
    """All of them, and what is counted per cluster."""

    windows: tuple[Window, ...]
    record: TextRecord
    num_words: NDArray[np.float64] | None = None
    """Words per cluster under ``rolling``, separated by white space as lm-eval counts them."""
    num_bytes: NDArray[np.float64] | None = None

    def part(self, begin: int, end: int) -> EvaluationWindows:
        """The windows from ``begin`` up to ``end``, without the counts per cluster."""
        part = _with_record(self.windows[begin:end], self.record.dataset, self.record.num_documents)
        return part.noting(self.record.fallback)

    def noting(self, fallback: str | None) -> EvaluationWindows:
        """The same, with the reason why the bundled text was read in the record."""
        return self._replace(record=self.record.model_copy(update={"fallback": fallback}))


def evaluation_windows(documents: Texts, spec: EvalSpec, encoder: TextEncoder) -> EvaluationWindows:
    """Tokenise documents and cut them into windows as ``spec.protocol`` does.

    Under ``llama.cpp`` and ``sliding`` documents are joined by an empty line to one text, as the guide of
    transformers does. Under ``rolling``, ``num_windows`` takes the first documents that fit in so many windows, and a
    document is a cluster; the windows of a single one are, its words and bytes shared out by tokens. Words and bytes
    of conversations are not counted: a template's marks are neither. Without a number of windows at most
    ``DEFAULT_SCORED_TOKENS`` are scored: under ``rolling`` whole documents, of which only the first may be cut.

    Raises:
        DataError: The text is too short for one window, or a row holds no conversation that the template takes.
        UsageError: ``rolling`` without a token that could stand before a document.
        SecurityError: The chat template breaks out of its bounds.
    """
    made = _rolling(documents, spec, encoder) if spec.protocol == "rolling" else _of_one_text(documents, spec, encoder)
    if isinstance(documents, Conversations):
        documents.warn_of_losses()
    return made


def _of_one_text(documents: Texts, spec: EvalSpec, encoder: TextEncoder) -> EvaluationWindows:
    import numpy as np

    if isinstance(documents, Conversations):
        joined, num_documents = _joined_conversations(documents, spec, encoder)
    else:
        joined, num_documents = _joined(documents, spec, encoder)
    ids = np.array(joined, dtype=np.int64)
    windows = _llama_cpp(ids, spec.seq_len, encoder) if spec.protocol == "llama.cpp" else _sliding(ids, spec)
    if not windows:
        raise _too_short(len(ids), spec.seq_len, spec)
    made = _with_record(_first(windows, spec), _name(spec), num_documents)
    return made if spec.max_windows is not None else _of_whole(made, windows)


def scored_text(source: Source, spec: EvalSpec, *, offline: bool = False) -> TextRecord:
    """Say which tokens an evaluation would score, as a model's tokenizer reads them.

    Raises:
        DataError: The text cannot be used or is too short.
        HubError: The dataset cannot be had.
    """
    documents = read_documents(spec, offline=offline)
    windows = evaluation_windows(texts_for(documents, source), documents.spec, text_encoder(source))
    return windows.noting(documents.fallback).record


def require_same_tokens(candidate: EvaluationWindows, reference: EvaluationWindows) -> None:
    """Refuse a reference whose tokenizer reads the text differently.

    Raises:
        ModelError: The ids differ.
    """
    mine, theirs = candidate.record, reference.record
    if mine.token_ids_sha256 != theirs.token_ids_sha256:
        raise ModelError(
            "its tokenizer reads the text otherwise than the candidate's: "
            f"{theirs.num_scored_tokens} against {mine.num_scored_tokens} scored tokens, or other ids",
            where="`reference`",
            hint="give the model that the candidate was made from",
        )


def _name(spec: EvalSpec) -> str:
    """Of the dataset; reports hold no local path."""
    path = spec.dataset_path()
    return spec.dataset if path is None else path.name


def _first(windows: Sequence[Window], spec: EvalSpec) -> Sequence[Window]:
    """As many as were asked for; by default those that have no more scored tokens than the default, at least one."""
    if spec.num_windows == "all":
        return windows
    if spec.max_windows is not None:
        return windows[: spec.max_windows]
    sums = itertools.accumulate(window.num_scored for window in windows)
    return windows[: max(1, sum(each <= DEFAULT_SCORED_TOKENS for each in sums))]


def _of_whole(made: EvaluationWindows, windows: Sequence[Window]) -> EvaluationWindows:
    """Say how many windows the text has."""
    return made._replace(record=made.record.model_copy(update={"num_windows_in_text": len(windows)}))


def _with_record(windows: Sequence[Window], dataset: str, num_documents: int) -> EvaluationWindows:
    record = TextRecord(
        dataset=dataset,
        num_documents=num_documents,
        num_windows=len(windows),
        num_clusters=len({window.cluster for window in windows}),
        num_scored_tokens=sum(window.num_scored for window in windows),
        token_ids_sha256=windows_sha256(windows),
    )
    return EvaluationWindows(tuple(windows), record)


def _joined(documents: Sequence[str], spec: EvalSpec, encoder: TextEncoder) -> tuple[list[int], int]:
    """Ids of the joined documents; of many, where few windows are wanted, of no more than those need."""
    count = len(documents) if spec.max_windows is None else 1
    while True:
        ids = encoder.ids("\n\n".join(documents[:count]), special=True)
        # One window more than wanted: at the end of what was taken, tokens may join differently.
        if count >= len(documents) or len(ids) >= ((spec.max_windows or 0) + 1) * spec.seq_len:
            break
        count *= 4
    if spec.protocol == "llama.cpp" and encoder.frame.after:
        ids = ids[: -len(encoder.frame.after)]
    return ids, sum(bool(text.strip()) for text in documents) if len(documents) > 1 else len(documents)


def _joined_conversations(documents: Conversations, spec: EvalSpec, encoder: TextEncoder) -> tuple[list[int], int]:
    """Ids of conversations, as many as are needed, and their number."""
    ids: list[int] = []
    used = 0
    for text in documents:
        ids += encoder.ids(text, special=False)
        used += bool(text.strip())
        if spec.max_windows is not None and len(ids) >= (spec.max_windows + 1) * spec.seq_len:
            break
    return ids, used


def windows_sha256(windows: Sequence[Window]) -> str:
    """SHA-256 over length, first scored position and ids of every window, as little-endian int64."""
    import numpy as np

    digest = hashlib.sha256()
    for window in windows:
        digest.update(np.array([len(window.token_ids), window.first_scored], dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(window.token_ids, dtype="<i8").tobytes())
    return digest.hexdigest()


def _llama_cpp(ids: NDArray[np.int64], seq_len: int, encoder: TextEncoder) -> list[Window]:
    before = encoder.frame.before
    windows = []
    for number in range(len(ids) // seq_len):
        piece = ids[number * seq_len : (number + 1) * seq_len].copy()
        if before:
            piece[0] = before[0]
        # The last position's prediction, of the token after the window, is not scored.
        windows.append(Window(piece, seq_len // 2 + 1, number))
    return windows


def _sliding(ids: NDArray[np.int64], spec: EvalSpec) -> list[Window]:
    windows: list[Window] = []
    scored_up_to = 1
    for begin in range(0, len(ids), spec.effective_stride):
        end = min(begin + spec.seq_len, len(ids))
        if end > scored_up_to and end - begin >= 2:
            # Overlapping windows share context; tokens within one window's length count as one cluster.
            windows.append(Window(ids[begin:end], scored_up_to - begin, scored_up_to // spec.seq_len))
        scored_up_to = end
        if end == len(ids):
            break
    return windows if len(ids) >= spec.seq_len else []


def _rolling(documents: Texts, spec: EvalSpec, encoder: TextEncoder) -> EvaluationWindows:
    import numpy as np

    all_windows, used = _whole_documents(documents, spec, encoder)
    windows = _first(all_windows, spec)
    if len(windows) < len(all_windows) and all_windows[len(windows)].cluster == windows[-1].cluster > 0:
        # The last document would be cut.
        windows = [window for window in windows if window.cluster < windows[-1].cluster]
    used = used[: windows[-1].cluster + 1]
    num_scored = sum(window.num_scored for window in all_windows if window.cluster == 0)
    if len(used) == 1:
        windows = [window._replace(cluster=number) for number, window in enumerate(windows)]
    made = _with_record(windows, _name(spec), len(used))
    if spec.max_windows is None:
        made = _of_whole(made, all_windows)
    if isinstance(documents, Conversations):
        return made
    num_words = np.array([len(re.split(r"\s+", text)) for text in used], dtype=np.float64)
    num_bytes = np.array([len(text.encode("utf-8")) for text in used], dtype=np.float64)
    if len(used) == 1:
        scored = np.array([window.num_scored for window in windows])
        num_words, num_bytes = (count[0] * scored / num_scored for count in (num_words, num_bytes))
    return made._replace(num_words=num_words, num_bytes=num_bytes)


def _whole_documents(documents: Iterable[str], spec: EvalSpec, encoder: TextEncoder) -> tuple[list[Window], list[str]]:
    """The windows of the first documents, and those documents; empty ones aside."""
    import numpy as np

    prefix = encoder.prefix_id
    if prefix is None:
        raise UsageError(
            "protocol rolling puts a token before each document; the tokenizer has neither bos_token nor eos_token",
            where=_name(spec),
            hint='take `protocol="llama.cpp"` or sliding',
        )
    windows: list[Window] = []
    used: list[str] = []
    for text in documents:
        ids = encoder.ids(text, special=False)
        if spec.chat_template and ids[:1] == [prefix]:
            del ids[0]
        if not ids:
            continue
        stream = np.array([prefix, *ids], dtype=np.int64)
        cut = _disjoint(stream, spec.seq_len, len(used))
        if spec.max_windows is not None and len(windows) + len(cut) > spec.max_windows:
            if not windows:
                raise UsageError(
                    f"the first document has {len(cut)} windows, num_windows is {spec.max_windows}",
                    where=_name(spec),
                    hint="documents are scored as a whole under rolling: raise `num_windows`",
                )
            break
        windows += cut
        used.append(text)
    if not windows:
        raise _too_short(0, 1, spec)
    return windows, used


def _disjoint(stream: NDArray[np.int64], seq_len: int, cluster: int) -> list[Window]:
    """Windows with inputs of ``seq_len`` tokens; the last one reaches back so far that it is as long."""
    windows = []
    num_tokens = len(stream) - 1
    for start in range(0, num_tokens, seq_len):
        end = min(start + seq_len, num_tokens)
        begin = max(0, end - seq_len) if start else 0
        windows.append(Window(stream[begin : end + 1], start + 1 - begin, cluster))
    return windows


def _too_short(num_tokens: int, seq_len: int, spec: EvalSpec) -> DataError:
    return DataError(
        f"the text has {num_tokens} tokens, one window needs {seq_len}",
        where=_name(spec),
        hint="take more text, or a smaller `seq_len`",
    )
