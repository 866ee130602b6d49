"""NNCF's activation statistics, kept under a key of everything they depend on; NNCF's own cache checks none of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmcompress.artifact import file_records
from llmcompress.report.compression import CalibrationRecord
from llmcompress.report.record import Provenance
from llmcompress.spec import StatisticsPrecision
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import installed_versions

LISTING = "files.json"
VERSIONED = ("nncf", "openvino", "optimum-intel", "transformers", "torch")


@contextlib.contextmanager
def statistics(
    provenance: Provenance, calibration: CalibrationRecord, precision: StatisticsPrecision
) -> Iterator[Path]:
    """A directory for ``statistics_path``: complete and checked if it was collected before, else not there yet.

    Where the cache cannot be written it is a temporary one, and the next run collects again.
    What NNCF puts there is the same for every mode and method, so one collection serves every recipe of a model.
    """
    key = {
        "files": [file.sha256 for file in provenance.files],
        "model_type": provenance.model_type,
        "token_ids": calibration.token_ids_sha256,
        "num_windows": calibration.num_windows,
        "precision": precision,
        "versions": installed_versions(VERSIONED),
    }
    digest = content_key(key)
    kept = cache_dir() / "statistics" / digest
    hold(kept)
    if _intact(kept):
        yield kept
        return
    _remove_abandoned(kept)
    collecting = kept.with_name(f"{digest}.{os.getpid()}-{secrets.token_hex(4)}")
    if not _can_be_made(collecting):
        with tempfile.TemporaryDirectory(prefix="llmcompress-") as scratch:
            yield Path(scratch, "statistics")
        return
    try:
        yield collecting
        if collecting.is_dir():
            listing = [record.model_dump() for record in file_records(collecting, exclude=())]
            (collecting / LISTING).write_text(json.dumps(listing))
            shutil.rmtree(kept, ignore_errors=True)
            # Another run may have been first; its statistics are the same.
            with contextlib.suppress(OSError):
                collecting.rename(kept)
    finally:
        shutil.rmtree(collecting, ignore_errors=True)


def _can_be_made(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True)
        directory.rmdir()
    except OSError:
        return False
    return True


def _remove_abandoned(kept: Path) -> None:
    """Remove what killed runs collected for the same key."""
    for path in kept.parent.glob(f"{kept.name}.*-*"):
        if not psutil.pid_exists(int(path.suffix[1:].partition("-")[0])):
            shutil.rmtree(path, ignore_errors=True)


def _intact(directory: Path) -> bool:
    try:
        listing = json.loads((directory / LISTING).read_text())
    except (OSError, ValueError):
        return False
    return bool(listing == [record.model_dump() for record in file_records(directory, exclude=(LISTING,))])
