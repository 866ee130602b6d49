"""The reference's logits on disk: it is scored once, exactly, and several candidates are measured against it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.system.files import replacing
from llmcompress.system.json_file import noted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SHARE_OF_DISK = 0.5
"""Of what is free, to be taken at most."""
_PROPERTIES = "properties.json"
STEP = 2.0**-10
"""Of rounded logits, in nats: by so much each is off at most, counted from that of the likeliest token."""
_FARTHEST = 2**16 - 1
"""Steps below the likeliest token's; what lies farther below, with a probability of 2e-28, is brought there."""


class LogitsCache:
    """One file for each call, ``[batch, positions, vocabulary]``, in a directory that whoever made it removes."""

    def __init__(self, directory: Path, num_logits: int, *, rounded: bool = False) -> None:
        """Begin to keep in a directory, which need not exist.

        Args:
            directory: Of one reference, text and way to feed it.
            num_logits: All that will be kept; nothing is where the disk has less than twice that free.
            rounded: In two bytes each in place of four, off by up to ``STEP``; the likeliest token stays the likeliest.
        """
        self.directory = directory
        self.num_bytes = num_logits * (2 if rounded else 4)
        self.is_rounded = rounded
        existing = next((each for each in (directory, *directory.parents) if each.exists()), directory)
        try:
            self.has_room = self.num_bytes <= shutil.disk_usage(existing).free * _SHARE_OF_DISK
        except OSError:
            self.has_room = False

    def properties(self) -> dict[str, str] | None:
        """The reference's effective properties; None where it was not scored yet."""
        return noted(self.directory / _PROPERTIES) or None

    def keep_properties(self, properties: dict[str, str]) -> None:
        """Note the reference's effective properties."""
        self._write(_PROPERTIES, lambda file: file.write(json.dumps(properties).encode()))

    def get(self, numbers: Sequence[int], num_calls: int) -> list[NDArray[Any]] | None:
        """What was kept of every call of a batch, for ``opened``; None unless all are there."""
        import numpy as np

        try:
            # Mapped: a batch can be larger than the memory that is left.
            return [np.load(self.directory / _name(numbers, call), mmap_mode="r") for call in range(num_calls)]
        except (OSError, ValueError, EOFError):
            return None

    def opened(self, kept: NDArray[Any]) -> NDArray[Any]:
        """The logits of one call, f32; of rounded ones the differences to the likeliest token's."""
        import numpy as np

        return kept.astype(np.float32) * np.float32(-STEP) if self.is_rounded else np.array(kept)

    def add(self, numbers: Sequence[int], call: int, logits: NDArray[Any]) -> None:
        """Keep the logits of one call, by one rename; a disk that refuses stops no evaluation.

        Raises:
            ModelError: Logits that are to be rounded are not finite.
        """
        import numpy as np

        if self.has_room:
            kept = _steps(logits) if self.is_rounded else logits
            self._write(_name(numbers, call), lambda file: np.save(file, kept, allow_pickle=False))

    def _write(self, name: str, write: Any) -> None:
        if not self.has_room:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with replacing(self.directory / name, durable=False) as file:
                write(file)
        except OSError:
            self.has_room = False


def _steps(logits: NDArray[Any]) -> NDArray[Any]:
    """``u16``: steps from the likeliest token's logit down to each."""
    import numpy as np

    largest = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ModelError(
            "the reference gives NaN or infinite logits, which cannot be rounded",
            where="`reference`",
            hint='look for what is wrong with it; `reference_scores="exact"` counts the tokens',
        )
    # At least 1, for the others; the first of equally likely ones is taken for the likeliest, as greedy decoding does.
    steps: NDArray[Any] = np.clip(np.rint((largest - logits) / np.float32(STEP)), 1, _FARTHEST).astype(np.uint16)
    np.put_along_axis(steps, logits.argmax(axis=-1)[..., None], 0, axis=-1)
    return steps


def _name(numbers: Sequence[int], call: int) -> str:
    return f"{numbers[0]:08d}-{len(numbers)}-{call:06d}.npy"
