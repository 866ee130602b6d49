"""Where a result was made: the libraries and the machine its bytes depend on, and keeping those libraries at home."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES_THAT_DECIDE_BYTES = (
    "llmcompress",
    "openvino",
    "openvino-tokenizers",
    "nncf",
    "optimum",
    "optimum-intel",
    "transformers",
    "tokenizers",
    "torch",
    "numpy",
    "safetensors",
)
PACKAGES_THAT_DECIDE_SCORES = ("llmcompress", "openvino", "optimum-intel", "torch", "transformers", "numpy")

# Each is a default: what a person has set themselves is kept.
_STAY_AT_HOME = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    # Otherwise transformers asks a Hub service to convert a repository, from a thread, behind a local load.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
}


_is_worker = False
_ends_after_this_call = False


def quiet_libraries() -> None:
    """Keep every library from phoning home and from writing to the home directory; harmless to call twice.

    `import openvino` and every NNCF call report usage through the package `openvino_telemetry`, which resolves host
    names and writes `~/intel`, and has no switch besides a file in the home directory. Both libraries do without the
    package when it cannot be imported, so it is made unimportable in this process. `import llmcompress` calls this,
    because the first report is sent while OpenVINO is imported; where OpenVINO came first, what follows is stopped.
    """
    for name, value in _STAY_AT_HOME.items():
        os.environ.setdefault(name, value)
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - the method raises where nothing is known of a home
        # NNCF asks for one when it is imported. What cannot be written every library does without.
        os.environ["HOME"] = str(Path(os.devnull, "no home directory"))
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    elif sys.modules["openvino_telemetry"] is not None:
        _decline_loaded_telemetry()
    hub_constants = sys.modules.get("huggingface_hub.constants")
    if hub_constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"].lower() in {"1", "true", "yes", "on"}:
        # It read the environment when it was imported.
        vars(hub_constants)["HF_HUB_DISABLE_TELEMETRY"] = True


def leave_out_sklearn() -> None:
    """Make scikit-learn unimportable, in a process that is ours alone and has imported little yet.

    transformers imports it, for assisted generation, wherever it is installed: a second of every start.
    """
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]


def becomes_worker() -> None:
    """Say that this process was started to carry out calls of another one."""
    global _is_worker
    _is_worker = True


def is_worker() -> bool:
    """Whether this process was started to carry out calls of another one."""
    return _is_worker


def ends_after_this_call() -> None:
    """Say that this process is ours alone, and ends with what it does now."""
    global _ends_after_this_call
    _ends_after_this_call = True


def will_end() -> bool:
    """Whether this process is ours alone, and ends with what it does now."""
    return _ends_after_this_call


def leave_out_torch(*others: str) -> None:
    """Make torch and others unimportable, where nothing follows that needs them: in a process that ends with this call.

    transformers opens a tokenizer without it, in a third of the time and an eighth of the memory.
    """
    if will_end() and "transformers" not in sys.modules:
        for name in ("torch", *others):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]


@contextlib.contextmanager
def left_out_meanwhile(name: str) -> Iterator[bool]:
    """Make a package unimportable for a while, where nothing has imported it, in a process that ends with this call.

    Yields:
        Whether it is.
    """
    is_left_out = will_end() and name not in sys.modules
    if is_left_out:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield is_left_out
    finally:
        if is_left_out:
            del sys.modules[name]


def threads_of_torch() -> int:
    """The number of threads that torch takes; 1 where it is left out, and little is computed."""
    if sys.modules.get("torch", sys) is None:
        return 1
    import torch

    return int(torch.get_num_threads())


def allow_sklearn() -> None:
    """Undo `leave_out_sklearn`, for code that we do not know."""
    if sys.modules.get("sklearn", sys) is None:
        del sys.modules["sklearn"]


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the version of each installed package, without importing any; those not installed are left out."""
    # Costs more than all else that `import llmcompress` needs.
    from importlib import metadata

    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def platform_name() -> str:
    """Return operating system and instruction set, such as `linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model name, or the most that the platform tells of it."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"}:
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _decline_loaded_telemetry() -> None:
    checker = sys.modules["openvino_telemetry.utils.opt_in_checker"]
    sender = sys.modules["openvino_telemetry.utils.sender"]
    # A consent that reads as declined writes no file; a sender that sends nothing looks up no host.
    checker.OptInChecker.check = lambda *args, **kwargs: checker.ConsentCheckResult.DECLINED
    sender.TelemetrySender.send = lambda *args, **kwargs: None
