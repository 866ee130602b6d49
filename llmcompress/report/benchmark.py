"""What a benchmark measured."""

from __future__ import annotations

from typing import Literal

from llmcompress.report.estimate import Estimate
from llmcompress.report.readable import Readable
from llmcompress.report.record import EnvironmentRecord, Measured, Record
from llmcompress.report.text import size_text
from llmcompress.spec.benchmark import BenchSpec

Judgement = Literal["better", "worse", "inside the noise"]


class Stats(Record):
    """Raw values and what is quoted of them."""

    values: tuple[float, ...]
    mean: float
    std: float
    """Of a sample; 0 for a single value."""
    p50: float
    p90: float
    p99: float


class LoadTime(Record):
    """Reading the model and compiling it, in seconds."""

    read_s: float
    compile_s: float


class LoadTimes(Record):
    """The three ways a model is opened."""

    cold: LoadTime
    """After its pages were given up by the system's file cache, where the system can be asked to."""
    warm: LoadTime
    cached: LoadTime | None
    """From OpenVINO's model cache; None where the engine or device has none."""


class Roofline(Record):
    """How close decoding comes to the speed of reading memory."""

    bandwidth_bytes_per_s: float
    """Measured on this machine by reading a large array with the same number of threads."""
    weight_bytes: int
    """Read for every token: all constants but the embedding's table."""
    cache_bytes: int
    """Of keys and values, read for every token, halfway through the run."""
    limit_tokens_per_s: float
    share: float
    """Measured over limit."""
    gain_of_half_the_bits: float
    """At most so many times as fast if the weights took half the bytes and nothing else changed."""


class BenchCase(Record):
    """One model, one setting, one shape."""

    device: str
    threads: int | None
    batch_size: int
    depth: int
    prompt_tokens: int
    new_tokens: int
    picture_size: int = 0
    """Pixels of a side of the picture that was shown before the prompt; 0: none."""
    input_tokens: int | None = None
    """Tokens that the language model read, those of the picture among them; None where there was no picture."""
    image_encoding_s: Stats | None = None
    """Time in which the parts that see made embeddings of the picture, part of the time to first token."""
    ttft_s: Stats
    """Time to first token: the prompt, with logits of its last position only."""
    prefill_tokens_per_s: Stats
    """With a picture all input tokens, over the time to first token without the picture's encoding."""
    tpot_s: Stats | None
    """Time of each further token, of all repetitions; None where only one token was made."""
    decode_tokens_per_s: Stats | None
    """Of all sequences of the batch together, per repetition."""
    energy_j_per_token: float | None
    """Of the processor's package, prompt included; None: the machine exposes no counter."""
    roofline: Roofline | None
    """None where the memory read is not the CPU's."""


class BenchSetting(Record):
    """One model on one device."""

    device: str
    threads: int | None
    load: LoadTimes
    properties: dict[str, str]
    """Effective properties, read back from the compiled model."""
    is_recurrent: bool = False
    """Its recurrent layers are exact token by token, as evaluation feeds them. The prompt went through in one call all
    the same: so does Optimum's generation, and speed is what that takes."""


class Steadiness(Record):
    """How steady the machine was."""

    load_before: float | None
    """Processes that wanted to run in the last minute."""
    load_after: float | None
    frequency_mhz: tuple[float, float] | None
    """Lowest and highest of the processor that were seen between runs."""
    temperature_c: float | None
    """Highest that was seen."""


class Ratio(Record):
    """One figure of this model over the same of the first source, from interleaved runs."""

    case: int
    """Position in ``cases``."""
    figure: Literal["image_encoding_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"]
    ratio: Estimate
    judgement: Judgement


class BenchReport(Readable):
    """What one run measured of one model."""

    schema_version: int = 1
    llmcompress_version: str
    spec: BenchSpec
    source: str
    """Name of the directory or Hub id."""
    manifest_sha256: str | None
    size_bytes: int
    """Of the model's weights on disk, of all parts where it has several."""
    settings: tuple[BenchSetting, ...]
    cases: tuple[BenchCase, ...]
    peak_rss_bytes: int
    """Of the worker process that held this model and nothing else, loading and the runs of the first setting."""
    steady_rss_bytes: int
    """Of the same after those runs."""
    compared_with: str | None
    ratios: tuple[Ratio, ...]
    steadiness: Steadiness
    environment: EnvironmentRecord
    measured: Measured

    def facts(self) -> dict[str, str]:
        """Size, memory, and the speed of each shape."""
        facts = {
            "model": self.source,
            "size": size_text(self.size_bytes),
            "peak memory": size_text(self.peak_rss_bytes),
        }
        for case in self.cases:
            speed = [f"prefill {rate_text(case.prefill_tokens_per_s)}"]
            if case.image_encoding_s is not None:
                speed.insert(0, f"image encoding {case.image_encoding_s.p50 * 1e3:.4g} ms")
            if case.decode_tokens_per_s is not None:
                speed.append(f"decode {rate_text(case.decode_tokens_per_s)}")
            facts[f"{case.device}, {shape_text(case)} tokens"] = ", ".join(speed) + " tokens/s"
        return facts


class BenchFile(BenchReport):
    """The file ``bench.json``: the newest run, and those of the same bytes that asked something else."""

    other_runs: tuple[BenchReport, ...] = ()
    """Of other shapes, devices, runtimes or settings, the newest first."""

    @property
    def runs(self) -> tuple[BenchReport, ...]:
        """All of them, the newest first."""
        return (BenchReport.model_validate(dict(self)), *self.other_runs)


def rate_text(stats: Stats | None) -> str:
    """A rate with its spread over the repetitions: `52.3 ± 0.4`."""
    if stats is None:
        return ""
    return f"{stats.p50:,.0f} ± {stats.std:,.0f}" if stats.p50 >= 100 else f"{stats.p50:.1f} ± {stats.std:.1f}"


def shape_text(case: BenchCase) -> str:
    """A shape in short: `512+128`, `4 x 512+128 at 2048`, `448 px, 64+128` with a picture."""
    batch = f"{case.batch_size} x " if case.batch_size > 1 else ""
    depth = f" at {case.depth}" if case.depth else ""
    picture = f"{case.picture_size} px, " if case.picture_size else ""
    return f"{picture}{batch}{case.prompt_tokens}+{case.new_tokens}{depth}"
