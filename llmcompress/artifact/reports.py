"""Reports that later steps put into an output directory."""

from __future__ import annotations

import secrets
from pathlib import Path

from llmcompress.artifact.exchange import sync_directory, write_synced
from llmcompress.artifact.failures import write_errors
from llmcompress.report import Record


def write_report(directory: Path, name: str, report: Record) -> Path:
    """Put a report into an artifact by one rename; an earlier one of that name is replaced.

    Args:
        name: One of ``REPORTS``; such files are no part of what the manifest lists.

    Raises:
        WriteError: The disk refuses; the earlier report is still there.
    """
    directory = directory.absolute()
    # Beside the directory, in which a file left by a kill would be one too many.
    unfinished = directory.with_name(f".{directory.name}.{name}-{secrets.token_hex(4)}")
    with write_errors(directory / name):
        try:
            write_synced(unfinished, (report.model_dump_json(indent=2) + "\n").encode())
            unfinished.replace(directory / name)
            sync_directory(directory)
        finally:
            unfinished.unlink(missing_ok=True)
    return directory / name
