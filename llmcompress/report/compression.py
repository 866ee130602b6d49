"""What a compression did: the manifest of an output directory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from llmcompress.report.file_names import MODEL, model_files
from llmcompress.report.pruning import PruningRecord
from llmcompress.report.readable import Readable
from llmcompress.report.record import CalibrationRecord, EnvironmentRecord, FileRecord, Measured, Provenance, Record
from llmcompress.report.text import count_text, duration_text, size_text
from llmcompress.report.training import TrainingRecord
from llmcompress.report.tuning import TuningOrigin
from llmcompress.spec import Recipe

Engine = Literal["llmcompress", "nncf"]
"""Whose arithmetic makes the codes of weights."""


class LayerRecord(Record):
    """One weight constant of the produced graph."""

    name: str
    shape: tuple[int, ...]
    num_parameters: int
    mode: str
    """NNCF's CompressWeightsMode value (or fp8_e5m2), or the element type (bf16, f16, f32) when left uncompressed."""
    group_size: int | None
    """Group size along the input channels; -1 per channel; None when uncompressed."""
    size_bytes: int
    """Bytes of the weight with its scales, zero points and other constants."""
    engine: str | None = "nncf"
    """Whose arithmetic made the codes, llmcompress or nncf; None when uncompressed, or kept of the source.

    The same bytes by either, but for GPTQ: its sums are rounded otherwise, so that a few codes differ.
    """

    stored_as: str | None = None
    """The format of a source that is quantized already, whose codes are kept here; None where none are."""
    relative_rounding: float | None = None
    """The largest of its scales and zero points; 0: the weight is exactly that of the source. None as above."""

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers, which alone meet dynamically quantized activations."""
        return self.mode.startswith("int")


def integer_group_sizes(layers: Iterable[LayerRecord]) -> set[int]:
    """Group sizes of integer weights; not of those per channel."""
    sizes = {layer.group_size for layer in layers if layer.is_integer}
    return {size for size in sizes if size is not None and size > 0}


def runtime_options(recipe: Recipe, layers: Iterable[LayerRecord]) -> dict[str, str]:
    """The recipe's hints by OpenVINO's names, for a model with these layers."""
    return recipe.runtime.resolved(integer_group_sizes(layers)).properties()


class OperationCount(Record):
    """Operations of one type, by whether all their computed inputs are quantized."""

    type: str
    """OpenVINO's name of the operation."""
    num_quantized: int
    num_in_float: int


class FloatOperation(Record):
    """One operation that computes in floating point although activations are quantized."""

    name: str
    type: str
    reason: str


class RevertRecord(Record):
    """Operations that went back to floating point together, since they share quantizers."""

    operations: tuple[str, ...]
    added_bytes: int
    """What their weights take more than in 8 bits."""
    drop_before: float
    drop_after: float
    """With these and all reverted before them in floating point."""


class AccuracyRecord(Record):
    """What accuracy control did: drops of the metric on held-out windows, in its unit."""

    metric: str
    max_drop: float
    met: bool
    validation: CalibrationRecord
    """The held-out windows."""
    reference: float
    """The metric before activations were quantized."""
    drop_quantized: float
    """With everything quantized."""
    drop: float
    """Of the model that was written."""
    reverted: tuple[RevertRecord, ...]
    """In the order in which they were reverted."""


class ActivationRecord(Record):
    """What quantizing activations came to: in the graph, and on the device."""

    mode: str
    num_quantizers: int
    """FakeQuantize or FakeConvert nodes on activations."""
    operations: tuple[OperationCount, ...]
    in_float: tuple[FloatOperation, ...]
    device: str
    """Where the graph was compiled to see what is executed."""
    num_executed_low: int
    """Matrix multiplications that the plugin executes in 8 bits; a quantizer before any other only costs."""
    executed: dict[str, int]
    """Matrix multiplications that the plugin executes, by the precision it computes in."""
    accuracy: AccuracyRecord | None = None
    """None without accuracy control."""


class KeptRecord(Record):
    """What was kept of a source that is quantized already."""

    num_layers: int
    max_relative_rounding: float = 0.0
    """Of scales and zero points; 0: every weight is exactly that of the source."""
    device: str = "CPU"
    """Where a part of each kind of layer was compiled."""
    executed: dict[str, str]
    """The precision of weights that it multiplies with, by what they are; floats: it expands them in memory."""


class PartRecord(Record):
    """One part of a vision-language model, and what its weights became."""

    name: str
    """As the exporter names it; its files are ``openvino_NAME.xml`` and ``openvino_NAME.bin``."""
    size_bytes: int
    """Of its weights."""
    sha256: str
    """The same."""
    layers: tuple[LayerRecord, ...]


class CompressionReport(Readable):
    """The manifest ``llmcompress.json``: equal for equal inputs, recipe and versions, apart from ``measured``."""

    schema_version: int = 1
    llmcompress_version: str
    provenance: Provenance
    recipe: Recipe
    calibration: CalibrationRecord | None
    environment: EnvironmentRecord
    num_parameters: int
    bits_per_weight: float
    size_bytes: int
    """Sum of the sizes of ``files``."""
    mapped_share: float
    """Share of the weights that stayed mapped from the source's files instead of being copied."""
    tokenizer: Literal["equal", "none"]
    """The converted tokenizer against the original on mixed text; none when it was left out."""
    chat_template: Literal["equal", "none", "not checked"]
    """The chat template as OpenVINO GenAI renders it against the original; not checked without openvino-genai."""
    layers: tuple[LayerRecord, ...]
    """Of a vision-language model those of its language model."""
    parts: tuple[PartRecord, ...] = ()
    """Of a vision-language model all of its parts, the language model first; of a text model none."""
    activations: ActivationRecord | None = None
    """None where activations are not quantized."""
    pruning: PruningRecord | None = None
    """None where nothing was taken away."""
    training: TrainingRecord | None = None
    """None where the bits are those that the compression made, and nothing was healed."""
    kept: KeptRecord | None = None
    """None where the source was not quantized already, or is not kept so."""
    tuning: TuningOrigin | None = None
    """None where the runtime options are the recipe's own."""
    transformers: str | None = None
    """The versions of transformers with which Optimum's own classes convert and run it, as pip reads them; OpenVINO
    GenAI needs none. None where a newer version is no hindrance, and of a model that came as an IR."""
    files: tuple[FileRecord, ...]
    measured: Measured

    @property
    def model_files(self) -> tuple[FileRecord, ...]:
        """The files with its weights."""
        names = {model_files(part)[1] for part in [part.name for part in self.parts] or [MODEL]}
        return tuple(file for file in self.files if file.path in names)

    @property
    def runtime_options(self) -> dict[str, str]:
        """What the model holds for the plugin, by OpenVINO's names."""
        return runtime_options(self.recipe, self.layers)

    @property
    def texts(self) -> dict[str, CalibrationRecord]:
        """What was read to make it: to calibrate with, to train on and to validate on, where it was."""
        training = self.training
        read = {
            "calibration": self.calibration,
            "training": training.windows if training else None,
            "validation": training.validation if training else None,
        }
        return {name: record for name, record in read.items() if record is not None}

    def facts(self) -> dict[str, str]:
        """What it was made of and how, its size, and what the weights became."""
        return {
            "source": self.provenance.id or self.provenance.architecture,
            "recipe": self.recipe.name,
            "parameters": count_text(self.num_parameters),
            "bits per weight": f"{self.bits_per_weight:.2f}",
            "size": size_text(self.size_bytes),
            "weights": formats_text(self.layers),
            "time": duration_text(self.measured.duration_s),
            "peak memory": size_text(self.measured.peak_rss_bytes),
        }


class Layer(Protocol):
    """What is summed up: a ``LayerRecord``, or a layer of a forecast."""

    @property
    def mode(self) -> str:
        """Its format."""

    @property
    def group_size(self) -> int | None:
        """-1: per channel; None: no groups."""

    @property
    def num_parameters(self) -> int:
        """Its elements."""

    @property
    def size_bytes(self) -> int:
        """Its bytes, scales and zero points included."""


class WeightKind(NamedTuple):
    """All weights of one format and group size."""

    mode: str
    group_size: int | None
    num_layers: int
    num_parameters: int
    share: float
    """Of all parameters."""
    size_bytes: int


def weight_kinds(layers: Iterable[Layer]) -> list[WeightKind]:
    """One entry for each format and group size, that with the most parameters first."""
    kinds: dict[tuple[str, int | None], list[Layer]] = defaultdict(list)
    for layer in layers:
        kinds[layer.mode, layer.group_size].append(layer)
    total = sum(layer.num_parameters for members in kinds.values() for layer in members)
    found = []
    for (mode, group_size), members in kinds.items():
        parameters = sum(layer.num_parameters for layer in members)
        size_bytes = sum(layer.size_bytes for layer in members)
        found.append(
            WeightKind(mode, group_size, len(members), parameters, parameters / total if total else 0.0, size_bytes)
        )
    return sorted(found, key=lambda kind: -kind.num_parameters)


def formats_text(layers: Iterable[Layer]) -> str:
    """Each format with its share of the parameters, that with the most first."""
    return ", ".join(f"{kind.mode} {kind.share:.0%}" for kind in weight_kinds(layers))


def group_size_text(group_size: int | None) -> str:
    """A group size in words; nothing where there are no groups."""
    return "" if group_size is None else "per channel" if group_size == -1 else str(group_size)
