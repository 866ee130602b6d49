"""Files of a repository, brought into the cache the user already has and compared with what the Hub states."""

from __future__ import annotations

import fnmatch
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.errors import HubError
from llmcompress.hub.explain import explained
from llmcompress.hub.listing import HubFile, HubListing, RepoType, listing
from llmcompress.progress import Progress, Reporter, silent

_AT_ONCE = 4
_BLOCK_BYTES = 1 << 20


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
    """Bring the named files of a listing into the cache and compare them with the stated sizes and hashes.

    ``.safetensors`` files are compared by size only: whoever reads them hashes them and has ``sha256`` to compare.

    Raises:
        HubError: a file is not listed, cannot be fetched, or is not what the Hub states.
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
    report = _byte_counter(progress, sum(file.size_bytes for file in files))
    if files and not found.offline:
        # Asking by branch makes the cache remember which commit the branch was, for later runs offline.
        _get(found, min(files, key=lambda file: file.size_bytes), found.revision, report)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        paths = list(pool.map(lambda file: _get(found, file, found.commit, report), files))
    for file, path in zip(files, paths, strict=True):
        _compare(file, path, found)
    root = paths[0].parents[files[0].path.count("/")] if paths else Path()
    return HubSnapshot(root, found.commit, {file.path: file.sha256 for file in files if file.sha256})


def _get(found: HubListing, file: HubFile, revision: str, report: Callable[[str, int], None]) -> Path:
    from huggingface_hub import hf_hub_download

    with explained(found.repo_id, found.revision, found.repo_type):
        path = hf_hub_download(
            found.repo_id,
            file.path,
            repo_type=found.repo_type,
            revision=revision,
            local_files_only=found.offline,
            tqdm_class=_bar(file.path, report),
        )
    report(file.path, file.size_bytes)
    # Not resolved: the path is a link into the cache's blobs, and the link's name is the file's.
    return Path(path)


def _byte_counter(progress: Reporter, total: int) -> Callable[[str, int], None]:
    done: dict[str, int] = {}
    lock = threading.Lock()

    def report(name: str, count: int) -> None:
        with lock:
            done[name] = max(count, done.get(name, 0))
            progress(Progress("download", min(sum(done.values()), total), total, "bytes"))

    return report


def _bar(name: str, report: Callable[[str, int], None]) -> Any:
    """A silent bar class for huggingface_hub that reports the bytes of one file so far."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.so_far = int(kwargs.get("initial") or 0)
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.so_far += int(n or 0)
            report(name, self.so_far)
            return None

    return Bar


def _compare(file: HubFile, path: Path, found: HubListing) -> None:
    size = path.stat().st_size
    stated = file.sha256 or file.git_sha1
    wrong = ""
    if size != file.size_bytes:
        wrong = f"has {size} bytes where the Hub states {file.size_bytes}"
    elif stated and not file.path.endswith(".safetensors") and _hash(file, path) != stated:
        wrong = "holds other bytes than the Hub states: the hash differs"
    if wrong:
        raise HubError(
            f"the file in the cache {wrong}",
            where=f"{found.repo_id}: {file.path}",
            hint=f"delete {path.resolve()} and run again",
        )


def _hash(file: HubFile, path: Path) -> str:
    git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    digest = hashlib.sha256() if file.sha256 else git
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _in_cache(found: HubListing) -> str:
    return " in the local cache" if found.offline else ""


def _missing_hint(found: HubListing) -> str:
    return "run it once without --offline" if found.offline else "the repository's 'Files' page shows what it holds"
