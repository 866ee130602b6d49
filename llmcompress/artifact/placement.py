"""May the output go there? Answered before anything is written, so that nothing of the user's is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from llmcompress.artifact.failures import write_errors
from llmcompress.errors import UsageError
from llmcompress.report.file_names import MANIFEST
from llmcompress.system.files import is_utf8

_Identity = tuple[int, int]

_ELSEWHERE = "choose another output directory"


def resolve_output(output_dir: str | Path) -> Path:
    """The absolute path that the output will have; links on the way to it are followed. Raises UsageError."""
    try:
        target = Path(output_dir).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"cannot be an output directory: {error}", where=str(output_dir), hint=_ELSEWHERE) from None
    if not is_utf8(target):
        raise UsageError("is no text in UTF-8, and OpenVINO takes no other path", where=str(target), hint=_ELSEWHERE)
    if not target.name or os.path.ismount(target):
        raise UsageError(
            "is a mount point, which cannot be put in place by a rename",
            where=str(target),
            hint=f"choose a directory inside it, such as {target / 'model'}",
        )
    return target


def checked_output(output_dir: str | Path, inputs: Iterable[str | Path], *, overwrite: bool) -> Path:
    """The absolute path of an output that may be written there; raises as the three checks of this file do."""
    target = resolve_output(output_dir)
    with write_errors(target):
        refuse_overlap(target, [Path(path) for path in inputs])
    refuse_existing(target, overwrite=overwrite)
    return target


def refuse_existing(target: Path, *, overwrite: bool) -> bool:
    """Whether ``target`` is there to be replaced; raises UsageError if it is there and may not be.

    With ``overwrite`` an llmcompress artifact or an empty directory may be replaced, and nothing else. Raises
    WriteError where the file system takes no such name or does not say.
    """
    with write_errors(target):
        if not _is_there(target):
            return False
        if not target.is_dir():
            raise UsageError("exists and is not a directory", where=str(target), hint=_ELSEWHERE)
        if not (target / MANIFEST).is_file() and any(target.iterdir()):
            raise UsageError(
                f"exists, and is no llmcompress artifact (it has no {MANIFEST}): it is left as it is",
                where=str(target),
                hint=_ELSEWHERE,
            )
    if not overwrite:
        raise UsageError("exists already", where=str(target), hint=f"`overwrite` replaces it; or {_ELSEWHERE}")
    return True


def _is_there(target: Path) -> bool:
    try:
        target.lstat()
    except OSError as error:
        # What else is in the way of it, such as a file above it, is told when the directories above it are made.
        if error.errno == errno.ENAMETOOLONG:
            raise
        return False
    return True


def refuse_overlap(target: Path, inputs: Iterable[Path]) -> None:
    """Raise UsageError if writing ``target`` could touch an input: saving over a mapped model destroys it.

    Paths are compared after following links, and by device and inode, which a bind mount and a hard link share.
    """
    same = _identity(target)
    # Only what `overwrite` would remove is searched for the input's files; anything else that exists is refused anyway.
    held = _tree(target) if (target / MANIFEST).is_file() else {}
    above = [identity for parent in target.parents if (identity := _identity(parent))]
    for given in inputs:
        source = given.resolve()
        tree = _tree(source)
        own = _identity(source)
        if source == target or (own and own == same):
            problem = "is the input itself"
        elif source in target.parents or any(identity in tree for identity in above):
            problem = f"lies inside the input {given}"
        elif target in source.parents or (same and same in map(_identity, source.parents)):
            problem = f"contains the input {given}"
        elif shared := tree.keys() & held.keys():
            problem = f"shares files with the input by links, such as {tree[min(shared)]}"
        else:
            continue
        raise UsageError(f"{problem}; the input is never written to", where=str(target), hint=_ELSEWHERE)


def _tree(root: Path) -> dict[_Identity, Path]:
    """Device and inode of ``root`` and of everything below it; a link stands for what it points to."""
    paths = [root]
    for folder, directories, files in os.walk(root):
        paths.extend(Path(folder, name) for name in (*directories, *files))
    return {identity: path for path in paths if (identity := _identity(path))}


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # Some file systems have no inode numbers and say 0, which would make all files one.
    return (status.st_dev, status.st_ino) if status.st_ino else None
