"""How the runtime's settings are searched, as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from llmcompress.errors import UsageError
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.dataset import ScoredText
from llmcompress.spec.evaluation import DEFAULT_CHUNK, EvalSpec
from llmcompress.spec.runtime import pair_refusals, split_pairs
from llmcompress.spec.validation import MAX_COUNT, Count, Refusal, StrictModel, Text, Texts, refusal_error

Objective = Literal["decode", "prefill", "memory"]
Scope = Literal["all", "model"]

_WORKLOAD = re.compile(r"(?P<name>[a-z][a-z0-9_-]{0,31}):(?:(?P<batch>\d{1,9})x)?(?P<prompt>\d{1,9})/(?P<new>\d{1,9})")
_DURATION = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


class Workload(StrictModel):
    """What a model is asked for: so many sequences at once, of so many prompt tokens and so many new ones."""

    name: Text
    prompt_tokens: Count
    new_tokens: Count
    batch_size: Count = 1

    def __str__(self) -> str:
        batch = f"{self.batch_size}x" if self.batch_size > 1 else ""
        return f"{self.name}:{batch}{self.prompt_tokens}/{self.new_tokens}"

    def shape(self) -> Shape:
        """As the benchmark runs it."""
        return Shape(self.batch_size, 0, self.prompt_tokens, self.new_tokens)


CHAT = Workload(name="chat", prompt_tokens=512, new_tokens=128)


class TuneSpec(ScoredText):
    """Device, workloads, text, and the rule of the choice. The command line shows what is written below the fields."""

    device: Text = "CPU"
    """OpenVINO device."""
    workloads: Annotated[tuple[Workload, ...], Field(strict=False, min_length=1)] = (CHAT,)
    """Tokens of a prompt and of its answer, for so many sequences at once."""
    properties: Texts = ()
    """Try these values, and no other properties and values."""
    scope: Scope = "all"
    """Try all settings, or only those that a model's runtime options can hold, which need no profile."""
    objective: Objective = "decode"
    """What is to be better: the rate of new tokens, the rate of prompt tokens, or the memory of the process."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """Mean KL divergence from the reference, in nats per token. Default: 0.001 more than the device's default has"""
    budget_s: Annotated[float, Field(gt=0, le=MAX_COUNT)] = 600.0
    """After this time no further setting is tried; it includes the verification as far as that can be predicted."""
    warmup_runs: Annotated[int, Field(ge=0, le=1000)] = 1
    """Runs of each workload before those that are counted."""
    repetitions: Annotated[int, Field(ge=3, le=1000)] = 5
    """Runs of each workload and setting, in turn with the default; up to three times as many in doubt."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    seq_len: Annotated[int, Field(ge=4, le=MAX_COUNT)] = 512
    """Tokens per window."""
    num_windows: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 8
    """Windows for the search; as many more are held out for the verification."""
    chunk: Count | None = None
    """Tokens per call: a token sees the cache's precision only in what earlier calls wrote. Default: 64"""

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        yield from pair_refusals(self.properties)
        names = [workload.name for workload in self.workloads]
        if len(set(names)) < len(names):
            yield Refusal("workloads", f"two have one name: {', '.join(names)}", "name each otherwise")
        if self.objective == "decode" and any(workload.new_tokens < 2 for workload in self.workloads):
            problem = "the first new token comes with the prompt, so one is not decoded"
            yield Refusal("workloads", problem, "take more")
        if self.effective_chunk >= self.seq_len:
            windows = f"whole windows of {self.seq_len}, in which the cache's precision is not seen"
            hint = "take a smaller chunk, or longer windows"
            yield Refusal("chunk", f"{self.effective_chunk} feeds {windows}", hint)

    @property
    def effective_chunk(self) -> int:
        """Tokens per call."""
        return self.chunk or DEFAULT_CHUNK

    def asked_values(self) -> dict[str, tuple[str, ...]]:
        """``properties`` as names and the values to try."""
        return {name: tuple(values.split(",")) for name, values in split_pairs(self.properties).items()}

    def evaluation(self) -> EvalSpec:
        """How text is cut for the search and the verification together."""
        return EvalSpec(
            **{name: getattr(self, name) for name in ScoredText.model_fields},
            seq_len=self.seq_len,
            num_windows=2 * self.num_windows,
            chunk=self.effective_chunk,
            device=self.device,
            confidence=self.confidence,
        )


def parse_workload(text: str) -> Workload:
    """Read ``NAME:PROMPT/NEW`` or ``NAME:BATCHxPROMPT/NEW``, such as ``chat:512/128`` and ``batch:8x256/256``.

    Raises:
        UsageError: It is not of that form, or a number is 0.
    """
    match = _WORKLOAD.fullmatch(text)
    counts = {} if match is None else {name: int(match[name] or 1) for name in ("batch", "prompt", "new")}
    if match is None or 0 in counts.values():
        raise UsageError(
            f"got {text!r}; NAME:PROMPT/NEW or NAME:BATCHxPROMPT/NEW is accepted, in tokens, all at least 1",
            where="`workloads`",
            hint="such as chat:512/128 or batch:8x256/256",
        )
    return Workload(
        name=match["name"], prompt_tokens=counts["prompt"], new_tokens=counts["new"], batch_size=counts["batch"]
    )


def parse_duration_s(text: str) -> float:
    """Read ``90s``, ``10m``, ``1h30m`` as seconds.

    Raises:
        UsageError: It is not of that form, or nothing.
    """
    match = _DURATION.fullmatch(text)
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not seconds:
        raise UsageError(
            f"got {text!r}; hours, minutes and seconds are accepted",
            where="`budget_s`",
            hint="such as 90s, 10m or 1h30m",
        )
    return seconds


def with_budget_s(fields: Any) -> Any:
    """Read ``budget: 5m`` as ``budget_s``, before a record that has such a field is made."""
    if not isinstance(fields, dict) or "budget" not in fields:
        return fields
    if "budget_s" in fields:
        raise refusal_error(Refusal("budget", "budget_s says the same", "remove one of the two"))
    fields = dict(fields)
    try:
        fields["budget_s"] = parse_duration_s(str(fields.pop("budget")))
    except UsageError as error:
        raise refusal_error(Refusal("budget", error.message, error.hint)) from None
    return fields
