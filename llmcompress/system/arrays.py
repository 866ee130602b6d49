"""Arrays in files of numpy's: read whole, or refused in one way, whatever is damaged in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_array(path: Path) -> NDArray[Any]:
    """Read the array of a .npy file.

    Raises:
        OSError: There is none, or it cannot be opened.
        ValueError: It is damaged.
    """
    return _read(path, one=True)[""]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a .npz file, by name.

    Raises: as ``read_array``.
    """
    return _read(path, one=False)


def _read(path: Path, *, one: bool) -> dict[str, NDArray[Any]]:
    import numpy as np

    with path.open("rb") as file:
        try:
            if one:
                return {"": np.lib.format.read_array(file, allow_pickle=False)}
            with np.load(file, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except Exception as error:  # Of zip, zlib, struct, the parser of headers, and for want of room.
            raise ValueError(f"{path} is damaged: {type(error).__name__}") from error
