"""What a search for the runtime's settings found."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmcompress.report.benchmark import Judgement, Stats
from llmcompress.report.estimate import Estimate, interval_text
from llmcompress.report.evaluation import DivergenceRecord, GateRecord, TextRecord
from llmcompress.report.readable import Readable
from llmcompress.report.record import EnvironmentRecord, Measured, Provenance, Record
from llmcompress.report.text import settings_text
from llmcompress.spec.tuning import Objective, TuneSpec

TrialStatus = Literal["default", "measured", "beaten", "not permitted", "refused"]


class WorkloadSpeed(Record):
    """One setting on one workload, run in turn with the default."""

    workload: str
    """As it was asked for: ``chat:512/128``."""
    prefill_tokens_per_s: Stats
    decode_tokens_per_s: Stats | None
    """None where only one token was made."""
    prefill_ratio: Estimate | None
    """Over the default's, run by run; None for the default itself."""
    decode_ratio: Estimate | None


class Trial(Record):
    """One setting and what was measured of it."""

    properties: dict[str, str]
    """Asked of the device; empty: the default, with what the model itself holds."""
    status: TrialStatus
    """``beaten``: slower beyond noise than a permitted one, and not scored."""
    reason: str = ""
    effective: dict[str, str] = Field(default_factory=dict)
    """Properties read back from the compiled model."""
    speeds: tuple[WorkloadSpeed, ...] = ()
    gain: Estimate | None = None
    """The objective against the default's, above 1 is better; over workloads the geometric mean. Memory has no interval
    before it is verified."""
    judgement: Judgement | None = None
    peak_rss_bytes: int | None = None
    """Of the process that held the model with this setting and nothing else."""
    steady_rss_bytes: int | None = None
    divergence: DivergenceRecord | None = None
    """From the reference, under this very setting; None where it was not scored."""
    on_front: bool = False
    """No other scored setting is as good in both gain and divergence and better in one, by the measured values."""


class TuningReference(Record):
    """What the divergence is measured from: always in exact execution (f32, no dynamic quantization, exact cache)."""

    itself: bool
    """The very model, so that the divergence is what the runtime's settings cost and nothing else."""
    provenance: Provenance
    properties: dict[str, str]


class TuningVerification(Record):
    """The choice against the default once more: fresh processes, held-out text."""

    gain: Estimate
    judgement: Judgement
    speeds: tuple[WorkloadSpeed, ...]
    text: TextRecord
    default_divergence: DivergenceRecord
    divergence: DivergenceRecord
    permitted: bool


class TuneReport(Readable):
    """The report ``tune.json``."""

    schema_version: int = 1
    llmcompress_version: str
    spec: TuneSpec
    source: str
    """Name of the directory."""
    manifest_sha256: str
    """Says which bytes were measured."""
    device_name: str
    """What the device calls itself."""
    text: TextRecord
    """Of the search."""
    reference: TuningReference
    max_kl: float
    """The limit that was kept, in nats per token."""
    gate: GateRecord | None
    """The artifact's own gate for the choice, on held-out text where it was verified; None: it has none."""
    trials: tuple[Trial, ...]
    """The default first, the others in the order of the search."""
    skipped: dict[str, str]
    """Properties, or values of them, that were not tried, and why."""
    out_of_time: bool
    verification: TuningVerification | None
    """None where nothing was better than the default, or what was found was not verified."""
    chosen: dict[str, str]
    """Properties; empty: the defaults stay."""
    permitted: bool
    """The choice keeps the limit and the gate. False: nothing that was measured does, the default included."""
    reason: str
    in_model: dict[str, str]
    """Of ``chosen``, what a plugin reads from a model's runtime options."""
    in_profile: dict[str, str]
    """The others: for the machine's runtime profile."""
    environment: EnvironmentRecord
    measured: Measured

    def facts(self) -> dict[str, str]:
        """What was tried and chosen, and why."""
        facts = {
            "model": self.source,
            "device": f"{self.spec.device}: {self.device_name}",
            "tried": f"{len(self.trials)} settings",
            "chosen": settings_text(self.chosen),
            "reason": self.reason,
        }
        if self.verification is not None:
            facts["gain"] = interval_text(self.verification.gain, ".3g")
        return facts


class TuningOrigin(Record):
    """In the manifest of a tuned artifact: where and for what its runtime options were found to be best."""

    device: str
    device_name: str
    cpu: str
    platform: str
    objective: Objective
    workloads: tuple[str, ...]
    properties: dict[str, str]
    """What the model's runtime options hold by it."""
    gain: Estimate
    """Against the default, as verified."""
    kl_divergence: Estimate
    """From the reference on held-out text, in nats per token."""
    default_kl_divergence: Estimate
    reference_is_itself: bool
    profile: dict[str, str]
    """Properties on top that a model cannot hold and the gain was measured with; empty where there are none."""
    tuned_manifest_sha256: str
    """Of the artifact that was measured; its weights are these."""
