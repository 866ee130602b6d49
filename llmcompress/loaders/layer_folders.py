"""Packages in a folder of their own in the cache, to be put in front of a worker's search path: complete or absent."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from llmcompress.artifact import write_errors
from llmcompress.errors import LockedError, ResourceError
from llmcompress.system.cache import LOCKS, cache_dir, content_key, lock_of
from llmcompress.system.environment import platform_name
from llmcompress.system.progress import Progress, Reporter, silent

LAYERS = "layers"
"""The kind of such entries in the cache."""
_LAST_LINES = 5
_ONLY_WHEELS = ("--no-deps", "--only-binary=:all:", "--require-hashes")


def folder_of(requirements: Path) -> Path:
    """Where the packages stand, whether they are installed or not.

    Args:
        requirements: A file of pinned versions, each with the hashes of its wheels.
    """
    wanted = {"requirements": requirements.read_text(encoding="utf-8"), "platform": platform_name()}
    return cache_dir() / LAYERS / f"{content_key(wanted)[:12]}-{requirements.stem}"


def install(requirements: Path, *, progress: Reporter = silent) -> Path:
    """Install packages by pip, or uv where there is no pip, unless another run has done it meanwhile.

    They go into a temporary folder, which is renamed when it is complete.

    Args:
        requirements: As of ``folder_of``.
        progress: Told that it is going on.

    Returns:
        The folder.

    Raises:
        ResourceError: There is neither pip nor uv, or the packages cannot be had or are not those of their hashes.
        WriteError: The cache cannot be written.
    """
    folder = folder_of(requirements)
    progress(Progress(f"install {requirements.stem}", 0, 1))
    with write_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _installing(folder):
            if not folder.is_dir():
                _remove_leftovers(folder)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as begun:
                    made = Path(begun) / "packages"
                    _install(requirements, made)
                    made.rename(folder)
    progress(Progress(f"install {requirements.stem}", 1, 1))
    return folder


def remove(requirements: Path) -> bool:
    """Remove what was installed; returns whether there was something.

    Raises:
        LockedError: A run is using it.
        WriteError: It cannot be removed.
    """
    folder = folder_of(requirements)
    if not folder.is_dir():
        return False
    try:
        with write_errors(folder), lock_of(folder).write_lock(blocking=False):
            # Whoever looks for it from here on finds none.
            gone = folder.with_name(f".{folder.name}-removed")
            folder.rename(gone)
            shutil.rmtree(gone)
    except (Timeout, RuntimeError):  # RuntimeError: this process uses it itself.
        raise LockedError("a run is using it", where=requirements.stem, hint="remove it when that has ended") from None
    return True


def size_bytes(requirements: Path) -> int:
    """What the installed packages take on the disk."""
    return sum(path.stat().st_size for path in folder_of(requirements).rglob("*") if path.is_file())


def _installing(folder: Path) -> FileLock:
    directory = folder.parent.parent / LOCKS
    directory.mkdir(parents=True, exist_ok=True)
    return FileLock(directory / f"{LAYERS}-{folder.name}.lock")


def _remove_leftovers(folder: Path) -> None:
    """Of an installation that was killed: who holds the lock is the only one at work."""
    for left in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _install(requirements: Path, target: Path) -> None:
    command = [*_installer(requirements), *_ONLY_WHEELS, "--target", str(target), "-r", str(requirements)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        # A setting of the user's that contradicts a target directory.
        env={**os.environ, "PIP_USER": "0"},
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ResourceError(
            f"{'pip' if '-m' in command else 'uv'} could not install it; its last lines:",
            where=requirements.stem,
            hint=f"it takes the network, or an index that pip's settings name and the wheels of {requirements}",
            quoted=lines[-_LAST_LINES:],
        )


def _installer(requirements: Path) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        # What a run imports of them is compiled then: a tenth of it.
        return [*pip, "--no-compile", "--no-warn-script-location"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    raise ResourceError(
        "to install it, pip or uv is needed, and neither is there",
        where=requirements.stem,
        hint="python -m ensurepip",
    )
