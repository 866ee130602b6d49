"""What a search for the formats of weights found."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import TextRecord
from llmcompress.report.readable import Readable
from llmcompress.report.record import EnvironmentRecord, Measured, Record
from llmcompress.spec.search import Phase, SearchSpec


class WeightChoice(Record):
    """What one weight takes."""

    name: str
    num_parameters: int
    format: str
    size_bytes: int
    kl_divergence: float
    """Predicted of this weight as a part of the plan, in nats per token."""
    predicted: dict[str, float] = Field(default_factory=dict)
    """The same of each format that it could have taken."""


class FrontPoint(Record):
    """The best plan of a size, as predicted."""

    size_bytes: int
    kl_divergence: float


class Contender(Record):
    """One way to compress the model, measured on held-out text."""

    name: str
    kind: Literal["searched", "uniform", "mixed"]
    """``mixed``: NNCF's own mixed precision by a ratio."""
    size_bytes: int
    """Of ``openvino_model.bin``."""
    predicted_kl: float | None
    """None: NNCF chose the layers."""
    kl_divergence: Estimate
    top1_agreement: Estimate


class ExpertsRecord(Record):
    """What a mixture's experts were called for by the windows of the sensitivity."""

    num_experts: int
    """Of all stacks: an expert counts in each of its matrices."""
    never_called: tuple[str, ...]
    """As stack and number: where the graph has them alone they take int8_asym, in a stack they count as the others."""


class CorrectionRecord(Record):
    """What predictions were off by, as told by plans that were measured on the windows of the sensitivity."""

    num_measured: int
    """Plans: the whole, and single kinds of weights with all others at 8 bits."""
    error_before: float
    """Of what these plans were predicted to lose, relative, in the median."""
    error_after: float
    """The same with the corrections, which come from these plans."""
    factors: dict[str, float]
    """On what a weight was predicted to lose, by what it has in common with others."""
    growth: float
    """By how much the largest of the plans loses more than its weights alone, relative."""
    uncorrected_kl: float = 0.0
    """What the searched plan was predicted to lose without corrections, in nats per token."""


class RepairRecord(Record):
    """Changes of the plan that were measured before the verdict, on the windows of the sensitivity."""

    num_measured: int
    num_kept: int
    gain: Estimate | None
    """KL divergence of the first plan less the last one's; None: nothing was kept."""


class SpeedRecord(Record):
    """How fast the plan is here, next to the plan of no more bytes that is predicted to lose least, run in turn."""

    phase: Phase
    tokens_per_s: float
    for_size_tokens_per_s: float
    """Of that other plan."""
    for_size_predicted_kl: float
    predicted_gain: float
    """By how much the plan's rate was predicted to be higher, by the times of single products, relative."""


class FurtherSize(Record):
    """Another plan of the same search, written next to it and measured with the contenders."""

    directory: str
    """Its name."""
    size_bytes: int
    """Of ``openvino_model.bin``."""
    predicted_kl: float
    kl_divergence: Estimate
    top1_agreement: Estimate
    write_s: float
    """Seconds that putting it together took."""


class SearchReport(Readable):
    """``search.json``: the choice, what was predicted and measured, and against what."""

    schema_version: Literal[1] = 1
    llmcompress_version: str
    spec: SearchSpec
    manifest_sha256: str
    text: TextRecord
    """Of the verdict; none of its windows was looked at before."""
    num_sensitivity_tokens: int
    num_parameters: int
    contenders: tuple[Contender, ...]
    """The searched plan first."""
    gain: Estimate | None
    """KL divergence of the best rival of no more bytes less the plan's, window by window; None without a rival."""
    chosen: str
    """Name of the contender that was written."""
    reason: str
    weights: tuple[WeightChoice, ...]
    """Of the searched plan."""
    experts: ExpertsRecord | None = None
    """None: the model has none that are kept in stacks."""
    correction: CorrectionRecord | None = None
    """None: nothing was measured for it."""
    speed: SpeedRecord | None = None
    """None: the search did not go by time."""
    repair: RepairRecord | None = None
    """None: no time was given for it."""
    front: tuple[FrontPoint, ...]
    kl_per_further_mb: float | None = None
    """By how much the predicted KL divergence of the plan would fall with the next MB; None: it goes by time too."""
    further: tuple[FurtherSize, ...] = ()
    """The sizes that were asked for beside the limit."""
    environment: EnvironmentRecord
    measured: Measured
