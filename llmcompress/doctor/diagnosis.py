"""What `llmcompress doctor` found, as data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen part of a diagnosis."""

    model_config = ConfigDict(frozen=True)


class PackageVersion(Part):
    """One library: what is installed and what the tests of this version of llmcompress ran with."""

    name: str
    installed: str | None
    tested: str | None


class Device(Part):
    """One device that OpenVINO can run a model on."""

    name: str
    full_name: str
    capabilities: tuple[str, ...]
    """Number formats the device computes in, as its plugin says."""


class Disk(Part):
    """Free space where something will be written."""

    use: str
    path: str
    free_bytes: int


class Finding(Part):
    """One thing that is wrong, and what to do about it."""

    message: str
    hint: str
    broken: bool
    """Whether it breaks a run; False: worth knowing."""


class Diagnosis(Part):
    """What `llmcompress doctor` found."""

    platform: str
    python: str
    cpu: str
    num_cores: int
    """Cores this process may use."""
    cpu_features: tuple[str, ...]
    devices: tuple[Device, ...]
    packages: tuple[PackageVersion, ...]
    has_tested_set: bool
    memory_bytes: int
    """The machine's memory, or the control group's limit where that is less."""
    memory_limit_bytes: int | None
    available_memory_bytes: int
    swap_bytes: int
    disks: tuple[Disk, ...]
    hf_home: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that breaks a run."""
        return not any(finding.broken for finding in self.findings)
