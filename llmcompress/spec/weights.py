"""Which format the weights take, and by which methods: the arguments of ``nncf.compress_weights`` as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmcompress.spec.advanced import AdvancedCompression, AwqParameters
from llmcompress.spec.modes import (
    CODEBOOKS,
    DATA_FREE_ONLY,
    DEFAULT_BACKUP,
    FIXED_GROUP_SIZE,
    INT8,
    INTEGER,
    BackupMode,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
    StatisticsPrecision,
    default_group_size,
)
from llmcompress.spec.validation import MAX_COUNT, Refusal, StrictModel, Texts

METHODS = ("awq", "scale_estimation", "gptq", "lora_correction")
INT8_REFUSES = (
    "all_layers",
    "backup_mode",
    "sensitivity_metric",
    "group_size_fallback",
    "statistics_precision",
    *METHODS,
    "advanced",
)
REMOVE = "remove it"
FOUR_BIT_ENTRIES = 16


def data_refusals(weights: WeightCompression, *, has_data: bool) -> Iterator[Refusal]:
    """Yield what is wrong with the compression of weights with calibration data, or without."""
    if has_data:
        if _changed(weights, "statistics_precision") and not weights.collects_statistics:
            problem = "has no effect: nothing here goes by statistics of activations"
            yield Refusal("statistics_precision", problem, "remove it, or switch on awq or scale_estimation")
        return
    if weights.needs_data:
        reasons = [name for name in METHODS[1:] if getattr(weights, name)]
        if weights.mode == "adaptive_codebook":
            reasons.append("mode adaptive_codebook")
        reason = ", ".join(reasons) or f"sensitivity_metric {weights.sensitivity_metric}"
        hint = "add calibration: {dataset: FILE.txt}, or `overrides` calibration.dataset=FILE.txt"
        yield Refusal("", f"{reason} needs calibration data", hint)
    if _changed(weights, "statistics_precision"):
        yield Refusal("statistics_precision", "has no effect without calibration data", REMOVE)
    if _changed(weights.advanced, "awq_params"):
        yield Refusal(
            "advanced.awq_params", "has no effect without calibration data: AWQ goes by the weights then", REMOVE
        )


def _int8(weights: WeightCompression) -> Iterator[Refusal]:
    hint = "remove it, or take a mode of fewer bits"
    if weights.group_size not in (None, -1):
        yield Refusal("group_size", f"mode {weights.mode} has one group per channel", hint)
    if weights.ratio != 1.0:
        yield Refusal("ratio", f"mode {weights.mode} compresses every layer", hint)
    for name in INT8_REFUSES:
        if _changed(weights, name):
            yield Refusal(name, f"has no effect with mode {weights.mode}", hint)


def _group_size(weights: WeightCompression) -> Iterator[Refusal]:
    fixed = FIXED_GROUP_SIZE.get(weights.mode)
    if fixed and weights.group_size not in (None, fixed):
        yield Refusal("group_size", f"mode {weights.mode} has groups of {fixed}", REMOVE)
    if fixed and weights.group_size_fallback == "adjust":
        yield Refusal("group_size_fallback", f"mode {weights.mode} has groups of {fixed} only", "write error or ignore")
    if weights.group_size_fallback != "error" and weights.effective_group_size == -1:
        yield Refusal("group_size_fallback", "has no effect with one group per channel (group_size -1)", "write error")
    if weights.group_size_fallback != "adjust" and _changed(weights.advanced, "min_adjusted_group_size"):
        yield Refusal("advanced.min_adjusted_group_size", "has no effect without group_size_fallback: adjust", REMOVE)


def _methods(weights: WeightCompression) -> Iterator[Refusal]:
    for name in METHODS:
        if not getattr(weights, name):
            continue
        if weights.mode in DATA_FREE_ONLY:
            yield Refusal(name, f"NNCF has no {name} for mode {weights.mode}", "write false, or take mode int4_sym")
        if weights.ratio == 0.0:
            yield Refusal(name, f"has no effect at ratio 0.0: no layer takes mode {weights.mode}", "write false")
    if weights.gptq and weights.lora_correction:
        yield Refusal("lora_correction", "cannot be combined with gptq", "keep one of the two")
    if weights.lora_correction and weights.mode in CODEBOOKS:
        yield Refusal("lora_correction", f"NNCF has no lora_correction for mode {weights.mode}", "write false")
    if weights.gptq and weights.scale_estimation and weights.mode not in INTEGER:
        yield Refusal(
            "scale_estimation", f"has no effect beside gptq with mode {weights.mode}", "write false for one of the two"
        )
    # NNCF looks up the activations of every compressed layer, and an embedding has none.
    if weights.all_layers and weights.ignored_scope.is_empty:
        for needed in (weights.lora_correction and "lora_correction", weights.mode == "adaptive_codebook" and "mode"):
            if needed:
                hint = "write all_layers: false, or name the embedding in ignored_scope"
                yield Refusal("all_layers", f"{needed} cannot handle embeddings", hint)


def _layer_choice(weights: WeightCompression) -> Iterator[Refusal]:
    if weights.mode == weights.effective_backup_mode:
        same = f"has no effect: mode and backup_mode are both {weights.mode}"
        if weights.ratio != 1.0:
            yield Refusal("ratio", same, "remove it, or write another backup_mode")
        if weights.all_layers:
            yield Refusal("all_layers", same, "remove it, or write another backup_mode")
    if weights.sensitivity_metric is not None and not weights.selects_layers:
        hint = "remove it, or write a ratio between 0 and 1"
        yield Refusal("sensitivity_metric", f"has no effect at ratio {weights.ratio}: no layers are chosen", hint)


def _codebook(weights: WeightCompression) -> Iterator[Refusal]:
    codebook = weights.advanced.codebook
    adaptive = weights.advanced.adaptive_codebook_params
    if weights.mode == "codebook" and codebook is None:
        yield Refusal("advanced.codebook", "mode codebook needs it", "write its values in ascending order")
    # Checked also where it is left at NNCF's start values: it fails in the middle of the clustering then.
    if weights.mode == "adaptive_codebook" and adaptive.across_blocks and weights.effective_group_size != -1:
        field = "advanced.adaptive_codebook_params.across_blocks"
        yield Refusal(field, "needs one group per channel", "write group_size: -1")
    if codebook is None:
        return
    if weights.mode not in ("codebook", "adaptive_codebook"):
        yield Refusal("advanced.codebook", f"has no effect with mode {weights.mode}", "remove it, or mode: codebook")
        return
    if len(codebook) > FOUR_BIT_ENTRIES:
        for name in ("awq", "scale_estimation"):
            if getattr(weights, name):
                problem = f"has no effect with a codebook of more than {FOUR_BIT_ENTRIES} values"
                yield Refusal(name, problem, "write false, or a shorter codebook")
    if weights.mode == "adaptive_codebook":
        if len(codebook) > FOUR_BIT_ENTRIES:
            problem = f"of more than {FOUR_BIT_ENTRIES} values is not adapted"
            yield Refusal("advanced.codebook", problem, "write a shorter one, or mode: codebook")
        if adaptive.num_elements != len(codebook):
            yield Refusal(
                "advanced.adaptive_codebook_params.num_elements",
                f"is {adaptive.num_elements}, and the codebook has {len(codebook)} values",
                "make the two equal",
            )


def _advanced(weights: WeightCompression) -> Iterator[Refusal]:
    advanced = weights.advanced
    for name in METHODS:
        if not getattr(weights, name) and _changed(advanced, f"{name}_params"):
            yield Refusal(f"advanced.{name}_params", f"has no effect without {name}", f"remove it, or {name}: true")
    if weights.mode != "adaptive_codebook" and _changed(advanced, "adaptive_codebook_params"):
        yield Refusal(
            "advanced.adaptive_codebook_params", f"has no effect with mode {weights.mode}", "mode: adaptive_codebook"
        )
    if weights.gptq and _changed(advanced, "scale_estimation_params"):
        problem = "has no effect beside gptq, which estimates scales with fixed settings"
        yield Refusal("advanced.scale_estimation_params", problem, REMOVE)
    awq = advanced.awq_params
    if not awq.prefer_data_aware_scaling and awq != AwqParameters(prefer_data_aware_scaling=False):
        problem = "has no effect besides prefer_data_aware_scaling: AWQ goes by the weights then"
        yield Refusal("advanced.awq_params", problem, "remove the rest")


def _changed(record: object, name: str) -> bool:
    return bool(getattr(record, name) != type(record).model_fields[name].default)  # type: ignore[attr-defined]


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
        for value in values:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError):
                raise PydanticCustomError("pattern", "Python regular expressions are accepted") from None
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
    group_size: Annotated[int, Field(ge=-1, le=MAX_COUNT)] | None = None
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
    """For layers whose channels the group size does not divide."""
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    lora_correction: bool = False
    statistics_precision: StatisticsPrecision = "f32"
    """In what the activations are computed that AWQ, scale estimation and others go by; f32 is what NNCF takes."""
    advanced: AdvancedCompression = AdvancedCompression()

    @field_validator("group_size")
    @classmethod
    def _not_zero(cls, value: int | None) -> int | None:
        if value == 0:
            raise PydanticCustomError("group_size", "a positive number or -1 (one group per channel) is accepted")
        return value

    def _refusals(self) -> Iterator[Refusal]:
        if self.mode in INT8:
            yield from _int8(self)
            return
        for of_part in (_group_size, _methods, _layer_choice, _codebook, _advanced):
            yield from of_part(self)

    @property
    def effective_group_size(self) -> int:
        """The group size NNCF works with; -1 is one group per output channel."""
        return default_group_size(self.mode) if self.group_size is None else self.group_size

    @property
    def integer_group_sizes(self) -> tuple[int, ...]:
        """The group size where integers have one, else nothing: what dynamically quantized activations can follow."""
        size = self.effective_group_size
        return (size,) if self.mode.startswith("int") and size > 0 else ()

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
        return by_scope or self.effective_backup_mode == "none" or self.group_size_fallback == "ignore"

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
