"""What a repository holds at one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from llmcompress.errors import HubError
from llmcompress.hub.explain import explained
from llmcompress.hub.names import check_name, check_repo_id, check_revision

RepoType = Literal["model", "dataset"]

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT_S = 15.0


class HubFile(NamedTuple):
    """One file of a repository, with the hash that the Hub states: sha256 for large files, git's sha1 for others."""

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None


class HubListing(NamedTuple):
    """All files of a repository at one commit."""

    repo_id: str
    repo_type: RepoType
    revision: str
    """What was asked for: a branch, a tag or a commit."""
    commit: str
    files: tuple[HubFile, ...]
    offline: bool
    """True when the listing is what the local cache holds."""


def listing(
    repo_id: str, revision: str | None = None, *, offline: bool = False, repo_type: RepoType = "model"
) -> HubListing:
    """Resolve ``revision`` (default: main) to one commit and list its files; fetches no file.

    Offline, or with ``HF_HUB_OFFLINE`` set, the listing is what the local cache holds of that revision.

    Raises:
        UsageError: the id or the revision has a wrong form.
        HubError: no such repository, no access, no network, or nothing cached.
        SecurityError: the repository lists a name that leaves its directory.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    check_repo_id(repo_id)
    wanted = check_revision(revision or constants.DEFAULT_REVISION)
    if offline or constants.HF_HUB_OFFLINE:
        with explained(repo_id, wanted, repo_type):
            folder = Path(snapshot_download(repo_id, repo_type=repo_type, revision=wanted, local_files_only=True))
        return HubListing(repo_id, repo_type, wanted, folder.name, tuple(_cached(folder)), True)
    with explained(repo_id, wanted, repo_type):
        api = HfApi()
        commit = api.repo_info(repo_id, repo_type=repo_type, revision=wanted, timeout=_TIMEOUT_S).sha or ""
        # It becomes the name of a directory in the cache.
        if not _SHA1.fullmatch(commit):
            raise HubError(f"the Hub answered {commit!r} where a commit hash of 40 digits belongs", where=repo_id)
        # The list in the first answer is cut for large repositories; the tree is complete and states hashes.
        tree = list(api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type))
    files = []
    for entry in tree:
        check_name(entry.path, where=repo_id)
        if isinstance(entry, RepoFile):
            lfs = entry.lfs
            hashes = (lfs.sha256, None) if lfs else (None, entry.blob_id)
            files.append(HubFile(entry.path, entry.size, *hashes))
    return HubListing(repo_id, repo_type, wanted, commit, tuple(files), False)


def _cached(folder: Path) -> Iterator[HubFile]:
    """The files of a cached snapshot; a blob is named by the hash that the Hub stated when it was fetched."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = path.resolve().name if path.is_symlink() else ""
            sha256 = blob if _SHA256.fullmatch(blob) else None
            sha1 = blob if _SHA1.fullmatch(blob) else None
            yield HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256, sha1)
