"""Rows of a picture and a text, which a vision-language model is calibrated with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.data.pictures import picture_of
from llmcompress.data.texts import Columns, read_rows, text_of

if TYPE_CHECKING:
    import PIL.Image

    from llmcompress.spec import Calibration

MAX_SIDE = 600
"""Pixels; larger pictures are made smaller, as Optimum's calibration does."""


class PicturePair(NamedTuple):
    """A row."""

    picture: PIL.Image.Image
    """In red, green and blue, no side longer than ``MAX_SIDE``."""
    text: str


def picture_pairs(calibration: Calibration, *, offline: bool) -> Iterator[PicturePair]:
    """Read the rows of a dataset in an order drawn by the seed, each when it is asked for.

    Args:
        calibration: With an ``image_field``.
        offline: Take a Hub dataset from the local cache only.

    Raises:
        DataError: The dataset cannot be used, a row has no picture or no text, or its picture cannot be read.
        HubError: The Hub dataset cannot be had.
    """
    import numpy as np

    assert calibration.image_field is not None
    columns = Columns((calibration.text_field,), (calibration.image_field,))
    rows = read_rows(calibration.dataset, columns, subset=calibration.subset, split=calibration.split, offline=offline)
    path = calibration.dataset_path()
    folder = Path() if path is None else path.parent
    for index in np.random.Generator(np.random.PCG64(calibration.seed)).permutation(len(rows.records)):
        text, place = text_of(rows, int(index)), rows.place(int(index))
        shown = rows.beside(int(index)).get(calibration.image_field)
        yield PicturePair(_at_most(picture_of(shown, calibration.image_field, folder, place)), text)


def _at_most(picture: PIL.Image.Image) -> PIL.Image.Image:
    scale = max(picture.size) / MAX_SIDE
    if scale <= 1:
        return picture
    width, height = picture.size
    return picture.resize((max(1, int(width / scale)), max(1, int(height / scale))))
