"""Does a directory hold what its manifest says, byte for byte? An OpenVINO IR has no checksum of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmcompress.artifact.manifest import NOT_LISTED, entries, file_record, is_sealed_wrong, read_manifest
from llmcompress.errors import ArtifactError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.file_names import MANIFEST
from llmcompress.report.readable import Readable
from llmcompress.report.record import FileRecord

# Where huggingface_hub notes what it downloaded into a local directory.
_HUB_NOTES = ".cache/huggingface/"


class Problem(NamedTuple):
    """One deviation: the file (POSIX path) and what is wrong with it."""

    path: str
    text: str


class VerifyReport(Readable):
    """The answer of ``verify``: every deviation of a directory from its manifest."""

    ok: bool
    directory: str
    """Name of the directory, without the path to it."""
    num_files: int
    """Files that the manifest lists."""
    problems: tuple[Problem, ...]


def verify(directory: str | Path) -> VerifyReport:
    """Hash every file of an output directory again and name every deviation from its manifest.

    Deviations are returned, not raised: files missing, unknown, of another size or content, links, and a manifest
    that cannot be read or needs a newer version. Raises ArtifactError if there is no manifest at all.
    """
    return _verified(Path(directory))[1]


def require_verified(directory: str | Path) -> CompressionReport:
    """The manifest of an output directory that is byte for byte what it says.

    Raises ArtifactError that names the deviations, or that there is no manifest.
    """
    manifest, report = _verified(Path(directory))
    if manifest is None or not report.ok:
        named = "; ".join(f"{path}: {text}" for path, text in report.problems[:5])
        more = len(report.problems) - 5
        raise ArtifactError(
            f"is not what its manifest says: {named}" + (f"; and {more} more" if more > 0 else ""),
            where=str(directory),
            hint="run llmcompress compress ... --overwrite, or download it again",
        )
    return manifest


def _verified(directory: Path) -> tuple[CompressionReport | None, VerifyReport]:
    if not os.path.lexists(directory / MANIFEST):
        read_manifest(directory)  # raises: not an artifact
    manifest: CompressionReport | None = None
    try:
        manifest = read_manifest(directory)
        problems = tuple(sorted(_problems(directory, manifest)))
    except ArtifactError as error:
        problems = (Problem(MANIFEST, f"{error.message}; {error.hint}"),)
    except OSError as error:
        problems = (Problem(str(error.filename), f"cannot be read: {error.strerror}"),)
    num_files = len(manifest.files) if manifest else 0
    name = directory.resolve().name
    return manifest, VerifyReport(ok=not problems, directory=name, num_files=num_files, problems=problems)


def _problems(directory: Path, manifest: CompressionReport) -> Iterator[Problem]:
    if is_sealed_wrong(directory):
        yield Problem(MANIFEST, "has other content than when it was written (its own sha256 differs)")
    listed = {record.path: record for record in manifest.files}
    if len(listed) != len(manifest.files):
        yield Problem(MANIFEST, "lists a file twice")
    # Only what is found below the directory is opened: a path in the manifest that leads outside is just missing.
    present = {name: entry for name, entry in entries(directory) if not name.startswith(_HUB_NOTES)}
    for name in listed.keys() - present.keys():
        yield Problem(name, "is missing")
    for name, entry in present.items():
        if entry.is_symlink() and not _is_hub_link(directory, entry):
            yield Problem(name, "is a link")
        elif name in listed:
            yield from _differences(listed[name], entry)
        elif name not in NOT_LISTED:
            yield Problem(name, "is not in the manifest")


def _differences(record: FileRecord, entry: os.DirEntry[str]) -> Iterator[Problem]:
    try:
        size = entry.stat().st_size
        if entry.is_file() and size != record.size_bytes:
            yield Problem(record.path, f"has {size} bytes, the manifest says {record.size_bytes}")
        elif file_record(record.path, entry).sha256 != record.sha256:
            yield Problem(record.path, "has other content than the manifest says (sha256 differs)")
    except ArtifactError as error:
        yield Problem(record.path, error.message)
    except OSError as error:
        yield Problem(record.path, f"cannot be read: {error.strerror}")


def _is_hub_link(directory: Path, entry: os.DirEntry[str]) -> bool:
    """Whether a link is how the Hugging Face cache stores a file: ``snapshots/COMMIT/name -> blobs/HASH``."""
    snapshot = directory.resolve()
    blob = Path(entry.path).resolve()
    return snapshot.parent.name == "snapshots" and blob.parent == snapshot.parent.parent / "blobs"
