"""The records of a forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from llmcompress.loaders.quantized.stored import StoredWeight
from llmcompress.report.record import Record

BY_SENSITIVITY = "by sensitivity"
"""Mode of a layer that mixed precision decides on only when it sees the weights."""

Kind = Literal["matmul", "embedding", "convolution"]


class Weight(NamedTuple):
    """One weight constant that the converted graph will hold."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    in_axis: int
    """The axis that is summed over; groups lie along it."""
    dtype: str
    """Element type in the converted graph before compression: bf16, f16 or f32."""
    is_head: bool = False
    """The output head with a weight of its own (not the embedding's)."""
    ignored: bool = False
    """Left out by the recipe's ignored scope; known for a graph only."""

    @property
    def num_parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def in_channels(self) -> int:
        """Length of the axis that is summed over."""
        return self.shape[self.in_axis]


class Inventory(NamedTuple):
    """All constants of a model that the converted graph will hold. Sizes in bytes."""

    num_parameters: int
    weights: tuple[Weight, ...]
    leftover_bytes: int
    """Norms, biases, rotary tables: constants that no weight compression touches."""
    checkpoint_bytes: int
    """The weights as the source's files hold them."""
    mapped_bytes: int
    """Part of ``checkpoint_bytes`` that the graph shows in place, mapped from the files."""
    merged_bytes: int
    """Part of ``checkpoint_bytes`` that transformers puts together from several tensors, in new memory."""
    cast_bytes: int
    """Weights held once more in f32 because the exporter cannot use them as they are stored."""
    rewritten_bytes: int
    """Weights that the converter cuts into parts or transposes, in new memory."""
    num_modules: int
    """Linear layers, embeddings and norms: the size of the graph follows it."""
    vocab_size: int
    notes: tuple[str, ...] = ()
    stored: tuple[StoredWeight, ...] = ()
    """The weights that the source's files hold quantized."""
    keeps_codes: bool = False
    """Whether they go into the graph so."""
    parts: Mapping[str, tuple[Weight, ...]] = {}
    """Of a vision-language model the weights that are not its language model's, by the exporter's names of parts: the
    table of embeddings, and all that comes of the picture as ``vision_embeddings_model``."""

    @property
    def all_weights(self) -> tuple[Weight, ...]:
        """Those of all parts."""
        return (*self.weights, *(weight for part in self.parts.values() for weight in part))


class PlannedLayer(Record):
    """One weight of the model and what the recipe makes of it."""

    name: str
    """Name in the torch model, or in the graph when the source is an OpenVINO IR."""
    shape: tuple[int, ...]
    num_parameters: int
    mode: str
    """NNCF's CompressWeightsMode value, an element type (bf16, f16, f32) when left as it is, or 'by sensitivity'."""
    group_size: int | None
    """Along the input channels; -1 per channel; None when uncompressed or not known yet."""
    size_bytes: int
    """With scales and zero points; under mixed precision the expected share of both precisions."""
    stored_as: str | None = None
    """The source's format, whose codes are kept; None where there are none."""


class Forecast(Record):
    """What compressing would give and take, and what this machine has. Sizes in bytes."""

    num_parameters: int
    layers: tuple[PlannedLayer, ...]
    size_bytes: int
    """Predicted size of ``openvino_model.bin``."""
    bits_per_weight: float
    mapped_share: float
    """Share of the weights that stays mapped from the source's files instead of being copied."""
    peak_rss_bytes: int
    """Predicted peak resident memory of the run, mapped file pages included."""
    min_memory_bytes: int
    """Part of the peak that the system cannot drop under pressure; the run needs at least this much."""
    codes_on_disk: bool = False
    """Whether, for want of memory, codes wait in a temporary file next to the output until they are saved."""
    disk_bytes: int
    """Needed next to the output directory: the output itself, and codes that wait on disk; nothing elsewhere."""
    training_bytes: int = 0
    """What a training keeps in the cache while it runs."""
    available_memory_bytes: int
    free_disk_bytes: int
    free_cache_bytes: int = 0
    fits: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Those of the notes of which a run warns: layers that get another precision than asked, and what may fail."""
