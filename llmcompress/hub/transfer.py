"""The bytes of one file, from the Hub onto the disk: continued where they ended, and hashed on the way.

The pattern is git-lfs's: hash what is there, ask for the rest by ``Range``, compare before the name is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx

from llmcompress.errors import HubError
from llmcompress.hub import client as patience
from llmcompress.hub.client import HubClient, UnansweredError, raise_for_status
from llmcompress.hub.layout import feed, new_digest
from llmcompress.hub.listing import HubFile

_PROGRESS_BYTES = 1 << 20


class _ShortError(Exception):
    """The answer ended in good order, and before the file did."""


class _UselessError(Exception):
    """The answer cannot be part of the file: it goes beyond its end, or has nothing for it."""


class _Growing:
    """A file that grows, with the hash of what it holds so far."""

    def __init__(self, file: HubFile, path: Path, stream: BinaryIO, report: Callable[[int], None]) -> None:
        self._file = file
        self._stream = stream
        self._report = report
        self.digest = new_digest(file)
        feed(self.digest, path)
        self.size = path.stat().st_size
        report(self.size)

    def add(self, block: bytes) -> None:
        if self.size + len(block) > self._file.size_bytes:
            raise _UselessError
        self._stream.write(block)
        self.digest.update(block)
        self.size += len(block)
        self._report(self.size)

    def restart(self) -> None:
        self._stream.truncate(0)
        self.digest = new_digest(self._file)
        self.size = 0


def transfer(client: HubClient, url: str, file: HubFile, partial: Path, report: Callable[[int], None]) -> None:
    """Complete ``partial`` to the bytes that the Hub states; what turned out wrong is removed and fetched once more.

    Args:
        client: With the time limit of the whole operation.
        url: Of the file at its commit.
        file: With the size and hash that the Hub states.
        partial: May hold the file's first bytes.
        report: Told how many bytes are there.

    Raises:
        HubError: the bytes were wrong twice.
        UnansweredError: the transfer came no further, several times.
        HfHubHTTPError, OverdueError, StoppedError: as ``HubClient``.
    """
    for _ in range(2):
        with partial.open("ab") as stream:
            growing = _Growing(file, partial, stream, report)
            try:
                _complete(client, url, file.size_bytes, growing)
            except _UselessError:
                right = False
            else:
                right = growing.digest.hexdigest() == (file.sha256 or file.git_sha1)
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


def _complete(client: HubClient, url: str, size_bytes: int, growing: _Growing) -> None:
    failures = 0
    while growing.size != size_bytes:
        if growing.size > size_bytes:
            raise _UselessError
        before = growing.size
        try:
            _append(client, url, growing)
            if growing.size < size_bytes:
                raise _ShortError
        except (httpx.TransportError, httpx.DecodingError, _ShortError) as error:
            came = growing.size - before
            failures = 0 if came >= min(_PROGRESS_BYTES, size_bytes // 100 + 1) else failures + 1
            if failures > len(patience.PAUSES_S):
                raise UnansweredError from error
            client.pause(patience.PAUSES_S[failures - 1] if failures else 0)


def _append(client: HubClient, url: str, growing: _Growing) -> None:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    done = growing.size
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with client.stream("GET", url, headers=headers) as response:
        if done and response.status_code == 416:
            raise _UselessError
        raise_for_status(response)
        if response.status_code == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise _UselessError
        elif done:
            # The whole file comes, though its end was asked for.
            growing.restart()
        for block in response.iter_bytes():
            client.left_s()
            growing.add(block)
