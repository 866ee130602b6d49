"""Where the Hugging Face cache keeps the files of a repository, so that every library finds what one has fetched.

``blobs/HASH``, ``snapshots/COMMIT/name`` as a link to it, ``refs/BRANCH`` with a commit, and beside the repositories
``.locks/REPOSITORY/HASH.lock``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.hub.listing import HubFile, HubListing

_BLOCK_BYTES = 1 << 20


class Layout(NamedTuple):
    """The directories of one repository in the cache."""

    folder: Path
    locks: Path
    commit: str

    def blob(self, file: HubFile) -> Path:
        """Where the bytes of a file are, under the hash that the Hub states."""
        return self.folder / "blobs" / str(file.sha256 or file.git_sha1)

    def pointer(self, file: HubFile) -> Path:
        """Where a file is found under its name."""
        return Path(self.folder, "snapshots", self.commit, *file.path.split("/"))

    def lock(self, file: HubFile) -> Path:
        """What huggingface_hub, too, locks while it fetches a file."""
        return self.locks / f"{self.blob(file).name}.lock"

    def partial(self, file: HubFile) -> Path:
        """Where the first bytes of a file wait for the rest; what another client was killed over goes on here.

        To be called with the file's lock held.
        """
        blob = self.blob(file)
        path = blob.with_name(f"{blob.name}.incomplete")
        left = sorted(blob.parent.glob(f"{blob.name}.*.incomplete"), key=lambda found: found.stat().st_size)
        if left and not path.exists():
            left[-1].rename(path)
        return path

    def link(self, file: HubFile) -> None:
        """Show a fetched file under its name; where links cannot be made, huggingface_hub moves the file there."""
        from huggingface_hub.file_download import _create_symlink

        pointer = self.pointer(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        _create_symlink(str(self.blob(file)), str(pointer), new_blob=True)

    def remember(self, revision: str) -> None:
        """Note which commit a branch or tag was, for later runs offline."""
        ref = Path(self.folder, "refs", *revision.split("/"))
        if revision == self.commit or (ref.is_file() and ref.read_text(encoding="utf-8") == self.commit):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        unfinished = ref.with_name(f"{ref.name}.{secrets.token_hex(4)}.tmp")
        unfinished.write_text(self.commit, encoding="utf-8")
        unfinished.replace(ref)


def layout_of(found: HubListing) -> Layout:
    """The cache's directories for the repository of a listing; none is made."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    name = repo_folder_name(repo_id=found.repo_id, repo_type=found.repo_type)
    return Layout(cache / name, cache / ".locks" / name, found.commit)


def new_digest(file: HubFile) -> Any:
    """An empty hash of the kind that the Hub states for a file: sha256, or that of a git blob."""
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def feed(digest: Any, path: Path) -> None:
    """Add all bytes of a file to a hash."""
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)


def deviation(file: HubFile, path: Path, *, by_size: bool = False) -> str:
    """What is wrong with a file that is there; empty where it is what the Hub states."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"has {size} bytes where the Hub states {file.size_bytes}"
    stated = file.sha256 or file.git_sha1
    if stated and not by_size:
        digest = new_digest(file)
        feed(digest, path)
        if digest.hexdigest() != stated:
            return "holds other bytes than the Hub states: the hash differs"
    return ""


def free_bytes(folder: Path) -> int:
    """What is free on the file system that ``folder`` is on, or will be."""
    import shutil

    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            return shutil.disk_usage(place).free
    return 0
