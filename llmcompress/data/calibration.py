"""Documents -> windows of token ids, packed and sampled by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.conversations import Conversations, conversation_columns
from llmcompress.data.texts import Columns, Rows, read_rows, text_of
from llmcompress.data.tokens import Frame, TextEncoder, by_transformers
from llmcompress.errors import DataError, UsageError
from llmcompress.report.record import CalibrationRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcompress.spec import Calibration

MIN_PIECE_CHARS = 1 << 14
BATCH_PIECES = 256
MIN_CHARS = 1 << 18
CHARS_PER_TOKEN = 8
"""Characters tokenised per token asked for: about twice what English text needs, to have a choice."""


@dataclass(frozen=True)
class CalibrationWindows:
    """Token ids int64 of shape [num_windows, seq_len], read-only, and the record of where they come from."""

    token_ids: NDArray[np.int64]
    record: CalibrationRecord
    held_out: CalibrationWindows | None = None
    """Windows of the same text that are not among these."""


class _Documents(NamedTuple):
    rows: Rows
    text: Callable[[int], str]
    """Of the document at an index."""
    conversations: Conversations | None = None
    """Where the texts come from, if they are such."""


class _Piece(NamedTuple):
    text: str
    starts: bool
    ends: bool


def calibration_windows(
    calibration: Calibration,
    tokenizer: Any,
    *,
    num_held_out: int = 0,
    offline: bool = False,
    max_seq_len: int | None = None,
    num_embeddings: int | None = None,
) -> CalibrationWindows:
    """Tokenise the calibration dataset and take ``num_samples`` windows of exactly ``seq_len`` tokens.

    Documents are taken in an order drawn by the seed and joined to one stream, each between the special tokens that
    the tokenizer itself puts around a text (for Llama, ``<s>`` before it); where it puts none, its end-of-text token
    stands between documents. The stream is cut into windows without padding, the remainder dropped, and windows are
    drawn without repetition (numpy's PCG64), in drawn order: the first few are a sample as well. Of a large dataset
    only a sample of documents, or of pieces of a long document, some windows long, is tokenised. Same data, seed and
    tokenizer: same windows.

    With ``chat_template`` a document is one conversation, as ``conversation_of`` reads it, in the field ``messages`` or
    ``conversations`` (or in ``text_field``, if that is not ``text``). The template writes all special tokens. What of
    the rows does not reach it is logged as a warning.

    Args:
        calibration: What to take.
        tokenizer: A transformers tokenizer.
        num_held_out: Further windows to draw as ``held_out``, none with the tokens of a calibration window.
        offline: Take a Hub dataset from the local cache only.
        max_seq_len: The model's longest context in tokens, when known.
        num_embeddings: The model's, when known.

    Raises:
        UsageError: ``seq_len`` beyond ``max_seq_len``, or a chat template asked for where there is none to use.
        DataError: the data cannot be used or holds too little text.
        HubError: the Hub dataset cannot be had.
        ModelError: a token of the text has no embedding.
        SecurityError: the chat template does not end.
    """
    seq_len, wanted = calibration.seq_len, calibration.num_samples
    if max_seq_len is not None and seq_len > max_seq_len:
        raise UsageError(
            f"seq_len is {seq_len}, the model's context is {max_seq_len} tokens",
            where="calibration.seq_len",
            hint=f"set calibration.seq_len to {max_seq_len} or less",
        )
    documents = _open(calibration, tokenizer, offline)
    encoder = TextEncoder(by_transformers(tokenizer), num_embeddings=num_embeddings)
    stream, generator = _stream(documents, calibration, tokenizer, encoder, (wanted + num_held_out) * seq_len)
    where, available = documents.rows.where, len(stream) // seq_len
    if available < wanted:
        raise DataError(
            f"the text gives {available} windows of {seq_len} tokens ({len(stream)} tokens), {wanted} were asked for",
            where=where,
            hint=f"take more text, or set {_affordable(available, len(stream))}",
        )
    cut = stream[: available * seq_len].reshape(available, seq_len)
    chosen = cut[generator.choice(available, size=wanted, replace=False)]
    held_out = None
    if num_held_out:
        held_out = of_windows(_held_out(cut, chosen, num_held_out, generator, where), where, calibration.seed)
    return replace(of_windows(chosen, where, calibration.seed), held_out=held_out)


def _frame(calibration: Calibration, tokenizer: Any, encoder: TextEncoder) -> Frame:
    """What stands around each document."""
    if calibration.chat_template:
        return Frame()
    if not any(encoder.frame) and tokenizer.eos_token_id is not None:
        return Frame((), (tokenizer.eos_token_id,))
    return encoder.frame


def _stream(
    documents: _Documents, calibration: Calibration, tokenizer: Any, encoder: TextEncoder, num_tokens: int
) -> tuple[NDArray[np.int64], np.random.Generator]:
    """At least so many tokens, if the text has them, and the generator that drew the documents."""
    import numpy as np

    frame = _frame(calibration, tokenizer, encoder)
    piece_chars = max(MIN_PIECE_CHARS, 2 * CHARS_PER_TOKEN * calibration.seq_len)
    budget = max(MIN_CHARS, CHARS_PER_TOKEN * calibration.num_samples * calibration.seq_len)
    while True:
        generator = np.random.Generator(np.random.PCG64(calibration.seed))
        pieces, complete = _sample(documents, generator, budget, piece_chars)
        stream = _tokenise(pieces, encoder, frame)
        if complete or len(stream) >= num_tokens:
            break
        budget *= 4
    if documents.conversations:
        documents.conversations.warn_of_losses()
    return stream, generator


def _held_out(
    cut: NDArray[np.int64], chosen: NDArray[np.int64], count: int, generator: np.random.Generator, where: str
) -> NDArray[np.int64]:
    """Windows whose tokens are not those of a chosen one: a text may say the same twice."""
    taken = {window.tobytes() for window in chosen}
    others = [number for number in range(len(cut)) if cut[number].tobytes() not in taken]
    if len(others) < count:
        raise DataError(
            f"the text gives {len(others)} windows of {cut.shape[1]} tokens besides the {len(chosen)} for calibration, "
            f"{count} are to be held out",
            where=where,
            hint="take more text, or set fewer of calibration.num_samples or accuracy_control.num_samples",
        )
    held_out: NDArray[np.int64] = cut[generator.choice(others, size=count, replace=False)]
    return held_out


def of_windows(token_ids: NDArray[np.int64], where: str, seed: int) -> CalibrationWindows:
    """Windows with the record of where they come from; ``token_ids`` becomes read-only."""
    token_ids.flags.writeable = False
    record = CalibrationRecord(
        dataset=where,
        num_windows=len(token_ids),
        seq_len=token_ids.shape[1],
        seed=seed,
        token_ids_sha256=token_ids_sha256(token_ids),
    )
    return CalibrationWindows(token_ids, record)


def _affordable(available: int, num_tokens: int) -> str:
    if available:
        return f"calibration.num_samples to {available}"
    return f"calibration.seq_len to {num_tokens} or less and calibration.num_samples to 1"


def token_ids_sha256(token_ids: NDArray[np.int64]) -> str:
    """SHA-256 over the shape and the ids, both as little-endian int64, row by row."""
    import numpy as np

    digest = hashlib.sha256(np.asarray(token_ids.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(token_ids, dtype="<i8").tobytes())
    return digest.hexdigest()


def _open(calibration: Calibration, tokenizer: Any, offline: bool) -> _Documents:
    dataset, columns = calibration.dataset, Columns((calibration.text_field,))
    if calibration.chat_template:
        if dataset.lower().endswith(".txt"):
            raise UsageError(
                "a .txt file is one running text, conversations are needed",
                where="calibration.chat_template",
                hint="give a .jsonl file with a messages list per line, or set chat_template to false",
            )
        columns = conversation_columns(calibration.text_field)
    rows = read_rows(dataset, columns, subset=calibration.subset, split=calibration.split, offline=offline)
    if calibration.chat_template:
        conversations = Conversations(rows, tokenizer, "calibration.chat_template")
        return _Documents(rows, conversations.text, conversations)
    return _Documents(rows, lambda index: text_of(rows, index))


def _sample(
    documents: _Documents, generator: np.random.Generator, budget: int, piece_chars: int
) -> tuple[list[_Piece], bool]:
    """Pieces of documents in drawn order, about ``budget`` characters, and whether that is all there is."""
    pieces: list[_Piece] = []
    chars = 0
    for index in generator.permutation(len(documents.rows.records)):
        if chars >= budget:
            return pieces, False
        text = documents.text(int(index))
        if not text.strip():
            continue
        parts = list(_cut(text, piece_chars))
        last = len(parts) - 1
        keep = list(range(len(parts)))
        room = -((chars - budget) // piece_chars)
        if len(parts) > 2 * room:
            # One document is larger than all that is wanted: pieces from everywhere in it, in their order.
            keep = sorted(int(part) for part in generator.choice(len(parts), size=room, replace=False))
        pieces += [_Piece(parts[part], part == 0, part == last) for part in keep]
        chars += sum(len(parts[part]) for part in keep)
        if len(keep) < len(parts):
            return pieces, False
    return pieces, True


def _cut(text: str, size: int) -> Iterator[str]:
    """Parts of at most ``size`` characters, between lines or words where possible: one long text tokenises slowly."""
    start = 0
    while len(text) - start > size:
        middle, end = start + size // 2, start + size
        line = text.rfind("\n", middle, end)
        # A newline belongs to the line that it ends, a space to the word that follows it.
        stop = line + 1 if line >= 0 else text.rfind(" ", middle, end)
        stop = stop if stop > 0 else end
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _tokenise(pieces: list[_Piece], encoder: TextEncoder, frame: Frame) -> NDArray[np.int64]:
    import numpy as np

    parts: list[NDArray[np.int64]] = []
    for first in range(0, len(pieces), BATCH_PIECES):
        batch = pieces[first : first + BATCH_PIECES]
        for piece, ids in zip(batch, encoder.batch([piece.text for piece in batch]), strict=True):
            framed = [*(frame.before if piece.starts else ()), *ids, *(frame.after if piece.ends else ())]
            parts.append(np.asarray(framed, dtype=np.int64))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
