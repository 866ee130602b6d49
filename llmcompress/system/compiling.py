"""Kernels compiled by Numba, without its licence to reorder or contract, in machine code that is kept."""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from llmcompress.system.cache import cache_dir, content_key
from llmcompress.system.environment import left_out_meanwhile
from llmcompress.system.patching import replaced


@functools.cache
def _machine_code_dir(room: Path) -> str:
    """One for each state of a room: Numba compares a function's own file, but not those that it calls into."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in room.glob("*.py")}
    return str(cache_dir() / "kernels" / content_key(sources)[:16])


@functools.cache
def _begin_without_scipy() -> None:
    """Numba begins by importing SciPy's products of matrices, which no kernel calls, in a third of its time."""
    with left_out_meanwhile("scipy.linalg") as is_left_out:
        if is_left_out:
            import numba.np.arraymath  # noqa: F401


def compiled(function: Any) -> Any:
    """Compile at the first call, in machine code that is kept for the next process.

    The division by zero of Numba's NumPy model is IEEE's; Python's would be checked for, value by value.
    """
    _begin_without_scipy()
    room = Path(function.__code__.co_filename).parent
    with replaced(numba.config, "CACHE_DIR", _machine_code_dir(room)):
        try:
            kept = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError:  # The cache's folder cannot be written.
            return numba.njit(nogil=True, error_model="numpy")(function)
    # Its folder was made, which a full disk, another user's files and a power cut do not prevent.
    kept._cache.load_overload = _unless_refused(kept._cache.load_overload, kept._cache.flush)
    kept._cache.save_overload = _unless_refused(kept._cache.save_overload, kept._cache.flush)
    return kept


def _unless_refused(access: Callable[..., Any], forget: Callable[[], None]) -> Callable[..., Any]:
    """Take a refusal of the disk as nothing kept, and forget what cannot be read."""

    @functools.wraps(access)
    def attempt(*arguments: Any) -> Any:
        with contextlib.suppress(OSError):
            try:
                return access(*arguments)
            except (EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError):
                # Numba does not wait for the device, so that a power cut leaves files without their bytes.
                forget()
        return None

    return attempt
