"""What runs of NNCF on a decoder share: inputs, scope, progress, refusals, and the marks that Optimum would leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.graph.joining import text_feed
from llmcompress.graph.model import unpin_cache
from llmcompress.spec import IgnoredScope
from llmcompress.system.patching import replaced
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import nncf
    import numpy as np
    import openvino as ov

FLOAT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "f8e4m3": 1, "f8e5m2": 1}
"""Of one value, by NNCF's names of types."""


@dataclass(frozen=True)
class Samples:
    """What a graph is calibrated with, one call each; the inputs of a call are made when they are asked for."""

    items: Sequence[Any]
    feed: Callable[[Any], dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self.feed, self.items)

    def dataset(self) -> nncf.Dataset:
        """The same for NNCF."""
        import nncf

        return nncf.Dataset(self.items, self.feed)


def model_inputs(model: ov.Model, token_ids: np.ndarray) -> Samples:
    """Windows of text for a decoder that takes token ids.

    Args:
        model: The decoder.
        token_ids: int64 ``[num_windows, seq_len]``.
    """
    return Samples(list(token_ids), text_feed(model))


def nncf_scope(scope: IgnoredScope) -> nncf.IgnoredScope:
    """A recipe's ignored scope as NNCF takes it."""
    import nncf

    return nncf.IgnoredScope(names=list(scope.names), patterns=list(scope.patterns), types=list(scope.types))


def mark_as_optimized(model: ov.Model) -> None:
    """Write and lift the hints that Optimum writes and lifts for a model that NNCF has worked on."""
    import nncf

    model.set_rt_info(nncf.__version__, ["optimum", "nncf_version"])
    unpin_cache(model)


@contextlib.contextmanager
def refusals_explained(*, where: str, hint: str) -> Iterator[None]:
    """Raise what NNCF refuses as a ModelError at ``where`` in the recipe."""
    import nncf

    try:
        yield
    except (nncf.ValidationError, nncf.ParameterNotSupportedError, nncf.UnsupportedModelError) as error:
        raise ModelError(
            f"NNCF refuses these settings for this model: {str(error).strip()}", where=where, hint=hint
        ) from error


@contextlib.contextmanager
def progress_reported(progress: Reporter) -> Iterator[None]:
    """Send NNCF's own progress bars to ``progress`` instead of the terminal."""
    from nncf.common.logging.track_progress import track

    def iterate(self: Any) -> Iterator[Any]:
        stage = str(self.description).lower()
        items: Iterable[Any] = self.sequence
        sizes, unit = _sizes(self)
        total = int(sum(sizes) if sizes else self.total or (len(self.sequence) if hasattr(items, "__len__") else 0))
        done = 0
        progress(Progress(stage, 0, total, unit))
        for index, item in enumerate(items):
            yield item
            done += sizes[index] if sizes else 1
            progress(Progress(stage, done, total, unit))

    with replaced(track, "__iter__", iterate):
        yield


def _sizes(track: Any) -> tuple[list[int], str]:
    """What each step of one of NNCF's progress bars takes: bytes as stored, where steps are the weights of layers."""
    if track.weights is None:
        return [], "steps"
    counts = [int(count) for count in track.weights]
    dtypes = [str(getattr(item, "weight_dtype", "")).rpartition(".")[2].lower() for item in track.sequence]
    if not all(dtype in FLOAT_BYTES for dtype in dtypes):
        return counts, "weights"
    return [count * FLOAT_BYTES[dtype] for count, dtype in zip(counts, dtypes, strict=True)], "bytes"
