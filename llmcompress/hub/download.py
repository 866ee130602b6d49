"""Files of a repository, brought into the cache the user already has and compared with what the Hub states."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import httpx

from llmcompress.errors import HubError, LockedError, ResourceError
from llmcompress.hub import client as patience
from llmcompress.hub.client import HubClient, UnansweredError, limit_s, raise_for_status
from llmcompress.hub.failures import explained
from llmcompress.hub.listing import HubFile, HubListing, RepoType, listing
from llmcompress.system.progress import Progress, Reporter, silent

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


_AT_ONCE = 4
_LOCK_WAIT_S = 3600.0
_LOCK_LOOK_S = 0.5


class HubSnapshot(NamedTuple):
    """A directory of the local cache that holds files of one commit."""

    path: Path
    commit: str
    sha256: dict[str, str]
    """The hashes that the Hub states for the fetched files, by path; only large files have one."""


def download(
    repo_id: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    offline: bool = False,
    repo_type: RepoType = "model",
    progress: Reporter = silent,
) -> HubSnapshot:
    """Bring the files that match one of ``patterns`` (as in ``fnmatch``) into the cache, all from one commit.

    Raises:
        UsageError, HubError, SecurityError: as ``listing`` and ``fetch``; also HubError when nothing matches.
    """
    found = listing(repo_id, revision, offline=offline, repo_type=repo_type)
    names = [f.path for f in found.files if any(fnmatch.fnmatchcase(f.path, pattern) for pattern in patterns)]
    if not names:
        raise HubError(
            f"no file {' or '.join(patterns)} at revision {found.revision}{_in_cache(found)}",
            where=repo_id,
            hint=_missing_hint(found),
        )
    return fetch(found, names, progress=progress)


def fetch(found: HubListing, names: Iterable[str], *, progress: Reporter = silent) -> HubSnapshot:
    """Bring the named files of a listing into the cache, each compared with its stated size and hash.

    What the cache has is compared and used; what it has wrong is fetched again. What is cut short stays, and the next
    fetch asks for the rest. ``.safetensors`` files that the cache has are compared by size only: whoever reads them
    hashes them and has ``sha256`` to compare.

    Raises:
        HubError: a file is not listed, cannot be fetched, or is not what the Hub states.
        ResourceError: the disk has no room for them.
        LockedError: another process fetches the same file and does not end.
        WriteError: the cache cannot be written.
    """
    listed = {file.path: file for file in found.files}
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in listed:
            raise HubError(
                f"{name} is not there at revision {found.revision}{_in_cache(found)}",
                where=found.repo_id,
                hint=_missing_hint(found),
            )
    files = [listed[name] for name in wanted]
    layout = layout_of(found)
    report = _byte_counter(progress, sum(file.size_bytes for file in files))
    with explained(found.repo_id, found.revision, found.repo_type):
        missing = [file for file in files if not _is_there(found, layout, file)]
        for file in files:
            report(file.path, 0 if file in missing else file.size_bytes)
        if missing:
            _obtain_all(found, layout, missing, report)
        if not found.offline:
            layout.remember(found.revision)
    root = layout.folder / "snapshots" / found.commit if files else Path()
    return HubSnapshot(root, found.commit, {file.path: file.sha256 for file in files if file.sha256})


def _is_there(found: HubListing, layout: Layout, file: HubFile) -> bool:
    pointer = layout.pointer(file)
    if not pointer.is_file():
        return False
    wrong = deviation(file, pointer, by_size=file.path.endswith(".safetensors"))
    if wrong and found.offline:
        raise HubError(
            f"the file in the cache {wrong}",
            where=f"{found.repo_id}: {file.path}",
            hint="run it once without --offline: the file is fetched again",
        )
    return not wrong


def _obtain_all(
    found: HubListing, layout: Layout, missing: Sequence[HubFile], report: Callable[[str, int], None]
) -> None:
    needed = sum(file.size_bytes for file in missing if not layout.blob(file).is_file())
    free = free_bytes(layout.folder)
    if needed > free:
        raise ResourceError(
            f"{needed:,} bytes are to be fetched, and {free:,} are free where the cache is, {layout.folder.parent}",
            where=found.repo_id,
            hint="make room there, or set HF_HOME to a directory on another disk",
        )
    with HubClient(limit_s(needed)) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            # Large files first, so that none is left alone at the end.
            ordered = sorted(missing, key=lambda file: -file.size_bytes)
            jobs = [pool.submit(_obtain, client, found, layout, file, report) for file in ordered]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            _raise_first(done)
        finally:
            client.stop()
            pool.shutdown(cancel_futures=True)


def _raise_first(done: Iterable[Future[None]]) -> None:
    for job in done:
        job.result()


def _obtain(
    client: HubClient, found: HubListing, layout: Layout, file: HubFile, report: Callable[[str, int], None]
) -> None:
    """Fetch one file unless its bytes are in the cache under another name or commit; give it its name."""
    from huggingface_hub import hf_hub_url

    blob = layout.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(client, found.repo_id, file.path, layout.lock(file)):
        if blob.is_file() and deviation(file, blob):
            blob.unlink()
        if not blob.is_file():
            url = hf_hub_url(found.repo_id, file.path, repo_type=found.repo_type, revision=found.commit)
            partial = layout.partial(file)
            transfer(client, url, file, partial, lambda count: report(file.path, count))
            partial.replace(blob)
        layout.link(file)
    report(file.path, file.size_bytes)


@contextmanager
def _lock(client: HubClient, repo_id: str, name: str, path: Path) -> Iterator[None]:
    """Hold the lock that huggingface_hub, too, holds while it fetches a file."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

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
                        f"another process has been fetching {name} for too long",
                        where=repo_id,
                        hint=f"wait for it; if there is none, delete {path}",
                    ) from error
        yield


def _byte_counter(progress: Reporter, total: int) -> Callable[[str, int], None]:
    done: dict[str, int] = {}
    lock = threading.Lock()

    def report(name: str, count: int) -> None:
        with lock:
            done[name] = count
            progress(Progress("download", min(sum(done.values()), total), total, "bytes"))

    return report


def _in_cache(found: HubListing) -> str:
    return " in the local cache" if found.offline else ""


def _missing_hint(found: HubListing) -> str:
    return "run it once without --offline" if found.offline else "the repository's 'Files' page shows what it holds"


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
