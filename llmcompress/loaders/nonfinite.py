"""Weights that are no finite numbers, found by their bits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.safetensors_file import BITS, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_log = logging.getLogger(__name__)

# Two reductions read each piece, so it should stay in a core's own cache.
_PIECE_BYTES = 256 << 10
_SHOWN = 8

# The smallest bit pattern, sign aside, that is not finite: all exponent bits set. E4M3 has one NaN and no infinity.
_LIMITS = {
    "F64": 0x7FF0_0000_0000_0000,
    "F32": 0x7F80_0000,
    "C64": 0x7F80_0000,
    "BF16": 0x7F80,
    "F16": 0x7C00,
    "F8_E5M2": 0x7C,
    "F8_E4M3": 0x7F,
}
# Formats whose only value that is not finite is one NaN.
_SINGLE_NAN = {"F8_E8M0": 0xFF, "F8_E4M3FNUZ": 0x80, "F8_E5M2FNUZ": 0x80}


class Nonfinite(NamedTuple):
    """Values of one tensor that are no finite numbers."""

    file: str
    tensor: str
    num_nan: int
    num_inf: int
    first: tuple[int, ...]
    """Index of the first one in the tensor."""


def judge(found: list[Nonfinite], *, where: str, allow_nonfinite: bool) -> None:
    """Log what was found if that is allowed.

    Raises:
        ModelError: It is not.
    """
    problem = f"{len(found)} tensors hold NaN or infinite weights: {'; '.join(map(_words, found[:_SHOWN]))}"
    if found and allow_nonfinite:
        _log.warning("%s; compressed as they are", problem)
    elif found:
        raise ModelError(
            problem,
            where=where,
            hint="the model is damaged or its training diverged; `allow_nonfinite` compresses it as it is",
        )


def _words(one: Nonfinite) -> str:
    counts = f"{one.num_nan} NaN" * bool(one.num_nan), f"{one.num_inf} Inf" * bool(one.num_inf)
    first = list(one.first)
    return f"{one.file}: {one.tensor}: {' and '.join(filter(None, counts))}, the first at {first}"


class Span(NamedTuple):
    """A part of a tensor inside a block: bytes ``start`` up to ``end`` of the file."""

    tensor: int
    start: int
    end: int


class Search:
    """Counts, per tensor of one file, what is not finite."""

    def __init__(self, file: str, tensors: list[tuple[str, TensorInfo]]) -> None:
        self._file, self._tensors = file, tensors
        self._found: dict[int, Nonfinite] = {}

    def look(self, block: memoryview, block_start: int, span: Span) -> None:
        """Count in a part of a tensor, which is part of a block that begins at byte ``block_start``."""
        import numpy as np

        name, tensor = self._tensors[span.tensor]
        if tensor.dtype not in _LIMITS and tensor.dtype not in _SINGLE_NAN:
            return
        size = 4 if tensor.dtype == "C64" else BITS[tensor.dtype] // 8
        count = (span.end - span.start) // size
        values = np.frombuffer(block, f"<u{size}", count, span.start - block_start)
        before = (span.start - tensor.start) // size
        for offset in range(0, count, _PIECE_BYTES // size):
            piece = values[offset : offset + _PIECE_BYTES // size]
            if not _has_nonfinite(piece, tensor.dtype):
                continue
            nan, inf = _nonfinite(piece, tensor.dtype)
            flat = before + offset + int(np.argmax(nan | inf))
            first = np.unravel_index(flat // (2 if tensor.dtype == "C64" else 1), tensor.shape)
            old = self._found.get(span.tensor) or Nonfinite(self._file, name, 0, 0, tuple(int(i) for i in first))
            counted = old._replace(num_nan=old.num_nan + int(nan.sum()), num_inf=old.num_inf + int(inf.sum()))
            self._found[span.tensor] = counted

    def found(self) -> list[Nonfinite]:
        """One record for each tensor that holds such values."""
        return list(self._found.values())


def _has_nonfinite(values: npt.NDArray[np.unsignedinteger[Any]], dtype: str) -> bool:
    if dtype in _SINGLE_NAN:
        return bool((values == _SINGLE_NAN[dtype]).any())
    # As signed integers the positive ones are the largest, as unsigned integers the negative ones.
    limit, bits = _LIMITS[dtype], values.itemsize * 8
    return int(values.view(f"<i{values.itemsize}").max()) >= limit or int(values.max()) >= limit + (1 << (bits - 1))


def _nonfinite(
    values: npt.NDArray[np.unsignedinteger[Any]], dtype: str
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where values are NaN, and where they are infinite."""
    if dtype in _SINGLE_NAN:
        nan = values == _SINGLE_NAN[dtype]
        return nan, nan & False
    magnitude = values & ((1 << (values.itemsize * 8 - 1)) - 1)
    inf = (magnitude == _LIMITS[dtype]) & (dtype != "F8_E4M3")
    return (magnitude >= _LIMITS[dtype]) & ~inf, inf
