"""Which format the weights take, and by which methods: the arguments of ``nncf.compress_weights`` as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmcompress.spec.advanced import AdvancedCompression
from llmcompress.spec.layer_rules import LayerRule, first_rule
from llmcompress.spec.modes import (
    DEFAULT_BACKUP,
    BackupMode,
    GptqOrder,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
    Statistics,
    StatisticsPrecision,
    default_group_size,
)
from llmcompress.spec.validation import GroupSize, Refusal, StrictModel, Texts, is_pattern
from llmcompress.spec.weight_refusals import weight_refusals


class IgnoredScope(StrictModel):
    """Nodes of the OpenVINO graph that stay as they are."""

    names: Texts = ()
    """Friendly names."""
    patterns: Texts = ()
    """Python regular expressions, matched from the start of a friendly name."""
    types: Texts = ()
    """Operation types, for example ``MatMul`` or ``Gather``."""

    @field_validator("names", "patterns", "types")
    @classmethod
    def _no_repeats(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise PydanticCustomError("repeated", "every entry once is accepted")
        return values

    @field_validator("patterns")
    @classmethod
    def _compile(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(is_pattern, values)):
            raise PydanticCustomError("pattern", "Python regular expressions are accepted")
        return values

    @property
    def is_empty(self) -> bool:
        """Whether it names nothing."""
        return not (self.names or self.patterns or self.types)

    def matches(self, name: str, op_type: str) -> bool:
        """Whether a node of that friendly name and operation type is in it."""
        return name in self.names or op_type in self.types or any(re.match(pattern, name) for pattern in self.patterns)


class WeightCompression(StrictModel):
    """How the weights are compressed; refused here is what ``nncf.compress_weights`` refuses or would ignore.

    ``mode`` is the format of the linear layers. Embeddings, the last layer and, below ``ratio`` 1.0, the most
    sensitive layers take ``backup_mode``.
    """

    mode: Mode
    group_size: GroupSize | None = None
    """Weights along the input channels that share a scale; -1: all of an output channel; None: the mode's default."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the linear layers' weights that takes ``mode``; 0.0 means no layer."""
    all_layers: bool = False
    """Embeddings and the last layer take ``mode`` as well."""
    backup_mode: BackupMode | None = None
    sensitivity_metric: SensitivityMetric | None = None
    """Which layers ``ratio`` spares. None: by the weights alone, or by activations where there is calibration data."""
    ignored_scope: IgnoredScope = IgnoredScope()
    group_size_fallback: GroupSizeFallback = "error"
    """For layers whose channels the group size does not divide: ``error`` refuses them, ``adjust`` takes the largest
    power of two that divides them or else the backup mode, ``ignore`` leaves them."""
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    lora_correction: bool = False
    rules: Annotated[tuple[LayerRule, ...], Field(strict=False)] = ()
    """Formats of single weights; the first rule that takes a weight decides, and ``ratio`` does not count it."""
    statistics: Statistics = "compressed"
    """Whose activations GPTQ goes by: ``compressed``, of the model whose earlier layers are compressed, as NNCF does;
    ``original``, so that a weight's codes depend on that weight alone. An embedding whose rule says ``method: gptq``
    has its codes by GPTQ then too, from gradients of the original model."""
    gptq_order: GptqOrder = "columns"
    """In which GPTQ rounds the input channels: ``columns``, as they lie, as NNCF does; ``activations``, those of the
    largest activations first, with scales of the weights as they were. Experts and modes without integers, which are
    left to NNCF, keep its order."""
    statistics_precision: StatisticsPrecision = "f32"
    """In what the activations are computed that AWQ, scale estimation and others go by; f32 is what NNCF takes."""
    advanced: AdvancedCompression = AdvancedCompression()

    def _refusals(self) -> Iterator[Refusal]:
        yield from weight_refusals(self)

    def gives_gptq(self, embedding: str) -> bool:
        """Whether an embedding of that name in the checkpoint has its codes from GPTQ, which a rule has to say."""
        rule = first_rule(self.rules, embedding, "Gather")
        return self.gptq and self.statistics == "original" and rule is not None and rule.method == "gptq"

    @property
    def effective_group_size(self) -> int:
        """The group size NNCF works with; -1 is one group per output channel."""
        return default_group_size(self.mode) if self.group_size is None else self.group_size

    @property
    def integer_group_sizes(self) -> tuple[int, ...]:
        """The group sizes of integers, which dynamically quantized activations can follow."""
        formats = [(self.mode, self.effective_group_size), *((r.mode, r.effective_group_size) for r in self.rules)]
        return tuple(size for mode, size in formats if mode.startswith("int") and size > 0)

    @property
    def effective_backup_mode(self) -> BackupMode:
        """The backup mode NNCF works with."""
        return self.backup_mode or DEFAULT_BACKUP.get(self.mode, "int8_asym")

    @property
    def selects_layers(self) -> bool:
        """Whether a sensitivity metric decides which layers take ``mode``."""
        return 0.0 < self.ratio < 1.0 and self.mode != self.effective_backup_mode

    @property
    def leaves_weights(self) -> bool:
        """Whether it can leave layers in floating point."""
        by_scope = not self.ignored_scope.is_empty
        by_rule = any(rule.mode == "none" for rule in self.rules)
        return by_scope or by_rule or self.effective_backup_mode == "none" or self.group_size_fallback == "ignore"

    @property
    def needs_data(self) -> bool:
        """Whether it cannot run without calibration data."""
        data_free = (None, "weight_quantization_error")
        return (
            self.scale_estimation
            or self.gptq
            or self.lora_correction
            or self.mode == "adaptive_codebook"
            or (self.selects_layers and self.sensitivity_metric not in data_free)
        )

    @property
    def data_free(self) -> WeightCompression:
        """The same format for a graph that there is no data for, and none of the weights that rules name."""
        if self.mode == "adaptive_codebook":
            return WeightCompression(mode="int8_sym")
        changes: dict[str, object] = dict.fromkeys(("scale_estimation", "gptq", "lora_correction"), False)
        for name in ("rules", "statistics", "gptq_order", "statistics_precision", "sensitivity_metric"):
            changes[name] = type(self).model_fields[name].default
        kept = self.advanced.model_dump(include={"codebook", "min_adjusted_group_size"}, exclude_defaults=True)
        return self.model_copy(update={**changes, "advanced": AdvancedCompression.model_validate(kept)})

    @property
    def collects_statistics(self) -> bool:
        """Whether NNCF, given data, collects statistics of activations; GPTQ collects its Hessians apart."""
        by_itself = self.scale_estimation and not self.gptq
        return self.model_copy(update={"gptq": False, "scale_estimation": by_itself}).uses_data

    @property
    def uses_data(self) -> bool:
        """Whether calibration data, where there is some, changes the result."""
        return (
            self.needs_data
            or (self.awq and self.advanced.awq_params.prefer_data_aware_scaling)
            or (self.selects_layers and self.sensitivity_metric is None)
        )
