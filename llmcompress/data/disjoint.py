"""Whether two texts have a long sequence of tokens in common: what is trained on must not be measured on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.errors import DataError, ModelError
from llmcompress.report.file_names import TRAINING_SEQUENCES
from llmcompress.system.arrays import read_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEQUENCE = 64
"""Tokens in common that are too many."""
STEP = 16
BLOCK = SEQUENCE - STEP + 1
"""Tokens that are compared. Any sequence of 64 tokens holds a block that begins at a multiple of 16."""
_FACTOR = 6364136223846793005
"""Knuth's multiplier of 64 bits."""


def sequence_hashes(token_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes of the blocks of each window that begin at a multiple of 16, sorted, each once.

    Args:
        token_ids: int64 ``[num_windows, seq_len]``.
    """
    import numpy as np

    if token_ids.shape[1] < BLOCK:
        return np.empty(0, np.uint64)
    hashes: NDArray[np.uint64] = np.unique(_hashes(token_ids)[:, ::STEP])
    return hashes


def shares_sequence(token_ids: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each window has 49 tokens in a row that begin one of the hashed blocks; any 64 in common hold such.

    Args:
        token_ids: int64 ``[num_windows, seq_len]``.
        hashes: What ``sequence_hashes`` made of the other text.
    """
    import numpy as np

    if token_ids.shape[1] < BLOCK:
        return np.zeros(len(token_ids), np.bool_)
    return np.asarray(np.isin(_hashes(token_ids), hashes).any(axis=1))


def num_sharing(windows: Iterable[NDArray[np.int64]], hashes: NDArray[np.uint64]) -> int:
    """How many windows have such a sequence, where they may differ in length; as ``shares_sequence``."""
    return sum(bool(shares_sequence(window[None], hashes)[0]) for window in windows)


def write_sequences(directory: Path, token_ids: NDArray[np.int64]) -> None:
    """Write the hashes of what an artifact was trained on, ``[num_windows, seq_len]``, into its directory."""
    import numpy as np

    np.save(directory / TRAINING_SEQUENCES, sequence_hashes(token_ids), allow_pickle=False)


def require_not_trained_on(directory: Path, windows: list[NDArray[np.int64]], dataset: str) -> None:
    """Refuse to measure an artifact on what its bits were trained on.

    Args:
        directory: The artifact's.
        windows: Token ids of each window.
        dataset: Where they are from.

    Raises:
        DataError: A window has a sequence of 64 tokens in common with the training text.
        ModelError: The file with the hashes cannot be read.
    """
    path = directory / TRAINING_SEQUENCES
    if not path.is_file():
        return
    try:
        hashes = read_array(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{TRAINING_SEQUENCES} cannot be read, so that it is not known what the model was trained on",
            where=directory.name,
            hint="llmcompress verify names damaged files; compress the model again",
        ) from error
    num_shared = num_sharing(windows, hashes)
    if num_shared:
        raise DataError(
            f"{num_shared} of {len(windows)} windows have a sequence of {SEQUENCE} tokens in common with the text that "
            f"the model's bits were trained on: the result would flatter it",
            where=dataset,
            hint="measure on another text; the manifest's recipe names what was trained on",
        )


def _hashes(token_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A polynomial hash, modulo 2^64, of each block of each window."""
    import numpy as np

    ids = token_ids.astype(np.uint64) + np.uint64(1)
    num_blocks = token_ids.shape[1] - BLOCK + 1
    found = np.zeros((len(ids), num_blocks), np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(BLOCK):
            found *= np.uint64(_FACTOR)
            found += ids[:, offset : offset + num_blocks]
    return np.asarray(found ^ (found >> np.uint64(29)))
