"""An output directory appears complete by one rename, or not at all.

While a run works, its files are in ``.NAME.staging-XXXXXXXX/model`` next to the target, on the same file system, under
the lock ``.NAME.lock``. Next to ``model`` lies ``owner.json``: it marks the directory as ours and says whose it is, so
that what a killed run left is known and removed by the next one, and nobody else's directory is.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout, UnixFileLock
from pydantic import ValidationError

from llmcompress.artifact.failures import size_limit_as_error, write_errors
from llmcompress.artifact.manifest import NOT_LISTED, entries, manifest_bytes
from llmcompress.artifact.placement import checked_output, refuse_existing, resolve_output
from llmcompress.errors import ArtifactError, LlmcompressError, LockedError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.file_names import MANIFEST
from llmcompress.report.record import Record
from llmcompress.system.files import replace_directory, short_name, sync_directory, sync_tree, write_synced

_OWNER, _MODEL, _REPLACED = "owner.json", "model", "replaced"
_REMOVALS = 5
"""Attempts at removing what was staged, should one signal after another interrupt it."""

_log = logging.getLogger(__name__)


class _Owner(Record):
    """The process that a staging directory belongs to; its start time tells it from a later one of the same number."""

    pid: int
    started: float
    host: str


@dataclass(frozen=True)
class Staging:
    """A place for the files of an output directory that is not there yet."""

    path: Path
    """Where the files are written."""
    target: Path
    """Where they will be, absolute."""
    overwrite: bool

    def scratch_dir(self) -> Path:
        """Make and return an empty directory on the same file system; it goes with the staging."""
        directory = self.path.with_name("scratch")
        with write_errors(directory):
            directory.mkdir()
        return directory

    def publish(self, manifest: CompressionReport) -> Path:
        """Make everything durable, write the manifest last, and put the directory in place; returns ``target``.

        Raises ArtifactError if the manifest does not list the staged files, UsageError if ``target`` appeared
        meanwhile and may not be replaced, WriteError if the disk refuses. In each case nothing is put in place.
        """
        directory = self.path.parent
        with write_errors(self.target):
            _refuse_mismatch(self.path, manifest)
            sync_tree(self.path)
            write_synced(directory / MANIFEST, manifest_bytes(manifest))
            (directory / MANIFEST).rename(self.path / MANIFEST)
            sync_directory(self.path)
            if refuse_existing(self.target, overwrite=self.overwrite):
                replace_directory(self.path, self.target, aside=directory / _REPLACED)
            else:
                self.path.rename(self.target)
            sync_directory(self.target.parent)
        return self.target


@contextmanager
def staging(output_dir: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> Iterator[Staging]:
    """Lock ``output_dir`` and give a directory next to it to write into; ``publish`` puts that in place.

    Left without ``publish``, by an exception or not, it leaves nothing behind, and an existing output as it was.
    ``inputs`` are the files and directories the output is made from.

    Raises UsageError (exists, is not replaceable, overlaps an input) before anything is written, LockedError if
    another run works on the same output, WriteError if nothing can be written there.
    """
    target = checked_output(output_dir, inputs, overwrite=overwrite)
    with size_limit_as_error(), _parents(target), _locked(target):
        with write_errors(target):
            _remove_stale(target)
        refuse_existing(target, overwrite=overwrite)
        directory = _next_to(target, f".staging-{secrets.token_hex(4)}")
        try:
            with write_errors(directory):
                directory.mkdir()
                write_synced(directory / _OWNER, _this_process().model_dump_json().encode())
                (directory / _MODEL).mkdir()
                # On a file system whose lock never refuses, of two runs at least one sees the other here.
                _refuse_rivals(target)
            yield Staging(directory / _MODEL, target, overwrite)
        finally:
            _remove(directory, target)


def remove_artifact(output_dir: str | Path) -> None:
    """Remove an artifact, if one is there, at once and as a whole.

    Raises UsageError if something else is there, LockedError if another run works there, WriteError if the disk
    refuses.
    """
    target = resolve_output(output_dir)
    if not os.path.lexists(target):
        return
    with staging(target, overwrite=True) as stage, write_errors(target):
        target.rename(stage.path.with_name("removed"))
        sync_directory(target.parent)


def remove_leftovers(output_dir: str | Path) -> None:
    """Remove what a killed run to this output left next to it; nothing while another run is at work there."""
    with suppress(LlmcompressError, OSError):
        target = resolve_output(output_dir)
        if _next_to(target, ".lock").exists() or _stagings(target):
            with _locked(target):
                _remove_stale(target)


def _next_to(target: Path, ending: str) -> Path:
    return target.with_name(f".{short_name(target.name)}{ending}")


def _refuse_mismatch(path: Path, manifest: CompressionReport) -> None:
    listed = {record.path: record.size_bytes for record in manifest.files}
    staged = {
        name: entry.stat(follow_symlinks=False).st_size for name, entry in entries(path) if name not in NOT_LISTED
    }
    if listed != staged:
        names = ", ".join(sorted(name for name, _ in listed.items() ^ staged.items()))
        raise ArtifactError(
            f"the manifest does not list what was written; they differ in {names}",
            where=str(path),
            hint="make the manifest from file_records() after the last file is written",
        )


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """The directories above ``target``, made where they are missing; those made are removed if they stay empty."""
    with write_errors(target.parent):
        made = [parent for parent in target.parents if not parent.exists()]
    try:
        with write_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            for parent in made:
                sync_directory(parent.parent)
        yield
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One run at a time: the operating system releases the lock of a process that ends, in whatever way."""
    path = _next_to(target, ".lock")
    lock = FileLock(path, blocking=False)
    with write_errors(path):
        try:
            lock.acquire()
        except Timeout:
            raise _locked_error(target, next(_live_owners(target), None)) from None
    try:
        yield
    finally:
        # Removed while still held: whoever locked this file later finds it without a name (filelock looks at
        # st_nlink) and does not take it for the lock. The other kinds of lock remove their file themselves.
        if isinstance(lock, UnixFileLock):
            with suppress(OSError):
                path.unlink()
        lock.release()


def _locked_error(target: Path, owner: _Owner | None) -> LockedError:
    who = f"another run (process {owner.pid} on {owner.host})" if owner else "another run"
    return LockedError(
        f"{who} is writing this output",
        where=str(target),
        hint="wait until it ends, or choose another output directory",
    )


def _this_process() -> _Owner:
    process = psutil.Process()
    return _Owner(pid=process.pid, started=process.create_time(), host=platform.node())


def _stagings(target: Path) -> list[Path]:
    pattern = re.compile(re.escape(_next_to(target, ".staging-").name) + "[0-9a-f]{8}")
    return [
        path
        for path in target.parent.iterdir()
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _owner(directory: Path) -> _Owner | None:
    try:
        return _Owner.model_validate_json((directory / _OWNER).read_bytes())
    except (OSError, ValidationError):
        return None


def _live_owners(target: Path) -> Iterator[_Owner]:
    """Other processes on this machine that are alive and own a staging directory of ``target``."""
    for owner in map(_owner, _stagings(target)):
        # Of other machines, and of this process, only the lock knows.
        if owner and owner.host == platform.node() and owner.pid != os.getpid():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(owner.pid)
                if process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - owner.started) < 1:
                    yield owner


def _refuse_rivals(target: Path) -> None:
    for owner in _live_owners(target):
        raise _locked_error(target, owner)


def _remove_stale(target: Path) -> None:
    """Remove what killed runs left; the lock is held, so whoever made it is gone."""
    _refuse_rivals(target)
    for directory in _stagings(target):
        # A run killed at its first steps left no mark yet, but then the directory is empty.
        if (directory / _OWNER).is_file() or not any(directory.iterdir()):
            _remove(directory, target)


def _remove(directory: Path, target: Path) -> None:
    """Remove a staging directory, also when Ctrl-C comes while that is done; it is raised afterwards."""
    interruption: BaseException | None = None
    for _ in range(_REMOVALS):
        try:
            _remove_now(directory, target)
            break
        except BaseException as error:  # noqa: BLE001 - whatever a signal's handler raises
            interruption = error
    if interruption is not None:
        raise interruption


def _remove_now(directory: Path, target: Path) -> None:
    """Remove it, its mark last; an old output that was moved aside goes back where it was."""
    try:
        if not directory.exists():
            return
        if (directory / _REPLACED).exists() and not target.exists():
            (directory / _REPLACED).rename(target)
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _OWNER:
                path.unlink()
        (directory / _OWNER).unlink(missing_ok=True)
        directory.rmdir()
    except OSError as error:
        _log.warning("%s could not be removed (%s); the next run to this output tries again", directory, error)
