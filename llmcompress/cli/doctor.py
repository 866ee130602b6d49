"""`llmcompress doctor`: is this machine ready, and if not, what is wrong in plain words."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import psutil
import typer

from llmcompress.cli.console import facts_table, print_blocks, print_note, print_report, table, write_line
from llmcompress.cli.layers import manage_layers
from llmcompress.cli.libraries import (
    IMPORTS,
    SAME_RELEASE,
    DeviceFound,
    DiagnosisPart,
    DoctorFinding,
    canonical,
    declared_packages,
    import_finding,
    probe,
    range_findings,
    release_findings,
    tested_versions,
)
from llmcompress.cli.options import Json, Verbose
from llmcompress.cli.progress import watching
from llmcompress.errors import LlmcompressError, ResourceError, UsageError
from llmcompress.report.text import size_text
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES, cpu_name, installed_versions, platform_name
from llmcompress.system.files import free_bytes
from llmcompress.system.memory import memory
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter, silent


class PackageVersion(DiagnosisPart):
    """One library: what is installed and what the tests of this version of llmcompress ran with."""

    name: str
    installed: str | None
    tested: str | None


class Disk(DiagnosisPart):
    """Free space where something will be written."""

    use: str
    path: str
    free_bytes: int


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


def doctor(
    layers: Annotated[
        bool, typer.Option("--layers", help="List the versions of transformers that some architectures need.")
    ] = False,
    install: Annotated[
        list[str] | None,
        typer.Option("--install", metavar="VERSION", help="With --layers: install one; may be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="VERSION", help="With --layers: remove one; may be repeated."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """[bold]Examples[/bold]
    llmcompress doctor
    llmcompress doctor --json > doctor.json
    llmcompress doctor --layers --install 5.0.0
    """
    if layers:
        manage_layers(install or (), remove or (), as_json=as_json, verbose=verbose)
        return
    if install or remove:
        raise UsageError("`install` and `remove` are of layers", where="llmcompress doctor", hint="write --layers too")
    with watching(verbose=verbose) as watch:
        diagnosis = diagnose(watch.report)
    print_report(diagnosis, _print, as_json=as_json, brief=lambda _: "")
    broken = [finding for finding in diagnosis.findings if finding.broken]
    if broken:
        more = f", and {len(broken) - 1} more above" if len(broken) > 1 else ""
        raise ResourceError(broken[0].message + more, where="doctor", hint=broken[0].hint)


def _print(diagnosis: Diagnosis) -> None:
    from rich.text import Text

    facts = {
        "Platform": f"{diagnosis.platform}, Python {diagnosis.python}",
        "Processor": f"{diagnosis.cpu}, {diagnosis.num_cores} cores",
        "Instructions": ", ".join(diagnosis.cpu_features) or "not listed by this system",
        "Memory": f"{size_text(diagnosis.available_memory_bytes)} free of {size_text(diagnosis.memory_bytes)}"
        + (" (limit of the control group)" if diagnosis.memory_limit_bytes is not None else "")
        + (f", swap {size_text(diagnosis.swap_bytes)}" if diagnosis.swap_bytes else ", no swap"),
    }
    for disk in diagnosis.disks:
        facts[disk.use[:1].upper() + disk.use[1:]] = f"{disk.path}  ({size_text(disk.free_bytes)} free)"
    for device in diagnosis.devices:
        capabilities = f"  ({', '.join(device.capabilities)})" if device.capabilities else ""
        facts[f"Device {device.name}"] = device.full_name + capabilities
    packages = table(["Package", "Installed", *(["Tested with"] if diagnosis.has_tested_set else [])])
    for package in diagnosis.packages:
        differs = package.tested is not None and package.installed != package.tested
        installed = Text(package.installed or "not installed", style="yellow" if differs else "")
        tested = [(package.tested or "") + (" (differs)" if differs else "")] if diagnosis.has_tested_set else []
        packages.add_row(package.name, installed, *tested)
    print_blocks(facts_table(facts), packages)
    write_line("")
    for finding in diagnosis.findings:
        label, style = ("broken: ", "bold red") if finding.broken else ("note: ", "bold")
        print_note(label, finding.message, style)
        print_note("hint: ", finding.hint, "bold cyan")
    if not diagnosis.findings:
        write_line("No broken combination was found.")


# What OpenVINO's CPU plugin and NNCF's kernels pick their code paths by.
_CPU_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def diagnose(progress: Reporter = silent) -> Diagnosis:
    """Look at libraries, devices, processor, memory and disk; import every library once, in a process of its own."""
    tested = tested_versions()
    declared = declared_packages() or PACKAGES_THAT_DECIDE_BYTES
    names = (*declared, *SAME_RELEASE, "peft", "torch", "torchvision")
    packages = tuple(dict.fromkeys(canonical(name) for name in names))
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
        findings.append(DoctorFinding(message=f"{last or 'starting Python'}: {error.message}", hint=error.hint))
    else:
        devices = found.devices
        findings += dict.fromkeys(import_finding(module, text, installed) for module, text in found.failures.items())
        if not devices and "openvino" not in found.failures:
            message = "OpenVINO finds no device, not even the CPU"
            hint = "reinstall it: pip install --force-reinstall openvino"
            findings.append(DoctorFinding(message=message, hint=hint))
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
        disks=tuple(
            Disk(use=use, path=str(path), free_bytes=free_bytes(path))
            for use, path in (("working directory", Path.cwd()), ("Hugging Face cache", hf_home))
        ),
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
