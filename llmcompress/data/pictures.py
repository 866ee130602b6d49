"""Questions with pictures: the packaged ones, which are drawn here, or those of a file of one's own."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from llmcompress.data.texts import Columns, Rows, read_rows
from llmcompress.errors import DataError, last_line
from llmcompress.spec.dataset import BUNDLED, hub_split

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    """Of the picture's points, ``[height, width]``."""

_SIDE = 448
_COLUMNS = Columns(
    ("image",), ("question",), hint="write the path of a picture as image, and what is asked of it as question"
)
_RED, _GREEN, _BLUE, _YELLOW = (204, 32, 32), (32, 144, 64), (32, 80, 192), (240, 200, 32)
_WHITE, _GREY, _DARK = (250, 250, 250), (128, 128, 128), (24, 24, 40)


class PictureQuestion(NamedTuple):
    """A picture, and what is asked of it."""

    picture: PIL.Image.Image
    """In red, green and blue."""
    question: str
    name: str
    """Of the picture, for people."""


class PictureQuestions(NamedTuple):
    """What a model is asked."""

    questions: tuple[PictureQuestion, ...]
    name: str
    """Of the file, or ``bundled``."""

    @property
    def sha256(self) -> str:
        """Over the points of all pictures, and the questions."""
        digest = hashlib.sha256()
        for each in self.questions:
            digest.update(f"{each.picture.size}{each.question}\0".encode())
            digest.update(each.picture.tobytes())
        return digest.hexdigest()


def read_pictures(pictures: str, *, offline: bool = False) -> PictureQuestions:
    """Read questions with pictures.

    Args:
        pictures: A ``.jsonl`` or ``.parquet`` file, or ``namespace/name@commit:split`` of the Hub, whose rows have an
            ``image``, which may be a path that starts at the file's folder, and a ``question``; or ``bundled``.
        offline: Take a Hub dataset from the local cache only.

    Raises:
        DataError: The dataset, a row or a picture cannot be read.
        HubError: The Hub dataset cannot be had.
    """
    if pictures == BUNDLED:
        return PictureQuestions(tuple(_drawn()), BUNDLED)
    of_hub = hub_split(pictures)
    path, (dataset, split) = Path(pictures), of_hub or (pictures, None)
    rows = read_rows(dataset, _COLUMNS, subset=None, split=split, offline=offline)
    folder = Path() if of_hub else path.parent
    questions = tuple(_read(rows, index, folder) for index in range(len(rows.records)))
    return PictureQuestions(questions, pictures if of_hub else path.name)


def picture_of(shown: Any, field: str, folder: Path, place: str) -> PIL.Image.Image:
    """What a row holds: a path, the bytes of a file next to its path, as Parquet files do, or the picture itself.

    Args:
        shown: Of the row.
        field: Its name.
        folder: Where paths start.
        place: Of the row, for people.

    Raises:
        DataError: It is no picture, or cannot be read.
    """
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


def open_picture(file: Path | BinaryIO, place: str) -> PIL.Image.Image:
    """Read a picture file, in red, green and blue.

    Args:
        file: Of any format that Pillow reads.
        place: Where it is named, for people.

    Raises:
        DataError: It cannot be read, or has more points than Pillow takes for safe.
    """
    from PIL import Image

    hint = "give a PNG or JPEG file, by a path that starts at the folder of the file that names it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        name = f" {file.name!r}" if isinstance(file, Path) else ""
        raise DataError(f"the picture{name} cannot be read: {last_line(error)}", where=place, hint=hint) from None


def _read(rows: Rows, index: int, folder: Path) -> PictureQuestion:
    place, row = rows.place(index), rows.records[index]
    question, shown = row.get("question"), row["image"]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"question is {question!r}; a text is needed", where=place, hint=_COLUMNS.hint)
    name = shown if isinstance(shown, str) else f"{rows.unit} {rows.numbers[index]}"
    return PictureQuestion(picture_of(shown, "image", folder, place), question, name)


class _Canvas:
    """A picture that is drawn, point by point the same everywhere."""

    def __init__(self, background: Sequence[int]) -> None:
        import numpy as np

        self.y, self.x = np.mgrid[0:_SIDE, 0:_SIDE]
        self.points = np.full((_SIDE, _SIDE, 3), background, dtype=np.uint8)

    def paint(self, mask: Mask, colour: Sequence[int]) -> None:
        self.points[mask] = colour

    def disc(self, x: int, y: int, radius: int) -> Mask:
        mask: Mask = (self.x - x) ** 2 + (self.y - y) ** 2 <= radius**2
        return mask

    def box(self, left: int, top: int, right: int, bottom: int) -> Mask:
        mask: Mask = (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)
        return mask

    def roof(self, left: int, right: int, top: int, bottom: int) -> Mask:
        """A triangle with its tip above the middle."""
        height, middle = bottom - top, left + right
        mask: Mask = abs(2 * self.x - middle) * height <= (self.y - top) * (right - left)
        return mask & self.box(left, top, right, bottom)


def _circle() -> _Canvas:
    canvas = _Canvas(_WHITE)
    canvas.paint(canvas.disc(224, 224, 130), _RED)
    return canvas


def _two_shapes() -> _Canvas:
    canvas = _Canvas(_WHITE)
    canvas.paint(canvas.box(40, 150, 190, 300), _BLUE)
    canvas.paint(canvas.roof(250, 420, 150, 300), _GREEN)
    return canvas


def _dots() -> _Canvas:
    canvas = _Canvas(_DARK)
    for x, y in ((90, 100), (340, 80), (220, 220), (110, 350), (350, 330)):
        canvas.paint(canvas.disc(x, y, 34), _YELLOW)
    return canvas


def _bars() -> _Canvas:
    canvas = _Canvas(_WHITE)
    for number, (height, colour) in enumerate(((120, _RED), (300, _BLUE), (200, _GREEN), (60, _YELLOW))):
        canvas.paint(canvas.box(60 + 90 * number, 390 - height, 120 + 90 * number, 390), colour)
    canvas.paint(canvas.box(40, 390, 410, 396), _DARK)
    return canvas


def _board() -> _Canvas:
    canvas = _Canvas(_WHITE)
    canvas.paint((canvas.x // 56 + canvas.y // 56) % 2 == 1, _DARK)
    return canvas


def _shade() -> _Canvas:
    canvas = _Canvas(_WHITE)
    canvas.points[:] = (canvas.x * 255 // (_SIDE - 1))[..., None]
    return canvas


def _house() -> _Canvas:
    canvas = _Canvas((140, 200, 240))
    canvas.paint(canvas.box(0, 330, _SIDE, _SIDE), _GREEN)
    canvas.paint(canvas.disc(370, 80, 44), _YELLOW)
    canvas.paint(canvas.box(110, 220, 290, 380), (224, 208, 176))
    canvas.paint(canvas.roof(90, 310, 120, 220), _RED)
    canvas.paint(canvas.box(180, 300, 222, 380), (112, 72, 40))
    return canvas


def _seven() -> _Canvas:
    canvas = _Canvas(_GREY)
    canvas.paint(canvas.box(130, 90, 320, 130), _WHITE)
    canvas.paint(canvas.box(280, 90, 320, 360), _WHITE)
    return canvas


_BUNDLED: tuple[tuple[str, Callable[[], _Canvas], str], ...] = (
    ("circle", _circle, "What shape is in the picture, and which colour is it?"),
    ("shapes", _two_shapes, "Which shape is on the left, and which is on the right?"),
    ("dots", _dots, "How many dots are in the picture?"),
    ("bars", _bars, "Which bar is the highest, and which is the lowest?"),
    ("board", _board, "Describe the pattern in the picture."),
    ("shade", _shade, "How does the brightness change from the left to the right?"),
    ("house", _house, "Describe the picture in one sentence."),
    ("seven", _seven, "Which number is in the picture?"),
)


def _drawn() -> list[PictureQuestion]:
    from PIL import Image

    return [PictureQuestion(Image.fromarray(draw().points), question, name) for name, draw, question in _BUNDLED]
