"""The manifest ``llmcompress.json``: what an output directory holds, file by file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import ValidationError

from llmcompress.errors import ArtifactError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.file_names import (
    BENCH_REPORT,
    BENCHMARK_SCORES,
    CARD,
    EVAL_REPORT,
    MANIFEST,
    SEARCH_REPORT,
    TUNE_REPORT,
)
from llmcompress.report.record import FileRecord, Record

REPORTS = frozenset({CARD, BENCH_REPORT, EVAL_REPORT, SEARCH_REPORT, TUNE_REPORT})
"""Files that later steps add: not listed in the manifest, they carry its hash instead."""

HUB_FILES = frozenset({".gitattributes"})
"""Files that the Hub adds to a repository."""

NOT_LISTED = frozenset({MANIFEST}) | REPORTS | HUB_FILES | frozenset(BENCHMARK_SCORES.values())

SCHEMA_VERSION: int = CompressionReport.model_fields["schema_version"].default


_END = b"\n  }\n}\n"
"""Of the part ``measured``, which comes last, and of the file."""
_DAMAGED = 4
"""Bytes of a seal that may be others for it to be known as one."""


class _Header(Record):
    """The fields that every version of the manifest has."""

    schema_version: int
    llmcompress_version: str = "unknown"


def entries(directory: Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below ``directory`` that is not a directory, by its POSIX path; links are not followed."""
    with os.scandir(directory) as found:
        for entry in found:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from entries(Path(entry.path), name + "/")
            else:
                yield name, entry


def file_records(directory: str | Path, exclude: Collection[str] = NOT_LISTED) -> tuple[FileRecord, ...]:
    """Size and sha256 of every file below ``directory`` except those named in ``exclude``, sorted by POSIX path.

    Every file is read once. Raises ArtifactError for what is not a regular file (a device, a dangling link, a linked
    directory).
    """
    return tuple(
        file_record(name, entry) for name, entry in sorted(entries(Path(directory)), key=_name) if name not in exclude
    )


def file_record(name: str, entry: os.DirEntry[str]) -> FileRecord:
    """Size and sha256 of one file, read once."""
    if not entry.is_file():
        raise ArtifactError("is no regular file", where=entry.path, hint="remove it, or put a copy in its place")
    with Path(entry.path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(path=name, size_bytes=file.tell(), sha256=digest)


def sealed(manifest: CompressionReport) -> CompressionReport:
    """The manifest with the hash of its own file as it is without that."""
    digest = hashlib.sha256(_dumped(_with_seal(manifest, None))).hexdigest()
    return _with_seal(manifest, digest)


def manifest_bytes(manifest: CompressionReport) -> bytes:
    """The manifest as its file holds it, sealed: the same record gives the same bytes."""
    return _dumped(sealed(manifest))


def is_sealed_wrong(directory: str | Path) -> bool:
    """Whether a manifest has a hash of itself that its file does not have; one of an earlier version has none."""
    content = _read(Path(directory))
    start, given = content[: -len(_seal(""))], content[-len(_seal("")) :]
    alike = sum(one == other for one, other in zip(given, _seal("?" * 64), strict=False))
    # Nearly all that is not the hash: a damaged place does not make it another version's.
    if alike < len(_seal("")) - 64 - _DAMAGED:
        return False
    return given != _seal(hashlib.sha256(start + _END).hexdigest())


def _seal(digest: str) -> bytes:
    """The last bytes of a manifest."""
    return f',\n    "sha256": "{digest:>64}"'.encode() + _END


def _with_seal(manifest: CompressionReport, digest: str | None) -> CompressionReport:
    return manifest.model_copy(update={"measured": manifest.measured.model_copy(update={"sha256": digest})})


def _dumped(manifest: CompressionReport) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def manifest_sha256(directory: str | Path) -> str:
    """The hash of the manifest file, which reports carry to say which bytes they were measured on.

    Raises ArtifactError if there is none.
    """
    return hashlib.sha256(_read(Path(directory))).hexdigest()


def read_manifest(directory: str | Path) -> CompressionReport:
    """The manifest of an output directory; its files are not looked at (``require_verified`` does).

    Fields that a newer version added are tolerated. Raises ArtifactError if there is no manifest, if it cannot be
    read, or if it needs a newer version.
    """
    text = _read(Path(directory))
    where = str(Path(directory) / MANIFEST)
    broken = "the file is damaged: compress again, or download it again"
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"cannot be read: {_first(error)}", where=where, hint=broken) from None
    if header.schema_version > SCHEMA_VERSION:
        raise ArtifactError(
            f"written by llmcompress {header.llmcompress_version} with manifest version {header.schema_version}; "
            f"this one reads up to version {SCHEMA_VERSION}",
            where=where,
            hint=f"install llmcompress {header.llmcompress_version} or newer",
        )
    try:
        return CompressionReport.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"cannot be read: {_first(error)}", where=where, hint=broken) from None


def _read(directory: Path) -> bytes:
    path = directory / MANIFEST
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"is no llmcompress artifact: it has no {MANIFEST}",
            where=str(directory),
            hint="give the output directory of `llmcompress compress`",
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", where=str(path), hint="check the file") from error


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}" if place else detail["msg"]


def _name(item: tuple[str, os.DirEntry[str]]) -> str:
    return item[0]
