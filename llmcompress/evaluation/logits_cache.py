"""The reference's logits on disk: it is scored once, exactly, and several candidates are measured against it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.system.files import free_bytes, replacing
from llmcompress.system.json_file import noted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SHARE_OF_DISK = 0.5
"""Of what is free, to be taken at most."""
_PROPERTIES = "properties.json"
STEP = 2.0**-10
"""Of rounded logits, in nats: by so much each is off at most, counted from that of the likeliest token."""
NEAR_NATS = 48
"""Below the likeliest token's logit; farther down, with a probability of less than 1e-20, steps are of half a nat.

The last of them, 8 thousand nats down, stands for tokens that are ruled out as well.
"""
_NUM_NEAR = int(NEAR_NATS / STEP)
_FARTHEST = 2**16 - 1


class LogitsCache:
    """One file for each call, ``[batch, positions, vocabulary]``, in a directory that whoever made it removes."""

    def __init__(self, directory: Path, num_logits: int, *, rounded: bool = False) -> None:
        """Begin to keep in a directory, which need not exist.

        Args:
            directory: Of one reference, text and way to feed it.
            num_logits: All that will be kept; nothing is where the disk has less than twice what is missing free.
            rounded: In two bytes each in place of four, off by up to ``STEP``; the likeliest token stays the likeliest.
        """
        self.directory = directory
        self.num_bytes = num_logits * (2 if rounded else 4)
        self.is_rounded = rounded
        self.refusal: OSError | None = None
        """Of the disk."""
        try:
            missing = self.num_bytes - sum(each.stat().st_size for each in directory.glob("*.npy"))
            self.has_room = missing <= free_bytes(directory) * _SHARE_OF_DISK
            if self.has_room:
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._refused(error)

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

        return _logits_of_steps()[kept] if self.is_rounded else np.array(kept)

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
            # The directory is not made again: whoever gave it may have removed it.
            with replacing(self.directory / name, durable=False) as file:
                write(file)
        except OSError as error:
            self._refused(error)

    def _refused(self, error: OSError) -> None:
        self.has_room, self.refusal = False, error


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
    # Of a token that is ruled out the difference is beyond f32.
    with np.errstate(over="ignore"):
        below = largest - logits
        counted = np.where(below < NEAR_NATS, below / np.float32(STEP), _NUM_NEAR + 2 * (below - NEAR_NATS))
    # At least 1, for the others; the first of equally likely ones is taken for the likeliest, as greedy decoding does.
    steps: NDArray[Any] = np.clip(np.rint(counted), 1, _FARTHEST).astype(np.uint16)
    np.put_along_axis(steps, logits.argmax(axis=-1)[..., None], 0, axis=-1)
    return steps


@functools.cache
def _logits_of_steps() -> NDArray[Any]:
    """The logit of each number of steps, f32."""
    import numpy as np

    steps = np.arange(_FARTHEST + 1)
    return np.where(steps < _NUM_NEAR, steps * -STEP, -NEAR_NATS - (steps - _NUM_NEAR) / 2).astype(np.float32)


def _name(numbers: Sequence[int], call: int) -> str:
    return f"{numbers[0]:08d}-{len(numbers)}-{call:06d}.npy"
