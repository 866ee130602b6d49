"""Scores by batch, kept in the cache: an interrupted evaluation goes on from them, a reference is scored once."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmcompress.system.cache import cache_dir, hold
from llmcompress.system.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


class StoredScores:
    """The arrays of each window of a batch, one file for a batch, below ``cache_dir() / kind / key``."""

    def __init__(self, kind: str, key: str) -> None:
        self._directory = cache_dir() / kind / key
        hold(self._directory)

    def get(self, numbers: Sequence[int]) -> list[Arrays] | None:
        """The scores of a batch of windows; None where they are not there or were not written to their end."""
        import numpy as np

        with (
            contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile),
            np.load(self._directory / self._name(numbers)) as stored,
        ):
            if tuple(stored["numbers"]) != tuple(numbers):
                return None
            found: list[Arrays] = [{} for _ in numbers]
            for name in stored.files:
                row, slash, field = name.partition("/")
                if slash:
                    found[int(row)][field] = stored[name]
            return found
        return None

    def add(self, numbers: Sequence[int], by_window: Sequence[Arrays]) -> bool:
        """Write the scores of a batch, by one rename. False: the cache's disk refuses, which stops no evaluation."""
        import numpy as np

        named = {f"{row}/{name}": values for row, scores in enumerate(by_window) for name, values in scores.items()}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with replacing(self._directory / self._name(numbers), durable=False) as file:
                np.savez(file, allow_pickle=False, numbers=np.array(numbers), **named)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Remove them all."""
        shutil.rmtree(self._directory, ignore_errors=True)

    @staticmethod
    def _name(numbers: Sequence[int]) -> str:
        return f"{numbers[0]:08d}.npz"
