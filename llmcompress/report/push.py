"""What a push to the Hub did, or would do."""

from __future__ import annotations

from typing import Literal

from llmcompress.report.readable import Readable
from llmcompress.report.record import Record


class PushedFile(Record):
    """One file that the repository holds after the push."""

    path: str
    size_bytes: int
    state: Literal["new", "changed", "unchanged"]


class PushReport(Readable):
    """One push."""

    repo_id: str
    url: str
    dry_run: bool
    """True: nothing was sent; the rest says what would be."""
    created: bool
    """The repository was made for it."""
    private: bool | None
    """None: as the account has it for new repositories."""
    commit: str | None
    """None: nothing was to be done, or nothing was."""
    commit_url: str | None = None
    pull_request_url: str | None = None
    files: tuple[PushedFile, ...]
    deleted: tuple[str, ...]
    """Files of an earlier push that this model no longer has, and with ``delete_others`` all others."""
    kept: tuple[str, ...]
    """Files of others, left as they are."""
    left_out: dict[str, str]
    """Reports that did not leave, each with the reason."""
    forced: str | None = None
    """What the gate said, where it was pushed all the same."""
    sent_bytes: int
    """Of the files that were new or changed."""
    tags: tuple[str, ...] = ()
    collection: str | None = None
    card: str
    """The README.md."""
