"""The texts of a search: for GPTQ, for the sensitivity and for the verdict, which have nothing in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmcompress.compression.preparation import recipe_windows
from llmcompress.data.calibration import CalibrationWindows
from llmcompress.data.disjoint import SEQUENCE, num_sharing, sequence_hashes
from llmcompress.data.documents import read_documents, texts_for
from llmcompress.data.protocols import EvaluationWindows, evaluation_windows
from llmcompress.data.tokens import text_encoder
from llmcompress.errors import DataError
from llmcompress.loaders.fetching import fetch_side_files
from llmcompress.loaders.source import Source
from llmcompress.loaders.tokenizer import require_tokenizer
from llmcompress.searching.plans import uniform_recipe
from llmcompress.spec.search import Format, SearchSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SearchWindows(NamedTuple):
    """What is read in a search."""

    looked_at: EvaluationWindows
    """For the sensitivity, and for what is measured of plans before the verdict."""
    held_out: EvaluationWindows
    """For the verdict."""
    calibration: CalibrationWindows | None
    """What GPTQ goes by."""


def search_windows(found: Source, spec: SearchSpec, *, offline: bool) -> SearchWindows:
    """Read the texts, and refuse those that would flatter a plan.

    Raises:
        DataError: There is too little text, or two of them have a sequence of 64 tokens in common.
    """
    found = fetch_side_files(found)
    looked_at, held_out = _in_two(found, spec, offline=offline)
    seen = stacked(looked_at)
    require_apart(seen, held_out, "the sensitivity", "the verdict")
    calibration = _calibration(found, spec, offline=offline)
    if calibration is not None:
        require_apart(calibration.token_ids, looked_at, "the calibration", "the sensitivity")
        require_apart(calibration.token_ids, held_out, "the calibration", "the verdict")
    return SearchWindows(looked_at, held_out, calibration)


def stacked(windows: EvaluationWindows) -> NDArray[np.int64]:
    """Token ids ``[num_windows, seq_len]``."""
    import numpy as np

    return np.stack([np.asarray(window.token_ids, np.int64) for window in windows.windows])


def require_apart(token_ids: NDArray[np.int64], windows: EvaluationWindows, of_these: str, of_those: str) -> None:
    """Refuse to measure on what was looked at.

    Args:
        token_ids: That were, ``[num_windows, seq_len]``.
        windows: To measure on.
        of_these: What the former are, in words.
        of_those: What the latter are.

    Raises:
        DataError: A window has a sequence of 64 tokens in common with them.
    """
    num_shared = num_sharing([window.token_ids for window in windows.windows], sequence_hashes(token_ids))
    if num_shared:
        raise DataError(
            f"{num_shared} of {len(windows.windows)} windows of {of_those} have a sequence of {SEQUENCE} tokens in "
            f"common with those of {of_these}",
            where=windows.record.dataset,
            hint="take another text, or one that repeats itself less",
        )


def _in_two(found: Source, spec: SearchSpec, *, offline: bool) -> tuple[EvaluationWindows, EvaluationWindows]:
    documents = read_documents(spec.evaluation(), offline=offline)
    windows = evaluation_windows(texts_for(documents, found), documents.spec, text_encoder(found))
    available, wanted = len(windows.windows), spec.num_samples + spec.num_windows
    if available < wanted:
        raise DataError(
            f"the text has {available} windows of {spec.seq_len} tokens; {spec.num_samples} show the sensitivity and "
            f"{spec.num_windows} more the verdict",
            where=windows.record.dataset,
            hint="take more text, or smaller `num_samples`, `num_windows` or `seq_len`",
        )
    windows = windows.noting(documents.fallback)
    return windows.part(0, spec.num_samples), windows.part(spec.num_samples, wanted)


def _calibration(found: Source, spec: SearchSpec, *, offline: bool) -> CalibrationWindows | None:
    if spec.calibration is None:
        return None
    recipe = uniform_recipe("calibration", Format("int4_sym", -1, "gptq"), spec.calibration)
    windows = recipe_windows(found, recipe, require_tokenizer(found, needed=True), offline=offline)
    assert isinstance(windows, CalibrationWindows)
    return windows
