"""What happened, as data: the records that the verbs return and the files in an output directory hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from llmcompress.recipe import Recipe


class Record(BaseModel):
    """A frozen report record; fields that a newer version added are tolerated when read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FileRecord(Record):
    """One file, by its path relative to the directory it is part of (POSIX separators)."""

    path: str
    size_bytes: int
    sha256: str


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
    """Precision of the source's weights as its files hold them: bf16, fp16, fp32, or 'mixed'."""
    files: tuple[FileRecord, ...]
    trust_remote_code: bool = False


class LayerRecord(Record):
    """One weight constant of the produced graph."""

    name: str
    shape: tuple[int, ...]
    num_parameters: int
    mode: str
    """NNCF's CompressWeightsMode value, or the element type (bf16, f16, f32) when left uncompressed."""
    group_size: int | None
    """Group size along the input channels; -1 per channel; None when uncompressed."""
    size_bytes: int
    """Bytes of the weight with its scales, zero points and other constants."""
    engine: str = "nncf"


class CalibrationRecord(Record):
    """The calibration windows that were used."""

    dataset: str
    num_windows: int
    seq_len: int
    seed: int
    token_ids_sha256: str


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


class Measured(Record):
    """What differs from run to run."""

    created: str
    """UTC time, ISO 8601."""
    duration_s: float
    peak_rss_bytes: int
    stages: tuple[StageTime, ...]


class CompressionReport(Record):
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
    files: tuple[FileRecord, ...]
    measured: Measured
