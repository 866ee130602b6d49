"""Is this machine ready, and if not, what is wrong in plain words.

diagnosis.py   what was found, as data
libraries.py   libraries that do not fit together, and the devices OpenVINO sees
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmcompress.doctor.diagnosis import Device, Diagnosis, Disk, Finding, PackageVersion
from llmcompress.doctor.libraries import (
    IMPORTS,
    SAME_RELEASE,
    Probe,
    canonical,
    declared_packages,
    import_finding,
    range_findings,
    release_findings,
    tested_versions,
)
from llmcompress.environment import PACKAGES_THAT_DECIDE_BYTES, cpu_name, installed_versions, platform_name
from llmcompress.errors import LlmcompressError
from llmcompress.memory import memory
from llmcompress.progress import Progress, Reporter, silent
from llmcompress.supervisor import run_supervised

__all__ = ["Diagnosis", "cpu_features", "diagnose"]

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
    devices: tuple[Device, ...] = ()
    last = ""

    def note_stage(event: Progress) -> None:
        nonlocal last
        last = event.stage
        progress(event)

    try:
        probe = run_supervised("llmcompress.doctor.libraries:probe", {"modules": IMPORTS}, progress=note_stage)
    except LlmcompressError as error:
        findings.append(Finding(message=f"{last or 'starting Python'}: {error.message}", hint=error.hint, broken=True))
    else:
        assert isinstance(probe, Probe)
        devices = probe.devices
        findings += dict.fromkeys(import_finding(module, text, installed) for module, text in probe.failures.items())
        if not devices and "openvino" not in probe.failures:
            message = "OpenVINO finds no device, not even the CPU"
            hint = "reinstall it: pip install --force-reinstall openvino"
            findings.append(Finding(message=message, hint=hint, broken=True))
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
