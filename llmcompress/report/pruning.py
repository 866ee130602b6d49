"""What a pruning took away, and what that cost."""

from __future__ import annotations

from llmcompress.report.record import Record


class PrunedLayer(Record):
    """What one decoder layer lost."""

    name: str
    """In the checkpoint's class."""
    dropped: tuple[int, ...]
    """Numbers of its experts, channels or groups of heads."""
    merged_into: tuple[int, ...] = ()
    """For each expert that was dropped, the one that took it up; empty: none did."""
    coverage: float | None = None
    """Of experts: share of the text's choices that fell on those that are kept."""


class PruningRecord(Record):
    """What was taken away."""

    method: str
    num_parameters_before: int
    num_parameters: int
    speedup: float | None = None
    """Of a new token, which decided how many decoder layers went; None: something else did."""
    layers: tuple[int, ...] = ()
    """Decoder layers that were dropped, by their numbers in the original, in the order in which they were chosen."""
    layer_scores: tuple[float, ...] = ()
    """KL divergence of dropping each decoder layer alone, in nats a token on the text."""
    parts: tuple[PrunedLayer, ...] = ()
    """What single layers lost."""
    density: float | None = None
    """Share of the weights of decoder layers that are not zero; None: whole parts were taken away."""
    kl_divergence: float | None = None
    """To the original on the text, in torch, before any healing; None: no text was needed."""
    kl_divergence_healed: float | None = None
    """After it, on the same windows."""
    archive_share: float | None = None
    """Size of the weights in a compressed archive (zlib), as a share of their size, where zeros were set."""
