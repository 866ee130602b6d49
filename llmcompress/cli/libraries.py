"""Do the installed libraries fit together, and which devices do they find?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata, resources
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    from packaging.requirements import Requirement

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


class DiagnosisPart(BaseModel):
    """A frozen part of a diagnosis."""

    model_config = ConfigDict(frozen=True)


class DeviceFound(DiagnosisPart):
    """One device that OpenVINO can run a model on."""

    name: str
    full_name: str
    capabilities: tuple[str, ...]
    """Number formats the device computes in, as its plugin says."""


class DoctorFinding(DiagnosisPart):
    """One thing that is wrong, and what to do about it."""

    message: str
    hint: str
    broken: bool = True
    """Whether it breaks a run; False: worth knowing."""


class Probe(DiagnosisPart):
    """What importing the libraries showed."""

    failures: dict[str, str]
    """Module to the first line of its error."""
    devices: tuple[DeviceFound, ...]


def probe(modules: tuple[str, ...], progress: Reporter) -> Probe:
    """Import the libraries one by one and ask OpenVINO for its devices. For a worker: a broken build can crash."""
    failures = {}
    for target in modules:
        module, _, name = target.partition(":")
        progress(Progress(f"importing {module}", 0, 0))
        try:
            getattr(import_module(module), name or "__name__")
        except Exception as error:  # noqa: BLE001  (a broken library can raise anything)
            failures[module] = f"{type(error).__name__}: {error}".strip()
    if "openvino" not in modules or "openvino" in failures:
        return Probe(failures=failures, devices=())
    progress(Progress("asking OpenVINO for its devices", 0, 0))
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
    return tuple(need.name for need in _needs("llmcompress"))


def _needs(package: str) -> list[Requirement]:
    """What an installed package declares to need here, without its extras; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires(package) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [need for need in declared if need.marker is None or need.marker.evaluate({"extra": ""})]


def range_findings() -> Iterator[DoctorFinding]:
    """Compare each library of the stack with what the others, and llmcompress, declare to need."""
    for package in _STACK:
        for need in _needs(package):
            wanted = f"{package} {metadata.version(package)} needs {need.name}{need.specifier}"
            hint = f'pip install "{need.name}{need.specifier}"'
            try:
                found = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                yield DoctorFinding(message=f"{wanted}, which is not installed", hint=hint)
                continue
            if not need.specifier.contains(found, prereleases=True):
                yield DoctorFinding(message=f"{wanted}, found {found}", hint=hint)


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
        )


def import_finding(module: str, text: str, installed: Mapping[str, str]) -> DoctorFinding:
    """Say in plain words why a library cannot be imported."""
    if "torchvision::nms" in text:
        torch, vision = installed.get("torch"), installed.get("torchvision")
        return DoctorFinding(
            message=f"torchvision {vision} was built for another torch than {torch} (PyPI's torchvision next to a "
            "CPU-only torch, or the reverse) and cannot be imported; neither can what imports it",
            hint="install both from one index: pip install --force-reinstall --no-deps torch torchvision "
            "--index-url https://download.pytorch.org/whl/cpu",
        )
    first_line = text.strip().splitlines()[0]
    return DoctorFinding(
        message=f"`import {module}` fails: {first_line}", hint=f"python -c 'import {module}' shows where"
    )
