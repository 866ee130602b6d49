"""How formats are searched for single weights, as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

from llmcompress.errors import UsageError
from llmcompress.spec.dataset import Calibration, ScoredText, text_only_refusals
from llmcompress.spec.evaluation import EvalSpec
from llmcompress.spec.layer_rules import LayerRule, RuleMode
from llmcompress.spec.modes import INT8
from llmcompress.spec.validation import MAX_COUNT, Count, Refusal, Texts

_FORMAT = re.compile(r"(?P<mode>[a-z0-9_]+)(?::(?P<group_size>-1|[1-9]\d{0,8}))?(?:\+(?P<method>gptq))?")
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>B|kB|MB|GB|TB)?", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

CANDIDATES = (
    *("int2_sym:32", "int2_sym:64", "int2_sym:128"),
    *("int4_sym:128", "int4_sym:64", "int4_sym:32", "int4_asym:128", "int4_asym:64", "int4_asym:32"),
    "int8_asym",
)
"""Formats that the CPU plugin keeps compressed; of int3 it makes bf16."""

CALIBRATED = tuple(f"{each}+gptq" for each in CANDIDATES if not each.startswith("int8"))
"""The same by GPTQ, which leaves 8 bits alone."""

LOOKED_UP = ("int4_asym:16",)
"""Further ones of weights that are looked up and not multiplied: their groups are none of the activations'."""

Phase = Literal["decode", "prefill"]
"""New tokens, one after the other; or those of a prompt, together."""


class Format(NamedTuple):
    """What a weight may become."""

    mode: str
    group_size: int
    """-1: one group per output channel."""
    method: Literal["data_free", "gptq"] = "data_free"

    def __str__(self) -> str:
        size = "" if self.group_size == -1 else f":{self.group_size}"
        return f"{self.mode}{size}{'+gptq' if self.method == 'gptq' else ''}"


class SearchSpec(ScoredText):
    """The limit, the formats, and the text. The command line shows what is written below the fields."""

    max_bytes: Count | None = None
    """The smallest KL divergence at no more bytes of openvino_model.bin, as 3.5GB or a number."""
    bits_per_weight: Annotated[float, Field(gt=0, le=32)] | None = None
    """The smallest KL divergence at no more bits for each parameter, embeddings included."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """The smallest model of no more KL divergence, in nats per token."""
    min_decode: Annotated[float, Field(gt=0)] | None = None
    """The smallest KL divergence at no fewer new tokens per second, as measured on this machine."""
    optimize_for: Literal["size", "decode", "prefill"] = "size"
    """What a plan is to be that keeps the limit: small, or fast on this machine at new tokens or at a prompt's. With a
    limit of bytes it may be predicted to lose a twentieth more than the best of that size."""
    front: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """A further size, in bytes of openvino_model.bin: its best plan goes to DIR-SIZE next to DIR."""
    candidates: Annotated[Texts, Field(min_length=1)] | None = None
    """A format that weights may take, as MODE:GROUP_SIZE, or MODE for one group per channel, with +gptq behind it for
    codes by GPTQ. Default: integers of 2, 4 and 8 bits, and where there is a calibration text all but those of 8 bits
    by GPTQ as well; of embeddings int4_asym in groups of 16 too."""
    calibration: Calibration | None = None
    """The text that GPTQ goes by; it is refused where 64 tokens in a row are in the other text too."""
    num_probes: Annotated[int, Field(ge=0, le=1000)] = 8
    """Plans and parts of a plan that are measured on the windows of the sensitivity, by which predictions are
    corrected."""
    budget_s: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = None
    """Time for changes of the plan that are measured on the windows of the sensitivity, such as 30m; one that loses
    less beyond noise is kept."""
    seq_len: Annotated[int, Field(ge=4, le=MAX_COUNT)] = 256
    """Tokens per window."""
    num_samples: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 16
    """Windows that show how sensitive weights are."""
    num_windows: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 32
    """Windows that follow them in the text, for the verdict."""
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """Of the labels that are drawn from the model."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""

    def _refusals(self) -> Iterator[Refusal]:
        yield from super()._refusals()
        names = ("max_bytes", "bits_per_weight", "max_kl", "min_decode")
        limits = [name for name in names if getattr(self, name) is not None]
        if len(limits) != 1:
            got = " and ".join(f"`{name}`" for name in limits) or "none"
            problem = f"got {got} of `max_bytes`, `bits_per_weight`, `max_kl` and `min_decode`; exactly one is accepted"
            yield Refusal("max_bytes", problem, "give one limit")
        if len(set(self.front)) < len(self.front):
            yield Refusal("front", "one size is named twice", "name each once")
        if self.budget_s is not None and self.max_kl is not None:
            problem = "has no effect with `max_kl`: changes keep the bytes and lower the KL divergence"
            yield Refusal("budget_s", problem, "give `max_bytes` or `bits_per_weight`, or remove it")
        if self.min_decode is not None and self.optimize_for == "prefill":
            problem = "prefill has no effect with `min_decode`, whose plan is as slow as that permits"
            yield Refusal("optimize_for", problem, "give another limit, or remove it")
        if self.budget_s is not None and self.phase is not None:
            problem = "has no effect where a plan goes by time: changes keep the bytes and not the speed"
            yield Refusal("budget_s", problem, "remove it")
        given = self.candidates or ()
        if len(set(given)) < len(given):
            yield Refusal("candidates", "one is named twice", "name each once")
        for candidate in given:
            refused = _format_problem(candidate)
            if refused:
                yield Refusal("candidates", f"got {candidate!r}: {refused}", "write for example int4_sym:64")
                return
        if self.calibration is not None:
            yield from (
                each._replace(field=f"calibration.{each.field}") for each in text_only_refusals(self.calibration)
            )
        if self.calibration is None and self.is_calibrated:
            yield Refusal("calibration", "candidates with +gptq need a text", "give a file with text")
        if self.calibration is not None and not self.is_calibrated:
            yield Refusal("calibration", "has no effect: no candidate has +gptq", "remove it, or add int4_sym:64+gptq")

    @property
    def formats(self) -> tuple[Format, ...]:
        """The candidates."""
        default = CANDIDATES if self.calibration is None else (*CANDIDATES, *CALIBRATED)
        return tuple(map(parse_format, self.candidates or default))

    @property
    def looked_up_formats(self) -> tuple[Format, ...]:
        """Further candidates of weights that are only looked up."""
        if self.candidates is not None:
            return ()
        by_gptq = () if self.calibration is None else tuple(f"{each}+gptq" for each in LOOKED_UP)
        return tuple(map(parse_format, (*LOOKED_UP, *by_gptq)))

    @property
    def phase(self) -> Phase | None:
        """Whose time a plan goes by; None: by none."""
        if self.optimize_for != "size":
            return self.optimize_for
        return None if self.min_decode is None else "decode"

    @property
    def is_calibrated(self) -> bool:
        """Whether one of them is made by data."""
        return any(each.method == "gptq" for each in self.formats)

    def evaluation(self) -> EvalSpec:
        """How the text is cut for sensitivity and verdict together."""
        return EvalSpec(
            **{name: getattr(self, name) for name in ScoredText.model_fields},
            seq_len=self.seq_len,
            num_windows=self.num_samples + self.num_windows,
            precision="pinned",
            backend="stateful",
            confidence=self.confidence,
        )


def parse_format(text: str) -> Format:
    """The format that a text such as ``int4_sym:64+gptq`` names, which has been checked."""
    rest, _, method = text.partition("+")
    mode, _, group_size = rest.partition(":")
    return Format(mode, int(group_size) if group_size else -1, "gptq" if method else "data_free")


def _format_problem(text: str) -> str | None:
    found = _FORMAT.fullmatch(text)
    if found is None:
        return "MODE or MODE:GROUP_SIZE is accepted, with or without +gptq"
    accepted = [mode for mode in get_args(RuleMode) if mode.startswith("int")]
    if found["mode"] not in accepted:
        return f"modes with integers are accepted: {', '.join(accepted)}"
    if found["method"] and found["mode"] in INT8:
        return f"GPTQ leaves mode {found['mode']} as it is"
    wanted = parse_format(text)
    refusals = list(LayerRule.model_construct(match="x", mode=wanted.mode, group_size=wanted.group_size)._refusals())
    return refusals[0].problem if refusals else None


def parse_size(text: str, where: str = "`max_bytes`") -> int:
    """Bytes of a text such as ``3.5GB``, which stands somewhere; units are decimal.

    Raises:
        UsageError: It is none.
    """
    found = _SIZE.fullmatch(text.strip())
    size = round(float(found["number"]) * _UNITS[(found["unit"] or "B").lower()]) if found else 0
    if not 0 < size <= MAX_COUNT**2:
        raise UsageError(
            f"got {text!r}; a number of bytes, or a number with kB, MB, GB or TB is accepted",
            where=where,
            hint="write for example 3.5GB",
        )
    return size
