"""What every weight costs in every format: bytes as they are stored, and KL divergence as its actual error predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.compression.layers import layer_table
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.graph.integer_weights import integer_weights
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.spec import WeightCompression
from llmcompress.spec.modes import INT8
from llmcompress.spec.search import Format
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import torch


class Candidate(NamedTuple):
    """A weight in a format."""

    weight: str
    """Its name in the checkpoint."""
    format: Format
    num_parameters: int
    size_bytes: int
    kl_divergence: float
    """Predicted, in nats per token."""


class Table(NamedTuple):
    """What weights cost in formats."""

    candidates: list[Candidate]
    """Of the spec's formats, and ``BACKUP``."""
    formats: tuple[Format, ...]
    special: frozenset[str]
    """Embeddings and the head."""
    num_tokens: int

    @property
    def permitted(self) -> list[Candidate]:
        """Of the formats that the spec names."""
        return [each for each in self.candidates if each.format in self.formats]


def uniform(wanted: Format, *, all_layers: bool = False) -> WeightCompression:
    """One format for all layers; embeddings and the head take NNCF's backup precision unless ``all_layers``."""
    if wanted.mode in INT8:
        return WeightCompression.model_validate({"mode": wanted.mode})
    fields = {"mode": wanted.mode, "group_size": wanted.group_size, "all_layers": all_layers}
    if wanted.group_size != -1:
        fields["group_size_fallback"] = "ignore"
    return WeightCompression.model_validate(fields)


def candidates(
    loaded: LoadedModel,
    parameters: Mapping[str, torch.Tensor],
    sensitivity: Mapping[str, torch.Tensor],
    num_tokens: int,
    formats: Sequence[Format],
    progress: Reporter,
) -> list[Candidate]:
    """Compress a copy of the graph in each format, and weigh each weight's error by its sensitivity.

    Args:
        loaded: Uncompressed.
        parameters: Of the original, by name, f32.
        sensitivity: What ``fisher`` gave for them.
        num_tokens: That it saw.
        formats: To try; weights whose channels a group size does not divide go without that one.
        progress: Told of every format.
    """
    import torch

    found = []
    for number, wanted in enumerate(formats):
        progress(Progress("candidates", number, len(formats), "formats"))
        model = loaded.clone().model
        compress_weights(model, uniform(wanted, all_layers=True))
        records = {layer.name: layer for layer in layer_table(model)}
        for constant, weight in integer_weights(model).items():
            name, record = parameter_name(constant), records.get(constant)
            if record is None or name not in sensitivity or (record.mode, record.group_size) != tuple(wanted):
                continue
            original = parameters[name]
            error = torch.from_numpy(weight.values()).reshape(original.shape).sub_(original)
            cost = float(error.square_().mul_(sensitivity[name]).sum()) / (2 * num_tokens)
            found.append(Candidate(name, wanted, record.num_parameters, record.size_bytes, cost))
    progress(Progress("candidates", len(formats), len(formats), "formats"))
    return found
