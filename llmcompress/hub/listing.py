"""What a repository holds at one commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import HubError
from llmcompress.hub.client import HubClient
from llmcompress.hub.failures import translated_errors
from llmcompress.spec.access import check_name, check_repo_id, check_revision

if TYPE_CHECKING:
    import httpx
    from huggingface_hub.hf_api import RepoFile

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubFile(NamedTuple):
    """One file of a repository, with the hash that the Hub states: sha256 for large files, git's sha1 for others."""

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def stated_hash(self) -> str | None:
        """The one of the two that there is; neither for a cached file that is not a link to a blob."""
        return self.sha256 or self.git_sha1


class HubListing(NamedTuple):
    """All files of a repository at one commit."""

    repo_id: str
    revision: str
    """What was asked for: a branch, a tag or a commit."""
    commit: str
    files: tuple[HubFile, ...]
    offline: bool
    """True when the listing is what the local cache holds."""


def listing(repo_id: str, revision: str | None = None, *, offline: bool = False) -> HubListing:
    """Resolve ``revision`` (default: main) to one commit and list its files; fetches no file.

    Offline, or with ``HF_HUB_OFFLINE`` set, the listing is what the local cache holds of that revision.

    Raises:
        UsageError: the id or the revision has a wrong form.
        HubError: no such repository, no access, no network, or nothing cached.
        SecurityError: the repository lists a name that leaves its directory.
    """
    from huggingface_hub import constants, snapshot_download

    check_repo_id(repo_id)
    wanted = check_revision(revision or constants.DEFAULT_REVISION)
    with translated_errors(repo_id, wanted):
        if offline or constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(repo_id, revision=wanted, local_files_only=True))
            return HubListing(repo_id, wanted, folder.name, tuple(_cached(folder)), True)
        client = HubClient()
        commit = client.call(lambda api: api.model_info(repo_id, revision=wanted)).sha
        # It becomes the name of a directory in the cache.
        if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
            raise HubError(f"the Hub answered {commit!r} where a commit hash of 40 digits belongs", where=repo_id)
        return HubListing(repo_id, wanted, commit, tree(client, repo_id, commit), False)


def tree(client: HubClient, repo_id: str, revision: str) -> tuple[HubFile, ...]:
    """All files at a revision; the list in a repository's description is cut for large ones, this is not.

    Raises:
        HubError: the answer is not a list of files.
        SecurityError: it has a name that leaves its directory.
    """
    from huggingface_hub.hf_api import RepoFile

    def require_list(response: httpx.Response) -> None:
        # The library takes an empty object for an empty list.
        try:
            is_list = not response.is_success or isinstance(json.loads(response.read()), list)
        except RecursionError as error:
            raise TypeError from error
        if not is_list:
            raise TypeError

    try:
        entries = client.call(
            lambda api: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)), on_response=require_list
        )
        return tuple(_file(entry, repo_id) for entry in entries if isinstance(entry, RepoFile))
    except (TypeError, KeyError, AttributeError) as error:
        raise HubError("the Hub's list of files has another form than it documents", where=repo_id) from error


def _file(entry: RepoFile, repo_id: str) -> HubFile:
    check_name(entry.path, where=repo_id)
    sha256 = entry.lfs.sha256 if entry.lfs else None
    # The hash, too, becomes a name in the cache.
    stated, form = (sha256, _SHA256) if sha256 else (entry.blob_id, _SHA1)
    if not isinstance(entry.size, int) or entry.size < 0 or not form.fullmatch(stated):
        raise TypeError
    return HubFile(entry.path, entry.size, sha256, None if sha256 else stated)


def _cached(folder: Path) -> Iterator[HubFile]:
    """The files of a cached snapshot; a blob is named by the hash that the Hub stated when it was fetched."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = path.resolve().name if path.is_symlink() else ""
            sha256 = blob if _SHA256.fullmatch(blob) else None
            sha1 = blob if _SHA1.fullmatch(blob) else None
            yield HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256, sha1)
