"""What every report is made of."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, cpu_name, installed_versions, platform_name
from llmcompress.system.memory import peak_rss_bytes


class Record(BaseModel):
    """A frozen report record; fields that a newer version added are tolerated when read."""

    # JSON has no NaN and no infinity; as strings they can be read back.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", defer_build=True)


class FileRecord(Record):
    """One file, by its path relative to the directory it is part of (POSIX separators)."""

    path: str
    size_bytes: int
    sha256: str


class CalibrationRecord(Record):
    """The windows of a text that were used, or the prompts of pictures and texts."""

    dataset: str
    num_windows: int
    seq_len: int
    seed: int
    token_ids_sha256: str
    pictures_sha256: str | None = None
    """Over the points of pictures; None where there are none."""


class SourceCard(Record):
    """What the README of a source states in its front matter: what somebody wrote, checked by nobody."""

    license: tuple[str, ...] = ()
    """The Hub's identifiers."""
    license_name: str | None = None
    license_link: str | None = None
    """A URL, or a file of the source."""
    language: tuple[str, ...] = ()
    problem: str | None = None
    """Why the front matter could not be read."""
    sha256: str
    """Of the README, or of what a GGUF file says of itself."""


class AdapterRecord(Record):
    """An adapter that was merged into the model; its files are those of the provenance below ``adapter/``."""

    id: str | None = None
    """Hub id, or None for a local directory."""
    revision: str | None = None
    """The resolved commit hash."""


class QuantizationRecord(Record):
    """How a source was quantized, as its configuration says it."""

    method: str
    """``quant_method``: gptq, awq, compressed-tensors, fp8, gguf, onnx and so on."""
    settings: dict[str, Any]
    """All that it says."""


class Provenance(Record):
    """Where the model came from. Holds no local path: the same bytes give the same record anywhere."""

    kind: Literal["hub", "checkpoint", "ir"]
    id: str | None = None
    """Hub id, or None for a local directory."""
    revision: str | None = None
    """The resolved commit hash of a Hub source."""
    model_type: str
    architecture: str
    dtype: str
    """Precision of the source's weights as its files hold them: bf16, fp16, fp32, or 'mixed'; of quantized ones the
    method."""
    files: tuple[FileRecord, ...]
    trust_remote_code: bool = False
    adapter: AdapterRecord | None = None
    """What was merged into the model, which all else here is of."""
    quantization: QuantizationRecord | None = None
    """None where the source is not quantized."""
    language_model_of: str | None = None
    """The type of the vision-language checkpoint whose language model it is; None of a whole model."""
    card: SourceCard | None = None
    """None where the source has no README or it was not at hand offline, and in manifests of earlier versions."""

    @property
    def is_quantized(self) -> bool:
        """Whether weights of the source are codes; GGUF and ONNX files may hold floats alone."""
        types = self.quantization.settings.get("types") if self.quantization else None
        floats = isinstance(types, dict) and set(types) <= {"F32", "F16", "BF16"}
        return self.quantization is not None and not (self.quantization.method in ("gguf", "onnx") and floats)

    @property
    def weight_files(self) -> tuple[FileRecord, ...]:
        """The files that hold weights; those next to an ONNX file are named after it."""
        ends = (".safetensors", ".gguf", "_model.bin")
        return tuple(file for file in self.files if file.path.endswith(ends) or ".onnx" in file.path)

    @property
    def weight_bytes(self) -> int:
        """Their size."""
        return sum(file.size_bytes for file in self.weight_files)


class EnvironmentRecord(Record):
    """What the result's bytes depend on besides its inputs."""

    versions: dict[str, str]
    cpu: str
    num_threads: int
    platform: str


class StageTime(Record):
    """How long one stage took and the process's peak resident memory at its end."""

    stage: str
    duration_s: float
    peak_rss_bytes: int


class SparseSpeed(Record):
    """Whether a device computes faster with zeros: a layer alone, dense against sparse, runs in turn."""

    device: str
    shape: tuple[int, int]
    """``(out, in)``, of the model's largest layer; weights of 8 bits."""
    ratio: float
    """Time of the dense layer to that of the sparse one, for one token; medians."""
    option: str | None = None
    """The plugin's property that was set for the sparse one, where it has one."""


class DepthSpeed(Record):
    """What of the time of a new token is that of decoder layers: by a whole model and one with fewer, run in turn."""

    device: str
    token_s: float
    """Of the whole model; median."""
    layer_s: float
    """Of one decoder layer."""
    ratio: float
    """Time of a token of the whole model to that without the layers that were dropped, as the two above say."""


class Measured(Record):
    """What differs from run to run."""

    created: str
    """UTC time, ISO 8601."""
    duration_s: float
    peak_rss_bytes: int
    stages: tuple[StageTime, ...]
    sparse_speed: SparseSpeed | None = None
    """Where a pruning has set weights to zero."""
    depth_speed: DepthSpeed | None = None
    """Where a speed decided how many decoder layers went."""
    replayed: bool = False
    """Whether it was made by the kept graph of another checkpoint; the bytes are the same."""
    sha256: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """Of a manifest: of its file without this field, which tells damage. Other reports have none."""


def environment_record(num_threads: int, others: Mapping[str, str] = MappingProxyType({})) -> EnvironmentRecord:
    """Record what the result's bytes depend on besides its inputs; no host name, user or time.

    `num_threads` is the number of threads it was computed with: sums split over threads round differently. `others` are
    versions that a part of it was made with in place of those of this process.
    """
    python = {"python": platform.python_version()}
    return EnvironmentRecord(
        versions=installed_versions(PACKAGES_THAT_DECIDE_BYTES) | dict(others) | python,
        cpu=cpu_name(),
        num_threads=num_threads,
        platform=platform_name(),
    )


class Stages:
    """Collects the stages of one run, in order."""

    def __init__(self) -> None:
        self._created = datetime.now(UTC)
        self._started = time.perf_counter()
        self._done: list[StageTime] = []
        self._paused: float | None = None

    def pause(self) -> None:
        """Leave the time from now to the next stage out of the whole."""
        self._paused = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one stage; a stage that fails is not recorded."""
        started = time.perf_counter()
        if self._paused is not None:
            self._started += started - self._paused
            self._paused = None
        yield
        duration_s = time.perf_counter() - started
        self._done.append(StageTime(stage=name, duration_s=duration_s, peak_rss_bytes=peak_rss_bytes(os.getpid())))

    def measured(self) -> Measured:
        """What was measured so far."""
        return Measured(
            created=self._created.isoformat(timespec="seconds"),
            duration_s=time.perf_counter() - self._started,
            peak_rss_bytes=peak_rss_bytes(os.getpid()),
            stages=tuple(self._done),
        )
