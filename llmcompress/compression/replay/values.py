"""The bytes of a kept graph's constants, and the formats of its codes, as the kernels take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmcompress.compression.kernels.floating import Floats
from llmcompress.compression.kernels.integers import Integers
from llmcompress.compression.replay.content import TensorMemory
from llmcompress.compression.replay.skeleton import CodeFormat, ConstantValues, TensorPiece

if TYPE_CHECKING:
    from numpy.typing import NDArray


def plain_format(codes: Integers | Floats) -> CodeFormat:
    """A format as a file holds it."""
    fields = {name: np.asarray(value).tolist() for name, value in codes._asdict().items()}
    return CodeFormat(is_float=isinstance(codes, Floats), fields=fields)


def format_of(stored: CodeFormat) -> Integers | Floats:
    """A format as the kernels take it."""
    fields: dict[str, Any] = stored.fields
    if stored.is_float:
        return Floats(
            np.asarray(fields["midpoints"], np.float32),
            fields["mantissa_bits"],
            fields["bias"],
            np.uint32(fields["largest_code"]),
            np.float32(fields["largest"]),
            fields["num_bits"],
        )
    low, high = np.float32(fields["low"]), np.float32(fields["high"])
    return Integers(low, high, fields["is_asymmetric"], np.int32(fields["offset"]), fields["num_bits"])


def values_of(values: ConstantValues, tensors: TensorMemory) -> NDArray[np.uint8]:
    """The bytes of a constant of the uncompressed graph; where they lie in one piece, in the file's own memory."""
    pieces = [_piece(piece, tensors) for piece in values.pieces]
    found = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if values.widened == "BF16":
        return (found.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.uint8)
    if values.widened == "F16":
        return found.view(np.float16).astype(np.float32).view(np.uint8)
    return found


def _piece(piece: TensorPiece, tensors: TensorMemory) -> NDArray[np.uint8]:
    found = tensors.bytes_of(piece.tensor)[piece.start : piece.stop]
    if piece.turned is None:
        return found
    rows, columns = piece.turned
    matrix = found.view(f"u{len(found) // (rows * columns)}").reshape(rows, columns)
    return np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8)
