"""Files of a repository, brought into the cache the user already has and compared with what the Hub states."""

from __future__ import annotations

import fnmatch
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import HubError, LockedError, ResourceError
from llmcompress.hub.client import HubClient, limit_s
from llmcompress.hub.explain import explained
from llmcompress.hub.layout import Layout, deviation, free_bytes, layout_of
from llmcompress.hub.listing import HubFile, HubListing, RepoType, listing
from llmcompress.hub.transfer import transfer
from llmcompress.progress import Progress, Reporter, silent

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
