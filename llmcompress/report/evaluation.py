"""What an evaluation measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from llmcompress.report.estimate import Estimate, interval_text
from llmcompress.report.readable import Readable
from llmcompress.report.record import EnvironmentRecord, Measured, Provenance, Record
from llmcompress.spec import EvalSpec, Gate
from llmcompress.spec.evaluation import Backend

Verdict = Literal["equivalent", "worse", "cannot tell"]
PicturePart = Literal["language_model", "other_parts"]
"""Of a vision-language model: what generates, and what embeds text and pictures."""
GateStatus = Literal["no_thresholds", "passed", "failed", "not_judged"]

DAMAGE_PARTS = {
    "weights": "weights alone",
    "kv_cache": "with the cache's precision",
    "dynamic_quantization": "with dynamic quantization",
    "execution_precision": "with the execution precision",
    "all": "all as used",
    "paged": "all as used, paged",
}
"""What is added, step by step, from the weights alone to the model as it is used."""

PICTURE_DAMAGE_PARTS = {
    "language_model": "the language model alone",
    "other_parts": "what sees and embeds alone",
}
"""What is compressed where the other parts are the original's."""

GATE_STATUSES: dict[GateStatus, str] = {
    "no_thresholds": "no thresholds set",
    "passed": "passed",
    "failed": "FAILED",
    "not_judged": "not judged",
}
"""What the gate says of a model."""


class TextRecord(Record):
    """The text that was scored."""

    dataset: str
    fallback: str | None = None
    """Why the bundled text was scored, where no dataset was named and WikiText could not be had."""
    num_documents: int
    num_windows: int
    num_windows_in_text: int | None = None
    """Where the number of windows was not given: how many the text has."""
    num_clusters: int
    """Windows, or documents under ``rolling``: what the intervals take as independent."""
    num_scored_tokens: int
    token_ids_sha256: str
    """Over the ids of all windows and which of them are scored."""


class PerplexityRecord(Record):
    """Perplexity of one model; the field's names are lm-eval's where it has them."""

    perplexity: Estimate
    """Per token."""
    nll: Estimate
    """Mean negative log-likelihood per token, in nats."""
    word_perplexity: Estimate | None = None
    byte_perplexity: Estimate | None = None
    bits_per_byte: Estimate | None = None


class Histogram(Record):
    """How many values lie between fixed edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """One more than edges: below the first, from each up to the next, from the last on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts, not {len(self.counts)}")
        return self


class DivergenceRecord(Record):
    """How far the candidate's next-token distribution is from the reference's, over the same tokens."""

    exact: bool
    """Over the full vocabulary. False: from the reference's top-K and the mass of the rest, a lower bound."""
    top_k: int | None = None
    captured_mass: float | None = None
    """Mean probability of the top K tokens under the reference."""
    logits_error: float = 0.0
    """Nats by which each of the reference's logits may be off: 0, or what two bytes hold of what is likely at all."""
    kl_divergence: Estimate
    """Mean of KL(reference || candidate) per token, in nats."""
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    kl_histogram: Histogram | None = None
    """Over tokens; None in reports of versions that did not count."""
    top1_agreement: Estimate
    """Share of tokens for which both prefer the same next token."""
    log_perplexity_change: Estimate
    """ln(perplexity of the candidate / perplexity of the reference), paired over tokens."""
    perplexity_ratio: Estimate
    rms_probability_change: float
    """Root mean square of the change of the true token's probability."""

    @property
    def reference_scores(self) -> Literal["exact", "rounded", "cached"]:
        """How the reference was scored, as an evaluation is told it."""
        if not self.exact:
            return "cached"
        return "rounded" if self.logits_error else "exact"


class ModelRecord(Record):
    """A model as it was run."""

    provenance: Provenance
    manifest_sha256: str | None = None
    """Of the artifact's manifest: says which bytes were measured."""
    properties: dict[str, str]
    """Effective properties, read back from the compiled model."""
    perplexity: PerplexityRecord


class BackendRecord(Record):
    """The candidate in one form of its graph, against the same reference, in calls of the same size."""

    backend: Backend
    properties: dict[str, str]
    """Effective properties, read back from the compiled model."""
    perplexity: PerplexityRecord
    divergence: DivergenceRecord | None = None
    verdict: Verdict | None = None


class BackendShare(Record):
    """What the paged graph adds to what the stateful one lost, paired over tokens; below 0 where it loses less."""

    kl_divergence: Estimate | None = None
    """Of the KL divergence from the reference, in nats per token; None without a reference."""
    nll: Estimate
    """Of the negative log-likelihood, in nats per token."""


class DamagePart(Record):
    """The candidate against the reference in exact arithmetic, with one property of the runtime as it is used.

    The part ``paged`` is ``all`` on the paged graph.
    """

    part: Literal["weights", "kv_cache", "dynamic_quantization", "execution_precision", "all", "paged"]
    properties: dict[str, str]
    kl_divergence: Estimate
    top1_agreement: Estimate
    log_perplexity_change: Estimate


class NoiseFloor(Record):
    """The reference against itself under the other execution precision."""

    precisions: tuple[str, str]
    kl_divergence: Estimate
    top1_agreement: Estimate


class GenerationRecord(Record):
    """Greedy continuations of the same prompts by both models."""

    num_prompts: int
    max_new_tokens: int
    identical_share: float
    """Share of the prompts with the same continuation."""
    equal_prefix_share: float
    """Mean share of a continuation before the first token that differs."""
    first_divergent_token: tuple[int | None, ...]
    """For each prompt its position; None where the continuations are equal."""


class VisionError(Record):
    """What the parts that see give the language model, against what the original's give it of the same pictures."""

    cosine: Estimate
    """Cosine of an embedding and the original's, mean over the embeddings of a picture and over pictures."""
    relative_l2: Estimate
    """Norm of the difference of all embeddings of a picture over the norm of the original's, mean over pictures."""


class PictureDamage(Record):
    """The answers where one part is the candidate's and all others are the original's."""

    part: PicturePart
    kl_divergence: Estimate
    top1_agreement: Estimate


class PictureAnswer(Record):
    """What a model says of its own accord to a question about a picture."""

    picture: str
    question: str
    text: str
    reference: str | None = None
    """The original's answer."""


class PictureRecord(Record):
    """Questions about pictures: the original's greedy answers, said by both models token by token, with a picture each.

    Run by Optimum's class for such models, on the stateful graph.
    """

    dataset: str
    """``bundled``, or the name of a file."""
    sha256: str
    """Over the points of the pictures and the questions."""
    num_questions: int
    num_scored_tokens: int
    """Of the original's answers; 0 without a reference."""
    divergence: DivergenceRecord | None = None
    """A question counts as one in the intervals; None without a reference, and so is ``vision``."""
    vision: VisionError | None = None
    damage: tuple[PictureDamage, ...] = ()
    """Empty where the damage was not split."""
    answers: tuple[PictureAnswer, ...]


class Check(Record):
    """One requirement of the gate."""

    name: str
    passed: bool | None
    """None: not measured."""
    value: float | str | None
    required: float | str
    detail: str = ""


class GateRecord(Record):
    """What was required and whether it was met."""

    status: GateStatus
    """``failed``: a threshold or a probe failed. ``not_judged``: a threshold is set and was not measured."""
    passed: bool | None
    """None: no threshold is set, or one was not measured."""
    checks: tuple[Check, ...]

    @model_validator(mode="before")
    @classmethod
    def _with_status(cls, values: Any) -> Any:
        """Reports of earlier versions have no status, and call passed what has no threshold."""
        if not isinstance(values, dict) or "status" in values or "passed" not in values:
            return values
        names = {check["name"] if isinstance(check, dict) else check.name for check in values.get("checks", ())}
        status = {True: "passed", False: "failed", None: "not_judged"}[values["passed"]]
        if status == "passed" and not names & Gate.model_fields.keys():
            return {**values, "status": "no_thresholds", "passed": None}
        return {**values, "status": status}


class TaskScore(Record):
    """One metric of one lm-evaluation-harness task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int | None
    version: str


class ConversionRecord(Readable):
    """PyTorch against OpenVINO, both uncompressed, on the same tokens."""

    num_prompts: int
    num_tokens: int
    mean_kl: float
    max_kl: float
    num_greedy_disagreements: int
    num_near_ties: int
    """Disagreements whose two tokens PyTorch holds for nearly equally likely."""
    passed: bool


class EvalReport(Readable):
    """The report ``eval.json``."""

    schema_version: int = 1
    llmcompress_version: str
    spec: EvalSpec
    chunk: int
    """Tokens per call."""
    text: TextRecord
    model: ModelRecord
    reference: ModelRecord | None = None
    property_differences: dict[str, tuple[str, str]]
    """Effective properties in which candidate and reference differ."""
    divergence: DivergenceRecord | None = None
    verdict: Verdict | None = None
    """Of the worse of the measured backends."""
    backends: tuple[BackendRecord, ...] = ()
    """Each form of the graph that was scored; ``model`` and ``divergence`` are those of the first. Empty in reports of
    versions that scored the stateful graph alone."""
    backend_share: BackendShare | None = None
    """None where one backend was measured."""
    paged_refusal: str | None = None
    """Why the paged graph was asked for and not scored."""
    noise_floor: NoiseFloor | None = None
    split_damage: tuple[DamagePart, ...] = ()
    generations: GenerationRecord | None = None
    pictures: PictureRecord | None = None
    """None of a text model."""
    pictures_refusal: str | None = None
    """Why a vision-language model was shown no pictures."""
    gate: GateRecord
    tasks: tuple[TaskScore, ...] = ()
    num_windows_resumed: int = 0
    """Windows whose scores an interrupted evaluation had left."""
    environment: EnvironmentRecord
    measured: Measured
    scored_tokens_per_s: float | None
    """None: all scores were left by an interrupted evaluation."""

    @property
    def divergences(self) -> dict[Backend, DivergenceRecord]:
        """By backend; a report without backends is of the stateful graph."""
        if not self.backends:
            return {} if self.divergence is None else {"stateful": self.divergence}
        return {record.backend: record.divergence for record in self.backends if record.divergence is not None}

    @property
    def worst(self) -> BackendRecord:
        """The backend that loses most, as the gate sees it: the one to quote where there is room for one."""
        model = self.model
        first = BackendRecord(
            backend="stateful",
            properties=model.properties,
            perplexity=model.perplexity,
            divergence=self.divergence,
            verdict=self.verdict,
        )

        def loss(record: BackendRecord) -> float:
            lost = record.divergence.kl_divergence if record.divergence else record.perplexity.nll
            # What is not a number is beyond every limit.
            return math.inf if math.isnan(lost.value) else lost.value

        return max(self.backends or (first,), key=loss)

    def facts(self) -> dict[str, str]:
        """The text, what was measured on it, and what that comes to."""
        worst, text = self.worst, self.text
        found = worst.divergence
        facts = {"text": f"{text.dataset}: {text.num_scored_tokens:,} tokens in {text.num_windows} windows"}
        if len(self.backends) > 1:
            facts["graph"] = f"{worst.backend}, the worse of {' and '.join(each.backend for each in self.backends)}"
        facts["perplexity"] = interval_text(worst.perplexity.perplexity)
        if text.fallback:
            facts["instead of"] = text.fallback
        if self.reference is not None:
            facts["of the reference"] = interval_text(self.reference.perplexity.perplexity)
        if found is not None:
            bound = "" if found.exact else "at least "
            facts["KL divergence, nats"] = bound + interval_text(found.kl_divergence)
            facts["top-1 agreement"] = interval_text(found.top1_agreement, ".2%")
        if self.pictures is not None and self.pictures.divergence is not None:
            facts["KL divergence of answers about pictures"] = interval_text(self.pictures.divergence.kl_divergence)
        facts |= {f"{score.task}, {score.metric}": f"{score.value:.4g}" for score in self.tasks}
        if self.verdict is not None:
            facts["verdict"] = self.verdict
        return facts


def quoted_text(reports: Mapping[str, EvalReport]) -> str:
    """Say of which graph a table's quality is, where more than one was measured; empty where none of them was."""
    of: dict[str, list[str]] = {}
    for name, report in reports.items():
        if len(report.backends) > 1:
            of.setdefault(report.worst.backend, []).append(name)
    words = "; ".join(f"{backend} of {', '.join(names)}" for backend, names in of.items())
    return words and f"Quality is that of the graph that loses more, where both were measured: {words}."
