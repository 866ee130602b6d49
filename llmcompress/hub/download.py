"""Files of a repository, brought into the cache the user already has and compared with what the Hub states."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import HubError, ResourceError
from llmcompress.hub.cache import CachedRepository, cached_repository, deviation
from llmcompress.hub.client import HubClient
from llmcompress.hub.failures import translated_errors
from llmcompress.hub.listing import HubFile, HubListing
from llmcompress.hub.transfer import EndedEarlyError, transfer
from llmcompress.system.files import free_bytes
from llmcompress.system.progress import Progress, Reporter, silent

_AT_ONCE = 4


class HubSnapshot(NamedTuple):
    """A directory of the local cache that holds files of one commit."""

    path: Path
    commit: str
    sha256: dict[str, str]
    """The hashes that the Hub states for the fetched files, by path; only large files have one."""


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
                f"{name} is not there at revision {found.revision}{' in the local cache' if found.offline else ''}",
                where=found.repo_id,
                hint="run it once without `offline`"
                if found.offline
                else "the repository's 'Files' page shows what it holds",
            )
    files = [listed[name] for name in wanted]
    cached = cached_repository(found)
    report = _byte_counter(progress, sum(file.size_bytes for file in files))
    with translated_errors(found.repo_id, found.revision):
        missing = [file for file in files if not _is_there(found, cached, file)]
        for file in files:
            report(file.path, 0 if file in missing else file.size_bytes)
        if missing:
            _obtain_all(found, cached, missing, report)
        if not found.offline:
            cached.remember(found.revision)
    root = cached.snapshot if files else Path()
    return HubSnapshot(root, found.commit, {file.path: file.sha256 for file in files if file.sha256})


def first_bytes(found: HubListing, name: str, count: int) -> bytes:
    """The first ``count`` bytes of a listed file, or all of a shorter one; nothing is kept, nothing compared by hash.

    Raises:
        HubError: They cannot be fetched.
    """
    from huggingface_hub import hf_hub_url

    size = next(file.size_bytes for file in found.files if file.path == name)
    wanted = min(count, size)
    client = HubClient(wanted)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes=0-{wanted - 1}"}

    def get() -> bytes:
        taken = b""
        with client.stream(hf_hub_url(found.repo_id, name, revision=found.commit), headers=headers) as response:
            for block in client.blocks(response):
                taken += block
                # A server that takes no range sends the whole file.
                if len(taken) >= wanted:
                    return taken[:wanted]
        raise EndedEarlyError("")

    if wanted == 0:
        return b""
    with translated_errors(found.repo_id, found.revision):
        return client.patiently(get)


def _is_there(found: HubListing, cached: CachedRepository, file: HubFile) -> bool:
    pointer = cached.pointer(file)
    if not pointer.is_file():
        return False
    wrong = deviation(file, pointer, by_size=file.path.endswith(".safetensors"))
    if wrong and found.offline:
        raise HubError(
            f"the file in the cache {wrong}",
            where=f"{found.repo_id}: {file.path}",
            hint="run it once without `offline`: the file is fetched again",
        )
    return not wrong


def _obtain_all(
    found: HubListing, cached: CachedRepository, missing: Sequence[HubFile], report: Callable[[str, int], None]
) -> None:
    needed = sum(file.size_bytes for file in missing if not cached.blob(file).is_file())
    free = free_bytes(cached.folder)
    if needed > free:
        raise ResourceError(
            f"{needed:,} bytes are to be fetched, and {free:,} are free where the cache is, {cached.folder.parent}",
            where=found.repo_id,
            hint="make room there, or set HF_HOME to a directory on another disk",
        )
    client = HubClient(needed)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            # Large files first, so that none is left alone at the end.
            ordered = sorted(missing, key=lambda file: -file.size_bytes)
            jobs = [pool.submit(_obtain, client, found, cached, file, report) for file in ordered]
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
        finally:
            # What has not begun ends where it would wait for its lock.
            client.stop()


def _obtain(
    client: HubClient, found: HubListing, cached: CachedRepository, file: HubFile, report: Callable[[str, int], None]
) -> None:
    """Fetch one file unless its bytes are in the cache under another name or commit; give it its name."""
    from huggingface_hub import hf_hub_url

    blob = cached.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with cached.locked(client, found.repo_id, file):
        if blob.is_file() and deviation(file, blob):
            blob.unlink()
        if not blob.is_file():
            url = hf_hub_url(found.repo_id, file.path, revision=found.commit)
            partial = cached.partial(file)
            transfer(client, url, file, partial, lambda count: report(file.path, count))
            partial.replace(blob)
        cached.show(file)
    report(file.path, file.size_bytes)


def _byte_counter(progress: Reporter, total: int) -> Callable[[str, int], None]:
    done: dict[str, int] = {}
    lock = threading.Lock()

    def report(name: str, count: int) -> None:
        with lock:
            done[name] = count
            progress(Progress("download", min(sum(done.values()), total), total, "bytes"))

    return report
