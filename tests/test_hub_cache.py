"""One repository in the Hugging Face cache, call by call: names, locks, references and hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FakeHub, new_repo, running, use

from llmcompress.errors import HubError, LockedError, SecurityError, UsageError
from llmcompress.hub import cache as hub_cache
from llmcompress.hub.cache import CachedRepository, cached_repository, deviation, feed, new_digest
from llmcompress.hub.client import HubClient, StoppedError
from llmcompress.hub.listing import HubFile, HubListing, listing, tree

CONTENT = b"four"
LARGE = HubFile("weights/model.bin", 4, sha256=hashlib.sha256(CONTENT).hexdigest())
SMALL = HubFile("config.json", 4, git_sha1=hashlib.sha1(b"blob 4\0" + CONTENT).hexdigest())


@pytest.fixture
def repository(tmp_path: Path) -> CachedRepository:
    return CachedRepository(tmp_path / "models--acme--tiny", tmp_path / ".locks" / "models--acme--tiny", COMMIT)


def put(repository: CachedRepository, file: HubFile) -> Path:
    blob = repository.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(CONTENT)
    return blob


def test_where_the_cache_has_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = cached_repository(HubListing("acme/tiny", "main", COMMIT, (), False))
    assert found == (tmp_path / "models--acme--tiny", tmp_path / ".locks" / "models--acme--tiny", COMMIT)
    assert found.snapshot == tmp_path / "models--acme--tiny" / "snapshots" / COMMIT
    assert found.pointer(LARGE) == found.snapshot / "weights" / "model.bin"
    assert found.blob(LARGE) == found.folder / "blobs" / str(LARGE.sha256)
    assert found.blob(SMALL) == found.folder / "blobs" / str(SMALL.git_sha1)
    assert list(tmp_path.iterdir()) == []


# --- hashes


@pytest.mark.parametrize("file", [LARGE, SMALL])
def test_a_file_is_compared_with_what_the_hub_states(file: HubFile, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert deviation(file, path) == ""
    path.write_bytes(b"flip")
    assert deviation(file, path) == "holds other bytes than the Hub states: the hash differs"
    assert deviation(file, path, by_size=True) == ""
    path.write_bytes(b"more than that")
    for by_size in (False, True):
        assert deviation(file, path, by_size=by_size) == "has 14 bytes where the Hub states 4"
    # Of what is no link to a blob no hash is known.
    path.write_bytes(b"flip")
    assert deviation(HubFile("a", 4), path) == ""


@pytest.mark.parametrize("file", [LARGE, SMALL])
def test_hashes_of_the_two_kinds(file: HubFile, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT[2:])
    digest = new_digest(file)
    digest.update(CONTENT[:2])
    feed(digest, path)
    assert digest.hexdigest() == file.stated_hash


# --- names


def test_the_first_bytes_of_a_killed_client_are_gone_on_with(repository: CachedRepository) -> None:
    blob = put(repository, LARGE)
    partial = blob.with_name(f"{blob.name}.incomplete")
    assert repository.partial(LARGE) == partial
    assert not partial.exists()
    for name, size in (("aa", 1), ("bb", 3), ("cc", 2)):
        blob.with_name(f"{blob.name}.{name}.incomplete").write_bytes(b"x" * size)
    assert repository.partial(LARGE) == partial
    assert partial.read_bytes() == b"xxx"
    # What is there already stays.
    assert repository.partial(LARGE) == partial
    assert partial.read_bytes() == b"xxx"
    assert len(list(blob.parent.glob("*.*.incomplete"))) == 2


def test_a_file_is_shown_by_a_link_in_its_place(repository: CachedRepository) -> None:
    for file in (LARGE, SMALL):
        blob = put(repository, file)
        for _ in range(2):
            repository.show(file)
            pointer = repository.pointer(file)
            assert pointer.is_symlink()
            assert pointer.readlink() == Path(os.path.relpath(blob, pointer.parent))
            assert pointer.read_bytes() == CONTENT


def test_where_there_are_no_links_the_file_itself_is_shown(
    repository: CachedRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def no_links(folder: Path) -> bool:
        asked.append(folder)
        return False

    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", no_links)
    blob = put(repository, LARGE)
    repository.show(LARGE)
    assert not repository.pointer(LARGE).is_symlink()
    assert repository.pointer(LARGE).read_bytes() == CONTENT
    assert not blob.exists()
    assert asked == [repository.folder]


# --- what a branch was


def test_a_branch_is_remembered(repository: CachedRepository) -> None:
    repository.remember("main")
    repository.remember("refs/pr/1")
    refs = repository.folder / "refs"
    assert (refs / "main").read_text() == (refs / "refs" / "pr" / "1").read_text() == COMMIT
    (refs / "main").write_text("0" * 40)
    repository.remember("main")
    assert (refs / "main").read_text() == COMMIT
    repository.remember(COMMIT)
    assert not (refs / COMMIT).exists()


def test_what_is_remembered_is_not_written_again(repository: CachedRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.remember("main")
    written: list[Path] = []
    monkeypatch.setattr(hub_cache, "replace_file", lambda path, content: written.append(path))
    repository.remember("main")
    assert written == []
    repository.remember("other")
    assert written == [repository.folder / "refs" / "other"]


@pytest.mark.parametrize(
    ("number", "is_read_only"),
    [(errno.EROFS, True), (errno.EACCES, True), (errno.EPERM, True), (errno.ENOSPC, False), (errno.EIO, False)],
)
def test_a_read_only_cache_remembers_nothing(
    repository: CachedRepository, monkeypatch: pytest.MonkeyPatch, number: int, is_read_only: bool
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hub_cache, "replace_file", refuse)
    if is_read_only:
        repository.remember("main")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            repository.remember("main")


# --- locks


def test_two_processes_do_not_fetch_one_file_at_once(
    repository: CachedRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    monkeypatch.setattr(hub_cache, "_LOCK_LOOK_S", 0.02)
    monkeypatch.setattr(hub_cache, "_LOCK_WAIT_S", 0.05)
    path = repository.locks / f"{LARGE.sha256}.lock"
    path.parent.mkdir(parents=True)
    began = time.monotonic()
    with WeakFileLock(path), pytest.raises(LockedError) as caught, repository.locked(HubClient(), "acme/tiny", LARGE):
        pytest.fail("the lock is another's")
    assert 0.05 <= time.monotonic() - began < 5
    assert caught.value.message == "another process has been fetching weights/model.bin for too long"
    assert caught.value.where == "acme/tiny"
    assert str(path) in caught.value.hint


def test_a_lock_is_waited_for_and_held(repository: CachedRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    monkeypatch.setattr(hub_cache, "_LOCK_LOOK_S", 0.02)
    path = repository.locks / f"{LARGE.sha256}.lock"
    with repository.locked(HubClient(), "acme/tiny", LARGE):
        with pytest.raises(Timeout), WeakFileLock(path, timeout=0.01):
            pass
        order: list[str] = []

        def wait() -> None:
            with repository.locked(HubClient(), "acme/tiny", LARGE):
                order.append("got it")

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        order.append("let go")
    thread.join()
    assert order == ["let go", "got it"]
    # Another file has a lock of its own, in directories that are there by now.
    with repository.locked(HubClient(), "acme/tiny", LARGE), repository.locked(HubClient(), "acme/tiny", SMALL):
        pass


def test_a_stopped_operation_waits_for_no_lock(repository: CachedRepository) -> None:
    client = HubClient()
    client.stop()
    with pytest.raises(StoppedError), repository.locked(client, "acme/tiny", LARGE):
        pass


# --- what a repository holds


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", ())
    repo = new_repo({"config.json": b"{}", "sub/a.bin": CONTENT, "empty.txt": b""})
    with running(FakeHub(repos={"acme/tiny": repo})) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        yield hub


def test_files_with_their_hashes(fake: FakeHub) -> None:
    repo = fake.repos["acme/tiny"]
    first = repo.head
    later = repo.commit("other", {"b.txt": b"b"}, "later")
    found = listing("acme/tiny")
    assert found[:3] == ("acme/tiny", "main", first.sha)
    assert found.offline is False
    by_path = {file.path: file for file in found.files}
    assert set(by_path) == {".gitattributes", "config.json", "sub/a.bin", "empty.txt"}
    assert by_path["sub/a.bin"] == HubFile("sub/a.bin", 4, sha256=LARGE.sha256)
    assert by_path["config.json"] == HubFile("config.json", 2, git_sha1=hashlib.sha1(b"blob 2\0{}").hexdigest())
    assert by_path["empty.txt"].size_bytes == 0
    assert by_path["sub/a.bin"].stated_hash == LARGE.sha256
    assert by_path["config.json"].stated_hash == by_path["config.json"].git_sha1
    other = listing("acme/tiny", "other")
    assert other[:3] == ("acme/tiny", "other", later.sha)
    assert [file.path for file in other.files] == ["b.txt"]
    # By a branch alone the list could be of a commit that came meanwhile.
    assert ("GET", f"/api/models/acme/tiny/tree/{later.sha}") in fake.requests


ENTRY = {"type": "file", "path": "a", "size": 4, "oid": "a" * 40}


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "size": -1},
        {**ENTRY, "size": "4"},
        {**ENTRY, "size": None},
        {**ENTRY, "oid": "../../x"},
        {**ENTRY, "oid": "a" * 41},
        {**ENTRY, "oid": None},
        {**ENTRY, "lfs": {"oid": "a" * 40, "size": 4, "pointerSize": 134}},
        {**ENTRY, "lfs": {"size": 4}},
        {"type": "file"},
        "a",
    ],
)
def test_a_list_of_another_form_is_refused(fake: FakeHub, entry: Any) -> None:
    answer_with(fake, json_of([entry]))
    with pytest.raises(HubError, match="list of files has another form than it documents") as caught:
        listing("acme/tiny")
    assert caught.value.where == "acme/tiny"


@pytest.mark.parametrize("body", [b"{}", b'"a"', b"[" * 100_000])
def test_what_is_no_list_is_refused(fake: FakeHub, body: bytes) -> None:
    answer_with(fake, body)
    with pytest.raises(HubError, match="list of files has another form than it documents"):
        listing("acme/tiny")


def test_folders_are_no_files(fake: FakeHub) -> None:
    answer_with(fake, json_of([ENTRY, {"type": "directory", "path": "sub", "oid": "b" * 40}]))
    assert listing("acme/tiny").files == (HubFile("a", 4, git_sha1="a" * 40),)
    answer_with(fake, json_of([{**ENTRY, "lfs": {"oid": "c" * 64, "size": 4, "pointerSize": 134}}]))
    assert listing("acme/tiny").files == (HubFile("a", 4, sha256="c" * 64),)


def json_of(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def answer_with(fake: FakeHub, body: bytes) -> None:
    """Answer so where a list is asked for."""
    fake.answer = lambda method, path: (200, {"Content-Type": "application/json"}, body) if "/tree/" in path else None


@pytest.mark.parametrize("commit", ["../../x", "a" * 39, None, 5])
def test_a_commit_is_forty_digits(fake: FakeHub, commit: Any) -> None:
    info = json_of({"id": "acme/tiny", "sha": commit, "siblings": []})
    fake.answer = lambda method, path: (200, {}, info) if "/revision/" in path or path.endswith("tiny") else None
    with pytest.raises(HubError, match=f"the Hub answered {commit!r} where a commit hash of 40 digits belongs"):
        listing("acme/tiny")


def test_what_the_cache_holds_is_listed_by_its_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:9", tmp_path, monkeypatch)
    repository = CachedRepository(tmp_path / "models--acme--tiny", tmp_path / ".locks", COMMIT)
    for file in (LARGE, SMALL):
        put(repository, file)
        repository.show(file)
    repository.remember("main")
    repository.remember("v1")
    (repository.snapshot / "own.txt").write_bytes(b"own")
    expected = (SMALL, HubFile("own.txt", 3), LARGE)
    assert listing("acme/tiny", offline=True) == ("acme/tiny", "main", COMMIT, expected, True)
    assert listing("acme/tiny", "v1", offline=True).revision == "v1"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert listing("acme/tiny").files == expected
    with pytest.raises(HubError, match="v2"):
        listing("acme/tiny", "v2")


def test_what_is_asked_for_is_checked_and_named(fake: FakeHub) -> None:
    with pytest.raises(UsageError, match="is neither an existing path nor a Hub id"):
        listing("../x")
    with pytest.raises(UsageError, match="is not a revision"):
        listing("acme/tiny", "a..b")
    assert fake.requests == []
    with pytest.raises(HubError) as caught:
        listing("acme/other")
    assert caught.value.where == "acme/other"
    with pytest.raises(HubError, match="it has no revision 'v2'"):
        listing("acme/tiny", "v2")
    answer_with(fake, json_of([{**ENTRY, "path": "../../evil"}]))
    with pytest.raises(SecurityError, match="evil"):
        listing("acme/tiny")


def test_offline_nobody_is_asked(fake: FakeHub, tmp_path: Path) -> None:
    repository = CachedRepository(tmp_path / "cache" / "models--acme--tiny", tmp_path / ".locks", COMMIT)
    put(repository, SMALL)
    repository.show(SMALL)
    repository.remember("main")
    assert listing("acme/tiny", offline=True).files == (SMALL,)
    assert fake.requests == []


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AttributeError("x")])
def test_whatever_another_form_does_to_the_library(error: Exception) -> None:
    class Client:
        def call(self, function: Any, *, on_response: Any) -> Any:
            raise error

    with pytest.raises(HubError, match="list of files has another form than it documents") as caught:
        tree(Client(), "acme/tiny", COMMIT)  # type: ignore[arg-type]
    assert caught.value.__cause__ is error


def test_files_of_all_folders_are_asked_for(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    asked: list[tuple[str, dict[str, Any]]] = []

    def list_tree(self: HfApi, repo_id: str, **how: Any) -> list[Any]:
        asked.append((repo_id, how))
        return []

    monkeypatch.setattr(HfApi, "list_repo_tree", list_tree)
    assert tree(HubClient(), "acme/tiny", COMMIT) == ()
    assert asked == [("acme/tiny", {"recursive": True, "revision": COMMIT})]
