"""What is kept of a graph: its .xml, and for each constant in the order of the .bin where its bytes come from."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from llmcompress.report.compression import CompressionReport
from llmcompress.report.file_names import MODEL_XML
from llmcompress.report.record import Record
from llmcompress.system.cache import hold

_SKELETON, _LITERALS, _CONFIG = "skeleton.json", "literals.bin", "config.json"
_REASON, _KEEPING = "reason.txt", "keeping.json"


class TensorPiece(Record):
    """A run of a tensor's bytes."""

    tensor: str
    start: int
    stop: int
    turned: tuple[int, int] | None = None
    """Rows and columns as they are stored, where the graph holds the columns first."""


class ConstantValues(Record):
    """What a constant of the uncompressed graph holds: pieces of tensors, one after another."""

    element: str
    """OpenVINO's name."""
    pieces: tuple[TensorPiece, ...]
    widened: Literal["BF16", "F16"] | None = None
    """How the tensors store it, where the constant holds it in single precision."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return sum(piece.stop - piece.start for piece in self.pieces) * (2 if self.widened else 1)


class CodeFormat(Record):
    """The format of codes, as the kernels are told of it."""

    is_float: bool
    fields: dict[str, Any]
    """Of ``Integers`` or ``Floats``."""


class CodedWeight(Record):
    """A weight that our kernels compress."""

    values: ConstantValues
    group_size: int
    num_columns: int
    num_groups: int
    format: CodeFormat


class SkeletonConstant(Record):
    """One constant of the compressed graph."""

    size: int
    kind: Literal["literal", "values", "codes", "zero_points", "scales"]
    literal_start: int = 0
    """In the file of literals."""
    values: ConstantValues | None = None
    weight: int = 0
    """Number of the weight that it is a part of."""


class Keeping(Record):
    """What it took to keep a graph, apart from the run that it is of."""

    duration_s: float
    """What standing still took is a part of it."""
    processor_s: float
    peak_rss_bytes: int
    """Of the process, which without ``in_background`` had made the artifact before."""
    in_background: bool


class Skeleton(Record):
    """A compressed graph without weights."""

    key: dict[str, Any]
    report: CompressionReport
    """Of the run that it was made from."""
    constants: tuple[SkeletonConstant, ...]
    """In the order of the .xml, which is that of the .bin."""
    weights: tuple[CodedWeight, ...]
    sha256: dict[str, str]
    """Of the other files of the entry."""


class KeptGraph(NamedTuple):
    """A skeleton with its files."""

    skeleton: Skeleton
    xml: bytes
    literals: bytes
    config: bytes


def read_graph(folder: Path, key: Mapping[str, Any]) -> KeptGraph | None:
    """Read an entry and keep it from being pruned; None where there is none, or it is damaged or another's."""
    if not folder.is_dir():
        return None
    hold(folder)
    try:
        digest, _, body = (folder / _SKELETON).read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        skeleton = Skeleton.model_validate_json(body)
        files = {name: (folder / name).read_bytes() for name in (MODEL_XML, _LITERALS, _CONFIG)}
    except (OSError, ValidationError):
        return None
    if skeleton.key != key or _hashes(files) != skeleton.sha256:
        return None
    return KeptGraph(skeleton, files[MODEL_XML], files[_LITERALS], files[_CONFIG])


def write_graph(folder: Path, graph: KeptGraph, keeping: Keeping) -> None:
    """Put an entry in place by one rename, also where a damaged one is; of two runs the first stays.

    Raises:
        OSError: The cache cannot be written.
    """
    files = {MODEL_XML: graph.xml, _LITERALS: graph.literals, _CONFIG: graph.config}
    skeleton = graph.skeleton.model_copy(update={"sha256": _hashes(files)})
    body = skeleton.model_dump_json().encode()
    files[_SKELETON] = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    # Decides no byte.
    files[_KEEPING] = keeping.model_dump_json().encode()
    put_folder(folder, files)


def read_keeping(folder: Path) -> Keeping | None:
    """What it took to keep an entry; None where it does not say."""
    try:
        return Keeping.model_validate_json((folder / _KEEPING).read_bytes())
    except (OSError, ValidationError):
        return None


def note_not_kept(folder: Path, reason: str) -> None:
    """Put why there is no entry in its place, so that the next run does not try again.

    Raises:
        OSError: The cache cannot be written.
    """
    put_folder(folder, {_REASON: reason.encode()})


def why_not_kept(folder: Path) -> str | None:
    """What ``note_not_kept`` has put in place."""
    try:
        return (folder / _REASON).read_text(encoding="utf-8")
    except OSError:
        return None


def put_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files and rename it into place; what was there goes.

    Raises:
        OSError: The disk refuses.
    """
    unfinished = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    unfinished.mkdir(parents=True)
    try:
        for name, content in files.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(content)
        if folder.exists():
            gone = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
            with suppress(OSError):
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        # Fails where another run was faster, whose entry is as good.
        with suppress(OSError):
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
