"""One repository in the Hugging Face cache: its directories, its locks, and whether what it holds is right."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.errors import LockedError
from llmcompress.hub.client import HubClient
from llmcompress.hub.listing import HubFile, HubListing
from llmcompress.system.files import replace_file

_LOCK_WAIT_S = 3600.0
_LOCK_LOOK_S = 0.5


class CachedRepository(NamedTuple):
    """Where the cache has one repository, at one commit."""

    folder: Path
    locks: Path
    commit: str

    @property
    def snapshot(self) -> Path:
        """Where the files of the commit are found by name."""
        return self.folder / "snapshots" / self.commit

    def blob(self, file: HubFile) -> Path:
        """Where the bytes of a file are, under the hash that the Hub states."""
        return self.folder / "blobs" / str(file.stated_hash)

    def pointer(self, file: HubFile) -> Path:
        """Where a file is found under its name."""
        return Path(self.snapshot, *file.path.split("/"))

    def partial(self, file: HubFile) -> Path:
        """Where the first bytes of a file wait for the rest; what a killed client left is continued here.

        To be called with the file's lock held.
        """
        blob = self.blob(file)
        path = blob.with_name(f"{blob.name}.incomplete")
        left = sorted(blob.parent.glob(f"{blob.name}.*.incomplete"), key=lambda found: found.stat().st_size)
        if left and not path.exists():
            left[-1].rename(path)
        return path

    def show(self, file: HubFile) -> None:
        """Give a fetched file its name: by a link, or by moving it where huggingface_hub makes no links either."""
        from huggingface_hub.file_download import are_symlinks_supported

        blob, pointer = self.blob(file), self.pointer(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        if are_symlinks_supported(self.folder):
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        else:
            blob.replace(pointer)

    def remember(self, revision: str) -> None:
        """Note which commit a branch or tag was, for later offline runs; not in a read-only cache."""
        ref = Path(self.folder, "refs", *revision.split("/"))
        if revision == self.commit or (ref.is_file() and ref.read_text(encoding="utf-8") == self.commit):
            return
        try:
            ref.parent.mkdir(parents=True, exist_ok=True)
            replace_file(ref, self.commit.encode())
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise

    @contextmanager
    def locked(self, client: HubClient, repo_id: str, file: HubFile) -> Iterator[None]:
        """Hold the lock that huggingface_hub holds too while it fetches a file. Raises LockedError."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        path = self.locks / f"{self.blob(file).name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + _LOCK_WAIT_S
        with ExitStack() as stack:
            while True:
                # Waited for in short pieces: the failure of another file ends this too.
                client.left_s()
                try:
                    stack.enter_context(WeakFileLock(path, timeout=_LOCK_LOOK_S))
                    break
                except Timeout as error:
                    if time.monotonic() > until:
                        raise LockedError(
                            f"another process has been fetching {file.path} for too long",
                            where=repo_id,
                            hint=f"wait for it; if there is none, delete {path}",
                        ) from error
            yield


def cached_repository(found: HubListing) -> CachedRepository:
    """Where the cache has, or will have, the repository of a listing; no directory is made."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    name = repo_folder_name(repo_id=found.repo_id, repo_type="model")
    return CachedRepository(cache / name, cache / ".locks" / name, found.commit)


def new_digest(file: HubFile) -> Any:
    """An empty hash of the kind that the Hub states for a file: sha256, or that of a git blob."""
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def feed(digest: Any, path: Path) -> None:
    """Add all bytes of a file to a hash."""
    with path.open("rb") as stream:
        hashlib.file_digest(stream, lambda: digest)


def deviation(file: HubFile, path: Path, *, by_size: bool = False) -> str:
    """What is wrong with a file that is there; empty where it is what the Hub states."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"has {size} bytes where the Hub states {file.size_bytes}"
    if file.stated_hash and not by_size:
        digest = new_digest(file)
        feed(digest, path)
        if digest.hexdigest() != file.stated_hash:
            return "holds other bytes than the Hub states: the hash differs"
    return ""
