"""Is this machine ready, and if not, what is wrong in plain words: libraries, devices, memory and disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata, resources
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from llmcompress.errors import LlmcompressError
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, cpu_name, installed_versions, platform_name
from llmcompress.system.memory import memory
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter, silent


class DiagnosisPart(BaseModel):
    """A frozen part of a diagnosis."""

    model_config = ConfigDict(frozen=True)


class PackageVersion(DiagnosisPart):
    """One library: what is installed and what the tests of this version of llmcompress ran with."""

    name: str
    installed: str | None
    tested: str | None


class DeviceFound(DiagnosisPart):
    """One device that OpenVINO can run a model on."""

    name: str
    full_name: str
    capabilities: tuple[str, ...]
    """Number formats the device computes in, as its plugin says."""


class Disk(DiagnosisPart):
    """Free space where something will be written."""

    use: str
    path: str
    free_bytes: int


class DoctorFinding(DiagnosisPart):
    """One thing that is wrong, and what to do about it."""

    message: str
    hint: str
    broken: bool
    """Whether it breaks a run; False: worth knowing."""


class Diagnosis(DiagnosisPart):
    """What `llmcompress doctor` found."""

    platform: str
    python: str
    cpu: str
    num_cores: int
    """Cores this process may use."""
    cpu_features: tuple[str, ...]
    devices: tuple[DeviceFound, ...]
    packages: tuple[PackageVersion, ...]
    has_tested_set: bool
    memory_bytes: int
    """The machine's memory, or the control group's limit where that is less."""
    memory_limit_bytes: int | None
    available_memory_bytes: int
    swap_bytes: int
    disks: tuple[Disk, ...]
    hf_home: str
    findings: tuple[DoctorFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that breaks a run."""
        return not any(finding.broken for finding in self.findings)


# What OpenVINO's CPU plugin and NNCF's kernels pick their code paths by.
_CPU_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def diagnose(progress: Reporter = silent) -> Diagnosis:
    """Look at libraries, devices, processor, memory and disk; import every library once, in a process of its own."""
    tested = tested_versions()
    declared = declared_packages() or PACKAGES_THAT_DECIDE_BYTES
    packages = tuple(dict.fromkeys(canonical(name) for name in (*declared, *SAME_RELEASE, "torch", "torchvision")))
    installed = installed_versions(packages)
    findings = [*range_findings(), *release_findings(installed)]
    devices: tuple[DeviceFound, ...] = ()
    last = ""

    def note_stage(event: Progress) -> None:
        nonlocal last
        last = event.stage
        progress(event)

    try:
        found = run_supervised(probe, {"modules": IMPORTS}, progress=note_stage)
    except LlmcompressError as error:
        findings.append(
            DoctorFinding(message=f"{last or 'starting Python'}: {error.message}", hint=error.hint, broken=True)
        )
    else:
        devices = found.devices
        findings += dict.fromkeys(import_finding(module, text, installed) for module, text in found.failures.items())
        if not devices and "openvino" not in found.failures:
            message = "OpenVINO finds no device, not even the CPU"
            hint = "reinstall it: pip install --force-reinstall openvino"
            findings.append(DoctorFinding(message=message, hint=hint, broken=True))
    here = memory()
    hf_home = _hf_home()
    return Diagnosis(
        platform=platform_name(),
        python=platform.python_version(),
        cpu=cpu_name(),
        num_cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        cpu_features=cpu_features(),
        devices=devices,
        packages=tuple(
            PackageVersion(name=name, installed=installed.get(name), tested=tested.get(name)) for name in packages
        ),
        has_tested_set=bool(tested),
        memory_bytes=here.total,
        memory_limit_bytes=here.limit,
        available_memory_bytes=here.available,
        swap_bytes=psutil.swap_memory().total,
        disks=tuple(_disks({"working directory": Path.cwd(), "Hugging Face cache": hf_home})),
        hf_home=str(hf_home),
        findings=tuple(findings),
    )


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the processor's instructions that matter for inference; empty where the system does not list them."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    flags: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            flags.update(value.split())
    return tuple(feature for feature in _CPU_FEATURES if feature in flags)


def _hf_home() -> Path:
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"


def _disks(places: dict[str, Path]) -> Iterator[Disk]:
    for use, path in places.items():
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        yield Disk(use=use, path=str(path), free_bytes=shutil.disk_usage(existing).free)


SAME_RELEASE = ("openvino", "openvino-tokenizers", "openvino-genai")
IMPORTS = (
    "torch",
    "torchvision",
    "transformers",
    "openvino",
    "openvino_tokenizers",
    "nncf",
    # optimum-intel imports the rest only when a class is asked for.
    "optimum.intel:OVModelForCausalLM",
)
_TESTED = "tested_versions.txt"
_STACK = ("llmcompress", "optimum-intel", "optimum", "nncf", "openvino-tokenizers", "transformers", "torchvision")


class Probe(DiagnosisPart):
    """What importing the libraries showed."""

    failures: dict[str, str]
    """Module to the first line of its error."""
    devices: tuple[DeviceFound, ...]


def probe(modules: tuple[str, ...], progress: Reporter) -> Probe:
    """Import the libraries one by one and ask OpenVINO for its devices. For a worker: a broken build can crash."""
    failures = {}
    for done, target in enumerate(modules):
        module, _, name = target.partition(":")
        progress(Progress(f"importing {module}", done, len(modules), "libraries"))
        try:
            getattr(import_module(module), name or "__name__")
        except Exception as error:  # noqa: BLE001  (a broken library can raise anything)
            failures[module] = f"{type(error).__name__}: {error}".strip()
    if "openvino" not in modules or "openvino" in failures:
        return Probe(failures=failures, devices=())
    progress(Progress("asking OpenVINO for its devices", len(modules), len(modules), "libraries"))
    return Probe(failures=failures, devices=tuple(_devices()))


def _devices() -> Iterator[DeviceFound]:
    from openvino import Core

    core = Core()
    for name in core.available_devices:
        try:
            full_name = str(core.get_property(name, "FULL_DEVICE_NAME"))
            capabilities = tuple(sorted(core.get_property(name, "OPTIMIZATION_CAPABILITIES")))
        except RuntimeError as error:
            # A plugin without its driver lists a device that answers nothing.
            full_name, capabilities = f"does not answer: {error}".splitlines()[0], ()
        yield DeviceFound(name=name, full_name=full_name, capabilities=capabilities)


def tested_versions() -> dict[str, str]:
    """Return the set of library versions that llmcompress was tested with; empty where the package has no such list."""
    try:
        text = (resources.files("llmcompress.cli") / _TESTED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonical(name): version.strip() for name, _, version in (line.partition("==") for line in lines if line)}


def canonical(name: str) -> str:
    """Return a package's name as the index spells it: case and the kind of separator do not matter."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def declared_packages() -> tuple[str, ...]:
    """Return the libraries that llmcompress declares to need, without its extras."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires("llmcompress") or ()]
    except metadata.PackageNotFoundError:
        return ()
    return tuple(need.name for need in required if need.marker is None or need.marker.evaluate({"extra": ""}))


def range_findings() -> Iterator[DoctorFinding]:
    """Compare each library of the stack with what the others, and llmcompress, declare to need."""
    from packaging.requirements import Requirement

    for package in _STACK:
        try:
            needs = [Requirement(text) for text in metadata.requires(package) or ()]
        except metadata.PackageNotFoundError:
            continue
        for need in needs:
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            wanted = f"{package} {metadata.version(package)} needs {need.name}{need.specifier}"
            hint = f'pip install "{need.name}{need.specifier}"'
            try:
                found = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                yield DoctorFinding(message=f"{wanted}, which is not installed", hint=hint, broken=True)
                continue
            if not need.specifier.contains(found, prereleases=True):
                yield DoctorFinding(message=f"{wanted}, found {found}", hint=hint, broken=True)


def release_findings(installed: Mapping[str, str]) -> Iterator[DoctorFinding]:
    """Compare the OpenVINO packages, which share binary interfaces and must come from one release."""
    releases = {name: ".".join(installed[name].split(".")[:3]) for name in SAME_RELEASE if name in installed}
    if len(set(releases.values())) > 1:
        listed = ", ".join(f"{name} {installed[name]}" for name in releases)
        yield DoctorFinding(
            message=f"these must be of the same release, or tokenizers fail to load: {listed}",
            hint="pip install " + " ".join(f"{name}=={releases['openvino']}.*" for name in releases)
            if "openvino" in releases
            else "pip install openvino",
            broken=True,
        )


def import_finding(module: str, text: str, installed: Mapping[str, str]) -> DoctorFinding:
    """Say in plain words why a library cannot be imported."""
    if "torchvision::nms" in text:
        torch, vision = installed.get("torch"), installed.get("torchvision")
        return DoctorFinding(
            message=f"torchvision {vision} was built for another torch than {torch} (PyPI's torchvision beside a "
            "CPU-only torch, or the reverse) and cannot be imported; neither can what imports it",
            hint="install both from one index: pip install --force-reinstall --no-deps torch torchvision "
            "--index-url https://download.pytorch.org/whl/cpu",
            broken=True,
        )
    first_line = text.strip().splitlines()[0]
    return DoctorFinding(
        message=f"`import {module}` fails: {first_line}", hint=f"python -c 'import {module}' shows where", broken=True
    )
