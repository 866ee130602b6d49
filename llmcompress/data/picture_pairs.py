"""Rows of a picture and a text, which a vision-language model is calibrated with."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.data.pictures import open_picture
from llmcompress.data.texts import Columns, read_rows, text_of
from llmcompress.errors import DataError

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
        yield PicturePair(_at_most(_picture(shown, calibration.image_field, folder, place)), text)


def _picture(shown: Any, field: str, folder: Path, place: str) -> PIL.Image.Image:
    """What a row holds: a path, the bytes of a file next to its path, as Parquet files do, or the picture itself."""
    from PIL import Image

    if isinstance(shown, Image.Image):
        return shown.convert("RGB")
    if isinstance(shown, Mapping) and isinstance(shown.get("bytes"), bytes):
        return open_picture(io.BytesIO(shown["bytes"]), place)
    path = shown.get("path") if isinstance(shown, Mapping) else shown
    if not isinstance(path, str) or not path:
        raise DataError(
            f"the field {field!r} holds no picture", where=place, hint="write the path of a PNG or JPEG file into it"
        )
    return open_picture(folder / path, place)


def _at_most(picture: PIL.Image.Image) -> PIL.Image.Image:
    scale = max(picture.size) / MAX_SIDE
    if scale <= 1:
        return picture
    width, height = picture.size
    return picture.resize((max(1, int(width / scale)), max(1, int(height / scale))))
