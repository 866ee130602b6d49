"""The bytes of one file, compared with the hash that the Hub states, and continued where they ended.

``hf_hub_download`` deletes what came when a transfer breaks off, has no limit on the whole time and compares the size
only; so this is ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx

from llmcompress.errors import HubError
from llmcompress.hub.cache import feed, new_digest
from llmcompress.hub.client import HubClient
from llmcompress.hub.listing import HubFile

_PROGRESS_BYTES = 1 << 20


class EndedEarlyError(httpx.TransportError):
    """The answer ended in good order, and before the file did."""


class _UnfitAnswerError(Exception):
    """The answer cannot be part of the file: it goes beyond its end, or has nothing for it."""


class _GrowingFile:
    """A file that grows, with the hash of what it holds so far."""

    def __init__(self, file: HubFile, path: Path, stream: BinaryIO, report: Callable[[int], None]) -> None:
        self._file = file
        self._stream = stream
        self._report = report
        self._digest = new_digest(file)
        feed(self._digest, path)
        self.size = path.stat().st_size
        report(self.size)

    def add(self, block: bytes) -> None:
        if self.size + len(block) > self._file.size_bytes:
            raise _UnfitAnswerError
        self._stream.write(block)
        self._digest.update(block)
        self.size += len(block)
        self._report(self.size)

    def restart(self) -> None:
        self._stream.truncate(0)
        self._digest = new_digest(self._file)
        self.size = 0

    def is_right(self) -> bool:
        return bool(self._digest.hexdigest() == self._file.stated_hash)


def transfer(client: HubClient, url: str, file: HubFile, partial: Path, report: Callable[[int], None]) -> None:
    """Complete ``partial`` to the bytes that the Hub states; what turned out wrong is removed and fetched once more.

    Args:
        client: With the time limit of the whole operation.
        url: Of the file at its commit.
        file: With the size and hash that the Hub states.
        partial: May hold the file's first bytes.
        report: Given how many bytes are there.

    Raises:
        HubError: the bytes were wrong twice.
        EndedEarlyError: the transfer came no further, several times.
        TransportError, HfHubHTTPError, OverdueError, StoppedError: as ``HubClient``.
    """
    for _ in range(2):
        with partial.open("ab") as stream:
            growing = _GrowingFile(file, partial, stream, report)
            right = _is_completed(client, url, file, growing)
            stream.flush()
            os.fsync(stream.fileno())
        if right:
            return
        partial.unlink()
    raise HubError(
        "the Hub sent other bytes than it states, twice; nothing of them was kept",
        where=file.path,
        hint="try again later; if it stays so, tell the repository's owner, or use another network",
    )


def _is_completed(client: HubClient, url: str, file: HubFile, growing: _GrowingFile) -> bool:
    """Get what is missing; returns whether the whole is what the Hub states."""
    try:
        client.patiently(
            lambda: _get_rest(client, url, file.size_bytes, growing),
            done=lambda: growing.size,
            enough=min(_PROGRESS_BYTES, file.size_bytes // 100 + 1),
        )
    except _UnfitAnswerError:
        return False
    return growing.is_right()


def _get_rest(client: HubClient, url: str, size_bytes: int, growing: _GrowingFile) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    begin = growing.size
    if begin == size_bytes:
        return
    if begin > size_bytes:
        raise _UnfitAnswerError
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        with client.stream(url, headers=headers) as response:
            if response.status_code == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
                    raise _UnfitAnswerError
            elif begin:
                # The whole file comes, though its end was asked for.
                growing.restart()
            for block in client.blocks(response):
                growing.add(block)
    except HfHubHTTPError as error:
        if begin and error.response.status_code == 416:
            raise _UnfitAnswerError from error
        raise
    if growing.size < size_bytes:
        raise EndedEarlyError("")
