"""Files that are brought into the cache, and the bytes of one of them: compared, gone on with, and told of."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_hub import COMMIT, FakeHub, Fault, git_sha1, running, sha256, use
from filelock import FileLock, Timeout
from test_hub_client import Session

from llmcompress.errors import HubError, ResourceError
from llmcompress.hub import download, transfer
from llmcompress.hub.client import HubClient
from llmcompress.hub.download import HubSnapshot, fetch, first_bytes
from llmcompress.hub.listing import HubFile, HubListing, listing
from llmcompress.hub.transfer import EndedEarlyError
from llmcompress.system.progress import Progress

HOME = "http://home.test:8080"
WEIGHTS = bytes(range(251)) * 40
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n"}


# --- the bytes of one file


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", HOME)
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.001, 0.001))
    return Session(monkeypatch)


def stated(content: bytes) -> HubFile:
    return HubFile("weights.bin", len(content), sha256=hashlib.sha256(content).hexdigest())


def answers(*given: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    waiting = list(given)

    def answer(request: httpx.Request) -> httpx.Response:
        now = waiting.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    return answer


def part(content: bytes, begin: int) -> httpx.Response:
    headers = {"Content-Range": f"bytes {begin}-{begin + len(content) - 1}/*"}
    return httpx.Response(206, headers=headers, content=content)


def cut(content: bytes) -> Iterator[bytes]:
    yield content
    raise httpx.ReadError("reset")


def completed(path: Path, file: HubFile) -> list[int]:
    """Transfer; the counts that were told."""
    told: list[int] = []
    transfer.transfer(HubClient(), f"{HOME}/weights.bin", file, path, told.append)
    return told


def test_a_whole_file_is_on_the_device_and_told_of(
    tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    session.answer = answers(httpx.Response(200, content=iter((b"one ", b"two"))))
    path = tmp_path / "partial"
    assert completed(path, stated(b"one two")) == [0, 4, 7]
    assert path.read_bytes() == b"one two"
    assert synced == [7]
    (request,) = session.requests
    assert request.headers["Accept-Encoding"] == "identity"
    assert "Range" not in request.headers


def test_a_small_file_is_compared_with_gits_hash(tmp_path: Path, session: Session) -> None:
    session.answer = answers(httpx.Response(200, content=b"four"))
    assert completed(tmp_path / "partial", HubFile("a.json", 4, git_sha1=git_sha1(b"four"))) == [0, 4]


def test_what_is_there_is_gone_on_with(tmp_path: Path, session: Session) -> None:
    path = tmp_path / "partial"
    path.write_bytes(b"one ")
    session.answer = answers(part(b"two", 4))
    assert completed(path, stated(b"one two")) == [4, 7]
    assert path.read_bytes() == b"one two"
    assert session.requests[0].headers["Range"] == "bytes=4-"
    # Of a whole file nothing is asked for.
    assert completed(path, stated(b"one two")) == [7]
    assert len(session.requests) == 1


@pytest.mark.parametrize(
    "first",
    [
        b"one and too long",  # before anything is asked for
        b"eno ",  # of other bytes
    ],
)
def test_first_bytes_that_are_wrong_go(tmp_path: Path, session: Session, first: bytes) -> None:
    path = tmp_path / "partial"
    path.write_bytes(first)
    whole = httpx.Response(200, content=b"one two")
    session.answer = answers(*([part(b"two", 4)] if len(first) == 4 else []), whole)
    completed(path, stated(b"one two"))
    assert path.read_bytes() == b"one two"
    assert [request.headers.get("Range") for request in session.requests][-1] is None
    assert len(session.requests) == (2 if len(first) == 4 else 1)


@pytest.mark.parametrize(
    "answer",
    [
        part(b"two", 3),  # of another place
        httpx.Response(206, content=b"two"),
        part(b"two and more", 4),
        httpx.Response(416),
    ],
    ids=["another place", "no place", "too long", "nothing there"],
)
def test_an_answer_that_does_not_fit_begins_anew(tmp_path: Path, session: Session, answer: httpx.Response) -> None:
    path = tmp_path / "partial"
    path.write_bytes(b"one ")
    session.answer = answers(answer, httpx.Response(200, content=b"one two"))
    completed(path, stated(b"one two"))
    assert path.read_bytes() == b"one two"
    assert [request.headers.get("Range") for request in session.requests] == ["bytes=4-", None]


def test_no_more_is_written_than_the_file_has(tmp_path: Path, session: Session) -> None:
    endless = (b"more" for _ in range(1000))
    session.answer = answers(httpx.Response(200, content=endless), httpx.Response(200, content=b"one two"))
    assert completed(tmp_path / "partial", stated(b"one two")) == [0, 4, 0, 7]


def test_the_whole_file_in_the_place_of_its_end(tmp_path: Path, session: Session) -> None:
    path = tmp_path / "partial"
    path.write_bytes(b"eno ")
    session.answer = answers(httpx.Response(200, content=b"one two"))
    assert completed(path, stated(b"one two")) == [4, 7]
    assert path.read_bytes() == b"one two"
    assert len(session.requests) == 1


def test_bytes_that_are_wrong_twice_are_refused_and_gone(tmp_path: Path, session: Session) -> None:
    path = tmp_path / "partial"
    session.answer = lambda request: httpx.Response(200, content=b"one owt")
    with pytest.raises(HubError, match="sent other bytes than it states, twice; nothing of them was kept") as caught:
        completed(path, stated(b"one two"))
    assert caught.value.where == "weights.bin"
    assert len(session.requests) == 2
    assert not path.exists()


def test_a_refusal_is_told_as_it_is(tmp_path: Path, session: Session) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    path = tmp_path / "partial"
    # Without a range there is no end to be beyond.
    for status, first in ((416, b""), (403, b""), (403, b"one ")):
        path.write_bytes(first)
        session.requests.clear()
        session.answer = lambda request, status=status: httpx.Response(status)  # type: ignore[misc]
        with pytest.raises(HfHubHTTPError) as caught:
            completed(path, stated(b"one two"))
        assert caught.value.response.status_code == status
        assert len(session.requests) == 1
        assert path.read_bytes() == first


def test_an_answer_that_ends_early_is_gone_on_with_and_in_the_end_told(tmp_path: Path, session: Session) -> None:
    path = tmp_path / "partial"
    session.answer = answers(httpx.Response(200, content=b"one "), part(b"two", 4))
    completed(path, stated(b"one two"))
    path.write_bytes(b"one ")
    session.answer = lambda request: part(b"", 4)
    with pytest.raises(EndedEarlyError):
        completed(path, stated(b"one two"))
    assert path.read_bytes() == b"one "


def test_the_last_bytes_are_enough_at_the_last_try(tmp_path: Path, session: Session) -> None:
    whole = bytes(1000)
    path = tmp_path / "partial"
    path.write_bytes(whole[:995])
    session.answer = answers(httpx.ReadError("reset"), httpx.ReadError("reset"), part(whole[995:], 995))
    assert completed(path, stated(whole)) == [995, 1000]


@pytest.mark.parametrize(
    ("size_bytes", "piece", "comes_through"),
    [(1000, 11, True), (1000, 10, False), (1 << 30, 1 << 20, True), (1 << 30, (1 << 20) - 1, False)],
)
def test_what_comes_by_pieces_comes_through_where_they_are_large_enough(
    tmp_path: Path, session: Session, size_bytes: int, piece: int, comes_through: bool
) -> None:
    """A hundredth of a file, or 1 MiB, is progress: the connection is worth another try."""
    from huggingface_hub.errors import HfHubHTTPError

    begins = iter(range(0, 6 * piece, piece))

    def answer(request: httpx.Request) -> httpx.Response:
        begin = next(begins, None)
        if begin is None:
            return httpx.Response(403)
        headers = {"Content-Range": f"bytes {begin}-{size_bytes - 1}/{size_bytes}"}
        return httpx.Response(206 if begin else 200, headers=headers, content=cut(bytes(piece)))

    session.answer = answer
    with pytest.raises(HfHubHTTPError if comes_through else httpx.ReadError):
        completed(tmp_path / "partial", HubFile("weights.bin", size_bytes, sha256="0" * 64))
    assert len(session.requests) == (7 if comes_through else 3)


# --- files of a listing


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.001, 0.001))
    with running(FakeHub(files=dict(FILES))) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def found(fake: FakeHub) -> HubListing:
    found = listing("acme/tiny")
    fake.requests.clear()
    return found


def fetched(fake: FakeHub) -> list[str]:
    return [path.partition(f"/{COMMIT}/")[2] for _, path in fake.asked("/resolve/")]


def contents(snapshot: HubSnapshot) -> dict[str, bytes]:
    paths = [path for path in snapshot.path.rglob("*") if path.is_file()]
    return {path.relative_to(snapshot.path).as_posix(): path.read_bytes() for path in paths}


def test_files_of_one_commit_with_the_hashes_of_large_ones(fake: FakeHub, found: HubListing, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models--acme--tiny"
    # What is asked for twice comes once.
    snapshot = fetch(found, [*FILES, "config.json"])
    assert snapshot == (folder / "snapshots" / COMMIT, COMMIT, {"model.safetensors": sha256(WEIGHTS)})
    assert contents(snapshot) == FILES
    assert sorted(fetched(fake)) == sorted(FILES)
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert not list(folder.rglob("*.incomplete"))
    assert fetch(found, FILES) == snapshot
    assert len(fetched(fake)) == len(FILES)
    assert fetch(found, []) == (Path(), COMMIT, {})


def test_a_name_that_is_not_listed(fake: FakeHub, found: HubListing) -> None:
    for offline, message, hint in (
        (False, "other is not there at revision main", "the repository's 'Files' page shows what it holds"),
        (True, "other is not there at revision main in the local cache", "run it once without `offline`"),
    ):
        with pytest.raises(HubError) as caught:
            fetch(found._replace(offline=offline), ["config.json", "other"])
        assert (caught.value.message, caught.value.where, caught.value.hint) == (message, "acme/tiny", hint)
    assert fake.requests == []


def test_progress_counts_what_is_there_already(fake: FakeHub, found: HubListing) -> None:
    seen: list[Progress] = []
    total = sum(map(len, FILES.values()))
    fetch(found, ["model.safetensors"])
    fetch(found, FILES, progress=seen.append)
    assert {(each.stage, each.total, each.unit) for each in seen} == {("download", total, "bytes")}
    assert [each.done for each in seen[:3]] == [0, len(WEIGHTS), len(WEIGHTS)]
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1].done == total


def test_progress_never_exceeds_the_whole_and_comes_one_at_a_time(
    fake: FakeHub, found: HubListing, tmp_path: Path
) -> None:
    blobs = tmp_path / "cache" / "models--acme--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(WEIGHTS)}.incomplete").write_bytes(WEIGHTS + WEIGHTS)
    seen: list[Progress] = []
    at_once: list[int] = []
    lock = threading.Lock()

    def report(event: Progress) -> None:
        at_once.append(lock.acquire(blocking=False))
        time.sleep(0.002)
        seen.append(event)
        if at_once[-1]:
            lock.release()

    fetch(found, FILES, progress=report)
    assert max(each.done for each in seen) == seen[0].total
    assert all(at_once)


def test_wrong_bytes_in_the_cache_are_fetched_again_but_weights_are_compared_by_size(
    fake: FakeHub, found: HubListing
) -> None:
    """Whoever reads weights compares their hash."""
    path = fetch(found, FILES).path
    for name in FILES:
        (path / name).write_bytes(bytes(len(FILES[name])))
    fake.requests.clear()
    assert contents(fetch(found, FILES)) == {**FILES, "model.safetensors": bytes(len(WEIGHTS))}
    assert sorted(fetched(fake)) == ["config.json", "sub/vocab.txt"]
    (path / "model.safetensors").write_bytes(WEIGHTS + b"x")
    fake.requests.clear()
    assert contents(fetch(found, FILES)) == FILES
    assert fetched(fake) == ["model.safetensors"]


def test_offline_nothing_is_fetched(fake: FakeHub, found: HubListing) -> None:
    path = fetch(found, FILES).path
    fake.requests.clear()
    there = listing("acme/tiny", offline=True)
    assert contents(fetch(there, FILES)) == FILES
    (path / "config.json").write_bytes(b"x")
    with pytest.raises(HubError, match="the file in the cache has 1 bytes where the Hub states") as caught:
        fetch(found._replace(offline=True), FILES)
    assert caught.value.where == "acme/tiny: config.json"
    assert caught.value.hint == "run it once without `offline`: the file is fetched again"
    assert fake.requests == []


def test_bytes_that_another_commit_has_are_not_fetched_again(fake: FakeHub, found: HubListing, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--acme--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / sha256(WEIGHTS)).write_bytes(WEIGHTS)
    (blobs / git_sha1(FILES["config.json"])).write_bytes(b"wrong")
    seen: list[Progress] = []
    assert contents(fetch(found, FILES, progress=seen.append)) == FILES
    assert sorted(fetched(fake)) == ["config.json", "sub/vocab.txt"]
    assert seen[-1].done == seen[-1].total


@pytest.mark.parametrize("short_of", [0, 1])
def test_room_for_what_is_to_be_fetched(
    fake: FakeHub, found: HubListing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_of: int
) -> None:
    blobs = tmp_path / "cache" / "models--acme--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / git_sha1(FILES["config.json"])).write_bytes(FILES["config.json"])
    needed = len(WEIGHTS) + len(FILES["sub/vocab.txt"])
    monkeypatch.setattr(download, "free_bytes", lambda path: needed - short_of)
    if not short_of:
        assert contents(fetch(found, FILES)) == FILES
        return
    with pytest.raises(ResourceError, match="10,044 bytes are to be fetched, and 10,043 are free") as caught:
        fetch(found, FILES)
    assert f"where the cache is, {tmp_path / 'cache'}" in caught.value.message
    assert caught.value.where == "acme/tiny"
    assert fake.requests == []


def test_nobody_else_fetches_the_same_file_meanwhile(
    found: HubListing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = download.transfer, []

    def watched(client: HubClient, url: str, file: HubFile, *rest: Any) -> None:
        lock = tmp_path / "cache" / ".locks" / "models--acme--tiny" / f"{file.stated_hash}.lock"
        with pytest.raises(Timeout):
            FileLock(lock, blocking=False).acquire()
        tried.append(file.path)
        real(client, url, file, *rest)

    monkeypatch.setattr(download, "transfer", watched)
    fetch(found, FILES)
    assert sorted(tried) == sorted(FILES)


def test_large_files_come_first_and_four_at_once(
    fake: FakeHub, found: HubListing, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.files |= {f"{size}.txt": b"x" * size for size in range(1, 8)}
    begun: list[str] = []
    most, at_work, full = [0], [0], threading.Event()
    real, lock = download.transfer, threading.Lock()

    def watched(client: HubClient, url: str, file: HubFile, *rest: Any) -> None:
        with lock:
            begun.append(file.path)
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
            if at_work[0] >= 4:
                full.set()
        full.wait(5)
        time.sleep(0.02)
        real(client, url, file, *rest)
        with lock:
            at_work[0] -= 1

    monkeypatch.setattr(download, "transfer", watched)
    more = listing("acme/tiny")
    fetch(more, [file.path for file in more.files])
    assert most == [4]
    assert set(begun[:2]) <= {"model.safetensors", "config.json", "7.txt", "6.txt"}
    assert begun[-1] in {"1.txt", "2.txt", "3.txt", "sub/vocab.txt"}


def test_a_failure_ends_the_others_and_what_has_not_begun(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    stopped: list[bool] = []

    def watched(client: HubClient, url: str, file: HubFile, *rest: Any) -> None:
        begun.append(file.path)
        if len(begun) == 1:
            raise EndedEarlyError("")
        stopped.append(client._stopped.wait(20))
        time.sleep(0.05)
        client.left_s()

    fake.files |= {f"{size}.txt": b"x" * size for size in range(1, 8)}
    monkeypatch.setattr(download, "_AT_ONCE", 1)
    monkeypatch.setattr(download, "transfer", watched)
    more = listing("acme/tiny")
    with pytest.raises(HubError, match="the download ended early") as caught:
        fetch(more, [file.path for file in more.files])
    assert caught.value.where == "acme/tiny"
    assert begun[0] == "model.safetensors"
    assert len(begun) <= 2
    assert all(stopped)


# --- the first bytes of one


@pytest.mark.parametrize("kind", [None, "no range", "reset", "short"])
def test_the_first_bytes_of_a_file(fake: FakeHub, found: HubListing, tmp_path: Path, kind: Any) -> None:
    fake.inject(*([Fault(kind, only="model.safetensors")] if kind else []))
    assert first_bytes(found, "model.safetensors", 300) == WEIGHTS[:300]
    sent = fake.num_sent[f"/acme/tiny/resolve/{COMMIT}/model.safetensors"]
    assert sent == {None: 300, "reset": 300, "short": 450, "no range": len(WEIGHTS)}[kind]
    assert not (tmp_path / "cache").exists()


def test_all_of_a_shorter_file_and_nothing_of_an_empty_one(fake: FakeHub) -> None:
    fake.files["empty.txt"] = b""
    found = listing("acme/tiny")
    fake.requests.clear()
    assert first_bytes(found, "empty.txt", 300) == first_bytes(found, "config.json", 0) == b""
    assert fake.requests == []
    assert first_bytes(found, "sub/vocab.txt", 300) == b"a\nb\n"
    assert first_bytes(found, "sub/vocab.txt", 1) == b"a"


def test_first_bytes_that_cannot_be_had(fake: FakeHub, found: HubListing, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.inject(Fault("short", times=-1))
    with pytest.raises(HubError, match="the download ended early"):
        first_bytes(found, "model.safetensors", 300)
    fake.inject(Fault("status", status=404, headers={"X-Error-Code": "EntryNotFound"}))
    with pytest.raises(HubError, match="a file is not there at revision 'main'"):
        first_bytes(found, "model.safetensors", 300)
