"""Pictures with texts -> what a language model is calibrated with: its inputs as Optimum's class makes them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcompress.data.picture_pairs import PicturePair, picture_pairs
from llmcompress.errors import DataError
from llmcompress.graph.device import PINNED
from llmcompress.loaders.seeing import language_inputs, open_prompts, open_sight, picture_prompt
from llmcompress.report.record import CalibrationRecord
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcompress.loaders.loaded_model import LoadedModel
    from llmcompress.loaders.source import Source
    from llmcompress.spec import Calibration

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureSamples:
    """Pictures with texts, and the record of where they come from."""

    pairs: tuple[PicturePair, ...]
    record: CalibrationRecord

    def inputs(self, loaded: LoadedModel, progress: Reporter) -> list[dict[str, NDArray[Any]]]:
        """What the language model of a loaded model is fed of each, its other parts run in f32.

        Raises:
            ModelError: Optimum's class cannot run a part.
        """
        sight, made = open_sight(loaded, "CPU", PINNED), []
        for number, pair in enumerate(self.pairs):
            progress(Progress("look at the pictures", number, len(self.pairs), "pictures"))
            made.append(language_inputs(sight, picture_prompt(sight, pair.text, pair.picture)))
        progress(Progress("look at the pictures", len(self.pairs), len(self.pairs), "pictures"))
        return made


def picture_samples(found: Source, calibration: Calibration, *, offline: bool) -> PictureSamples:
    """Draw ``num_samples`` rows of a picture and a text of which a prompt of at most ``seq_len`` tokens is made.

    Args:
        found: The model, whose processor makes the prompts.
        calibration: With an ``image_field``.
        offline: Take a Hub dataset from the local cache only.

    Raises:
        DataError: The dataset cannot be used, or has too few such rows.
        ModelError: The processor refuses a row.
        HubError: The Hub dataset cannot be had.
    """
    asked, digest, of_pictures = open_prompts(found), hashlib.sha256(), hashlib.sha256()
    pairs: list[PicturePair] = []
    longest = too_long = 0
    for pair in picture_pairs(calibration, offline=offline):
        token_ids = picture_prompt(asked, pair.text, pair.picture)["input_ids"].numpy().astype("<i8")
        if token_ids.size > calibration.seq_len:
            too_long += 1
            continue
        longest = max(longest, token_ids.size)
        digest.update(token_ids.size.to_bytes(8, "little") + token_ids.tobytes())
        of_pictures.update(f"{pair.picture.size}".encode() + pair.picture.tobytes())
        pairs.append(pair)
        if len(pairs) == calibration.num_samples:
            break
    where = calibration.dataset if (path := calibration.dataset_path()) is None else path.name
    if len(pairs) < calibration.num_samples:
        raise DataError(
            f"{len(pairs)} of its pictures with texts give at most {calibration.seq_len} tokens, "
            f"{calibration.num_samples} were asked for",
            where=where,
            hint="set a smaller calibration.num_samples or a larger calibration.seq_len, or take more rows",
        )
    if too_long:
        _log.warning("%s: %s of more than %s tokens left out", where, f"{too_long:,}", f"{calibration.seq_len:,}")
    record = CalibrationRecord(
        dataset=where,
        num_windows=len(pairs),
        seq_len=longest,
        seed=calibration.seed,
        token_ids_sha256=digest.hexdigest(),
        pictures_sha256=of_pictures.hexdigest(),
    )
    return PictureSamples(tuple(pairs), record)
