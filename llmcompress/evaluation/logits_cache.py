"""The reference's logits, kept while several candidates are measured against it: it is scored once, exactly."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.system.files import replacing
from llmcompress.system.json_file import noted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SHARE_OF_DISK = 0.5
"""Of what is free, to be taken at most."""
_PROPERTIES = "properties.json"


class LogitsCache:
    """One file for each call, ``f32 [batch, positions, vocabulary]``, in a directory that whoever made it removes."""

    def __init__(self, directory: Path, num_bytes: int) -> None:
        """Begin to keep in a directory, which need not exist.

        Args:
            directory: Of one reference, text and way to feed it.
            num_bytes: What all of it will take; nothing is kept where the disk has less than twice that free.
        """
        self._directory = directory
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            self._has_room = num_bytes <= shutil.disk_usage(directory).free * _SHARE_OF_DISK
        except OSError:
            self._has_room = False

    def properties(self) -> dict[str, str] | None:
        """The reference's effective properties; None where it was not scored yet."""
        return noted(self._directory / _PROPERTIES) or None

    def keep_properties(self, properties: dict[str, str]) -> None:
        """Note the reference's effective properties."""
        self._write(_PROPERTIES, lambda file: file.write(json.dumps(properties).encode()))

    def get(self, numbers: Sequence[int], num_calls: int) -> list[NDArray[Any]] | None:
        """The logits of every call of a batch; None unless all are there."""
        import numpy as np

        try:
            # Mapped: a batch can be larger than the memory that is left.
            return [np.load(self._directory / _name(numbers, call), mmap_mode="r") for call in range(num_calls)]
        except (OSError, ValueError, EOFError):
            return None

    def add(self, numbers: Sequence[int], call: int, logits: NDArray[Any]) -> None:
        """Keep the logits of one call, by one rename; a disk that refuses stops no evaluation."""
        import numpy as np

        self._write(_name(numbers, call), lambda file: np.save(file, logits, allow_pickle=False))

    def _write(self, name: str, write: Any) -> None:
        if not self._has_room:
            return
        try:
            with replacing(self._directory / name, durable=False) as file:
                write(file)
        except OSError:
            self._has_room = False


def _name(numbers: Sequence[int], call: int) -> str:
    return f"{numbers[0]:08d}-{len(numbers)}-{call:06d}.npy"
