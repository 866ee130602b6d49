"""Which files leave: the manifest's, reports of these bytes, and the card."""

from __future__ import annotations

import re
from pathlib import Path

from llmcompress.artifact import MANIFEST, REPORTS, Measurements
from llmcompress.errors import SecurityError, UsageError
from llmcompress.hub.account import current_token
from llmcompress.hub.eval_results import eval_results
from llmcompress.hub.upload import Outgoing
from llmcompress.report.file_names import CARD, EVAL_REPORT
from llmcompress.system.command_line import command_line

# Larger files go by their path; the Hub stores them as large files in any case.
_READ_AT_ONCE_BYTES = 16 << 20
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_NOT_SEARCHED = (".bin",)


def model_files(directory: Path, measured: Measurements) -> dict[str, Outgoing]:
    """What leaves next to the card, by name; reports of other bytes stay.

    To be called after the directory was verified against its manifest.

    Raises:
        SecurityError: a file holds an access token.
    """
    files = {
        record.path: _outgoing(directory / record.path, record.size_bytes, record.sha256)
        for record in measured.manifest.files
    }
    for name in sorted({MANIFEST, *REPORTS} - {CARD} - measured.unused.keys()):
        if (directory / name).is_file():
            files[name] = Outgoing.of_bytes((directory / name).read_bytes())
    for name, file in files.items():
        if not name.endswith(_NOT_SEARCHED):
            require_no_token(name, file.content if isinstance(file.content, bytes) else file.content.read_bytes())
    return files


def benchmark_scores(measured: Measurements, page: str) -> dict[str, Outgoing]:
    """Files in ``.eval_results/`` for the scores that the Hub's leaderboards read, by name."""
    if measured.evaluation is None:
        return {}
    found = eval_results(measured.evaluation, source_url=f"{page}/blob/main/{EVAL_REPORT}")
    return {name: Outgoing.of_bytes(content) for name, content in found.items()}


def require_no_token(name: str, content: bytes) -> None:
    """Refuse to publish an access token of the Hub. Raises SecurityError."""
    token = current_token()
    if _TOKEN.search(content) or (token and token.encode() in content):
        raise SecurityError(
            "it holds an access token of the Hub; nothing was sent",
            where=name,
            hint="revoke that token at https://huggingface.co/settings/tokens, and compress without it in any input",
        )


def current_card(directory: Path, own: str, published: str) -> str:
    """The card for the repository, where the directory's README.md is absent or the current one.

    Args:
        directory: May hold a README.md.
        own: What the directory's card is now.
        published: The same for the repository.

    Raises:
        UsageError: the README.md that is there is neither.
    """
    there = _read_card(directory)
    # Git on Windows changes the ends of lines.
    if there is not None and there.replace("\r\n", "\n") not in (own, published):
        raise UsageError(
            "is not the card that the manifest and the reports give now: it is older, or somebody has changed it",
            where=str(directory / CARD),
            hint="`llmcompress card DIR` writes the current one (--overwrite); `keep_card` pushes this one as it is; "
            "a `base_model` or `license` of the card is given here, too",
        )
    return published


def kept_card(directory: Path) -> str:
    """The README.md that is there, whoever wrote it. Raises UsageError if there is none."""
    there = _read_card(directory)
    if there is None:
        raise UsageError(f"there is no {CARD} to keep", where=str(directory), hint="leave `keep_card` out")
    return there


def _read_card(directory: Path) -> str | None:
    path = directory / CARD
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        again = command_line(["llmcompress", "card"], [str(directory)])
        raise UsageError("is no text in UTF-8", where=str(path), hint=f"write it again: {again}") from None


def _outgoing(path: Path, size_bytes: int, sha256: str) -> Outgoing:
    return Outgoing(path.read_bytes() if size_bytes <= _READ_AT_ONCE_BYTES else path, size_bytes, sha256)
