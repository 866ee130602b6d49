"""From which tensors a graph's constants come: found in a graph that was converted from known tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcompress.compression.replay.skeleton import ConstantValues, TensorPiece
from llmcompress.system.memory import same_bytes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_MARK_BYTES = 32
_LEAST_ROWS_BYTES = 1 << 16
"""Of a part of a tensor that begins within it."""


class Origins:
    """Tensors by their memory, and by what they begin with."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a model's tensors, whose memory stays."""
        import torch

        self._bytes: dict[str, NDArray[np.uint8]] = {}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._sizes = {name: tensor.element_size() for name, tensor in tensors.items()}
        self._by_address: dict[int, str] = {}
        self._by_mark: dict[bytes, list[str]] = defaultdict(list)
        self._turned_by_mark: dict[bytes, list[str]] = defaultdict(list)
        self._rows_by_mark: dict[bytes, list[tuple[str, int]]] | None = None
        for name, tensor in tensors.items():
            flat = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else None
            if flat is None or name in self._bytes:
                continue
            self._bytes[name] = flat
            self._by_address.setdefault(flat.ctypes.data, name)
            self._by_mark[flat[:_MARK_BYTES].tobytes()].append(name)
            if len(tensor.shape) == 2:
                count = _MARK_BYTES // tensor.element_size()
                column = tensor[:count, 0].contiguous().view(torch.uint8).numpy().tobytes()
                self._turned_by_mark[column].append(name)

    def of(self, constant: NDArray[Any], element: str) -> ConstantValues | None:
        """Where the values of a constant come from; None: from no tensor, or in a way that cannot be said.

        Args:
            constant: Its memory.
            element: OpenVINO's name of its type.
        """
        import numpy as np

        flat = constant.reshape(-1).view(np.uint8)
        name = self._by_address.get(flat.ctypes.data)
        if name is not None and len(flat) == len(self._bytes[name]):
            return ConstantValues(element=element, pieces=(self._whole(name),))
        pieces = self._pieces(flat)
        if pieces:
            return ConstantValues(element=element, pieces=pieces)
        if element == "f32":
            return self._widened(flat)
        return None

    def _whole(self, name: str) -> TensorPiece:
        return TensorPiece(tensor=name, start=0, stop=len(self._bytes[name]))

    def _widened(self, flat: NDArray[np.uint8]) -> ConstantValues | None:
        import numpy as np

        bits = flat.view(np.uint32)
        if not (bits & np.uint32(0xFFFF)).any():
            pieces = self._pieces((bits >> np.uint32(16)).astype(np.uint16).view(np.uint8))
            if pieces:
                return ConstantValues(element="f32", pieces=pieces, widened="BF16")
        with np.errstate(over="ignore"):
            half = flat.view(np.float32).astype(np.float16)
        if same_bytes(half.astype(np.float32).view(np.uint8), flat):
            pieces = self._pieces(half.view(np.uint8))
            if pieces:
                return ConstantValues(element="f32", pieces=pieces, widened="F16")
        return None

    def _pieces(self, flat: NDArray[np.uint8]) -> tuple[TensorPiece, ...]:
        """The tensors, or parts of one, that lie one after another in a constant; none: not all of it is known."""
        found: list[TensorPiece] = []
        at = 0
        while at < len(flat):
            piece = self._next(flat[at:])
            if piece is None:
                return ()
            found.append(piece)
            at += piece.stop - piece.start
        return tuple(found)

    def _next(self, rest: NDArray[np.uint8]) -> TensorPiece | None:
        mark = rest[:_MARK_BYTES].tobytes()
        for name in self._by_mark.get(mark, ()):
            own = self._bytes[name]
            stop = min(len(own), len(rest))
            if same_bytes(own[:stop], rest[:stop]):
                return TensorPiece(tensor=name, start=0, stop=stop)
        turned = self._turned(rest, mark)
        return turned or (self._rows(rest, mark) if len(rest) >= _LEAST_ROWS_BYTES else None)

    def _turned(self, rest: NDArray[np.uint8], mark: bytes) -> TensorPiece | None:
        import numpy as np

        for name in self._turned_by_mark.get(mark, ()):
            own, (rows, columns), size = self._bytes[name], self._shapes[name], self._sizes[name]
            if len(own) > len(rest):
                continue
            matrix = own.view(f"u{size}").reshape(rows, columns)
            if same_bytes(np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8), rest[: len(own)]):
                return TensorPiece(tensor=name, start=0, stop=len(own), turned=(rows, columns))
        return None

    def _rows(self, rest: NDArray[np.uint8], mark: bytes) -> TensorPiece | None:
        """As many rows of one tensor as follow one another."""
        if self._rows_by_mark is None:
            self._rows_by_mark = defaultdict(list)
            for name, own in self._bytes.items():
                if len(self._shapes[name]) < 2:
                    continue
                width = len(own) // self._shapes[name][0]
                for start in range(width, len(own), width):
                    self._rows_by_mark[own[start : start + _MARK_BYTES].tobytes()].append((name, start))
        for name, start in self._rows_by_mark.get(mark, ()):
            own = self._bytes[name]
            stop = min(len(own), start + len(rest))
            if same_bytes(own[start:stop], rest[: stop - start]):
                return TensorPiece(tensor=name, start=start, stop=stop)
        return None
