"""Downloads under every fault of the network and the server: the right error, nothing wrong kept, the rest resumed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, Fault, download, environment, git_sha1, running, sha256, use

from llmcompress.errors import HubError, LockedError, ResourceError, SecurityError, UsageError
from llmcompress.hub.download import fetch
from llmcompress.hub.failures import translated_errors
from llmcompress.hub.listing import listing

TOKEN = "hf_canarycanarycanarycanarycanarycanar"
BIG = bytes(range(251)) * 4_000
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": BIG, "sub/vocab.txt": b"a\nb\n"}
NUM_REQUESTS = 2 + len(FILES)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.25)
    monkeypatch.setattr("llmcompress.hub.client._ANSWER_TO_A_WRITE_S", 0.25)
    with running(FakeHub(files=dict(FILES))) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


def cache_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models--acme--tiny"


def nothing_wrong_is_kept(tmp_path: Path) -> None:
    """Whatever has a name in the cache has the right bytes."""
    right = {sha256(content) for content in FILES.values()} | {git_sha1(content) for content in FILES.values()}
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.parent.name == "blobs" and path.suffix != ".incomplete":
            assert path.name in right & {sha256(path.read_bytes()), git_sha1(path.read_bytes())}
        if path.is_file() and "snapshots" in path.parts:
            name = path.relative_to(cache_of(tmp_path) / "snapshots" / COMMIT).as_posix()
            assert path.read_bytes() == FILES[name]


def empty(tmp_path: Path) -> None:
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() or path.is_symlink():
            path.unlink()


def complete(tmp_path: Path) -> None:
    snapshot = download("acme/tiny", None, ["*"])
    assert {name: (snapshot.path / name).read_bytes() for name in FILES} == FILES
    nothing_wrong_is_kept(tmp_path)


def _rarely(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


STATUSES = [
    (401, {"X-Error-Code": "RepoNotFound"}, "shows no model"),
    _rarely(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "valid access token"),
    (403, {"X-Error-Code": "GatedRepo"}, "gated"),
    _rarely(403, {}, "may not read it"),
    _rarely(404, {"X-Error-Code": "RepoNotFound"}, "shows no model"),
    _rarely(404, {"X-Error-Code": "RevisionNotFound"}, "no revision"),
    (404, {"X-Error-Code": "EntryNotFound"}, "a file is not there"),
    _rarely(410, {}, "gone for good"),
    (416, {}, "no such part"),
    (429, {}, "too many requests"),
    _rarely(500, {}, "has a fault"),
    _rarely(502, {}, "has a fault"),
    (503, {}, "has a fault"),
    _rarely(504, {}, "has a fault"),
]


@pytest.mark.parametrize(("code", "headers", "message"), STATUSES, ids=lambda value: str(value)[:40])
def test_a_refusal_of_every_request(
    fake: FakeHub, tmp_path: Path, code: int, headers: dict[str, str], message: str
) -> None:
    echo = f'{{"error": "{TOKEN}"}}'.encode()
    for index in range(NUM_REQUESTS):
        empty(tmp_path)
        # All that follow too: a single fault of the server is not noticed.
        later = range(20 if code in (429, 500, 502, 503, 504) else 1)
        fake.inject(*(Fault("status", at=index + n, status=code, headers=headers, body=echo) for n in later))
        with pytest.raises(HubError, match=message) as caught:
            download("acme/tiny", None, ["*"])
        assert caught.value.exit_code == 5
        assert caught.value.hint
        assert TOKEN[:12] not in str(caught.value) + repr(caught.value.__cause__)
        nothing_wrong_is_kept(tmp_path)
    fake.inject()
    complete(tmp_path)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_one_fault_of_the_server_is_waited_out(fake: FakeHub, tmp_path: Path, code: int) -> None:
    for index in range(NUM_REQUESTS):
        empty(tmp_path)
        fake.inject(Fault("status", at=index, status=code))
        complete(tmp_path)


def test_retry_after_is_respected(fake: FakeHub, tmp_path: Path) -> None:
    fake.inject(Fault("status", at=0, status=429, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    complete(tmp_path)
    assert 1 <= time.monotonic() - begun < 30


@pytest.mark.slow
def test_retry_after_as_a_date(fake: FakeHub, tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    fake.inject(Fault("status", at=0, status=503, headers={"Retry-After": date}))
    begun = time.monotonic()
    complete(tmp_path)
    assert 0.5 <= time.monotonic() - begun < 30


def test_more_patience_than_is_reasonable_is_not_had(fake: FakeHub) -> None:
    fake.inject(Fault("status", at=0, status=429, headers={"Retry-After": "86400"}))
    with pytest.raises(HubError, match="come back in 86400 seconds"):
        listing("acme/tiny")
    assert len(fake.requests) == 1


def test_the_rate_limit_header_of_the_hub(fake: FakeHub) -> None:
    fake.inject(Fault("status", at=0, status=429, headers={"RateLimit": '"api";r=0;t=1'}))
    begun = time.monotonic()
    listing("acme/tiny")
    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize(
    "kind",
    [
        "reset",
        "lost",
        "hang",
        pytest.param("hang after headers", marks=pytest.mark.slow),
        "cut",
        "short",
        "wrong etag",
        "gzip",
    ],
)
def test_a_fault_of_the_network_at_every_request(fake: FakeHub, tmp_path: Path, kind: str) -> None:
    for index in range(NUM_REQUESTS):
        empty(tmp_path)
        fake.num_sent.clear()
        fake.inject(Fault(kind, at=index))  # type: ignore[arg-type]
        if kind == "short" and index < 2:
            # A document that is cut in good order cannot be told from a broken one, and is not asked for twice.
            with pytest.raises(HubError, match="cannot be read"):
                download("acme/tiny", None, ["*"])
            fake.inject()
        complete(tmp_path)
        sent = fake.num_sent.get(f"/acme/tiny/resolve/{COMMIT}/model.safetensors", 0)
        assert sent <= (2 if kind in ("lost", "gzip") else 1.05) * len(BIG)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("reset", "broke, several times"),
        ("hang", "did not answer in time"),
        ("hang after headers", "did not answer in time|broke"),
        ("short", "ended early|cannot be read"),
        ("wrong bytes", "other bytes than it states, twice|cannot be read"),
        ("long", "other bytes than it states, twice|cannot be read"),
        ("redirect loop", "redirects in a circle"),
    ],
)
@pytest.mark.parametrize(
    "only",
    ["model.safetensors", *(pytest.param(name, marks=pytest.mark.slow) for name in ("/revision/", "/tree/", "config"))],
)
def test_a_fault_that_stays(fake: FakeHub, tmp_path: Path, kind: str, message: str, only: str) -> None:
    # Half of what is left comes each time, which is progress as long as it is much.
    fake.inject(Fault(kind, only=only, times=-1, share=0.0))  # type: ignore[arg-type]
    with pytest.raises(HubError, match=message) as caught:
        download("acme/tiny", None, ["*"])
    assert caught.value.exit_code == 5
    nothing_wrong_is_kept(tmp_path)
    fake.inject()
    complete(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_download_that_was_cut_goes_on_where_it_ended(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    # On loopback what is on its way is lost with a stall, and that is much of so small a file.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 10)
    fake.inject(
        Fault("cut", only="model.safetensors", share=share),
        Fault("status", only="model.safetensors", times=-1, status=500),
    )
    with pytest.raises(HubError):
        download("acme/tiny", None, ["*"])
    left = cache_of(tmp_path) / "blobs" / f"{sha256(BIG)}.incomplete"
    assert left.stat().st_size >= (share - 0.05) * len(BIG)
    fake.inject()
    complete(tmp_path)
    assert not left.exists()
    assert fake.num_sent[f"/acme/tiny/resolve/{COMMIT}/model.safetensors"] < 1.05 * len(BIG)


def test_what_huggingface_hub_was_killed_over_is_gone_on_with(fake: FakeHub, tmp_path: Path) -> None:
    blobs = cache_of(tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(BIG)}.1a2b3c4d.incomplete").write_bytes(BIG[:-1000])
    complete(tmp_path)
    assert fake.num_sent[f"/acme/tiny/resolve/{COMMIT}/model.safetensors"] == 1000


def test_first_bytes_that_were_wrong_are_fetched_again(fake: FakeHub, tmp_path: Path) -> None:
    blobs = cache_of(tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(BIG)}.incomplete").write_bytes(b"\0" * 1000)
    complete(tmp_path)
    (blobs / f"{sha256(BIG)}").unlink()
    (blobs / f"{sha256(BIG)}.incomplete").write_bytes(BIG + b"too long")
    complete(tmp_path)


def test_a_server_that_ignores_the_range(fake: FakeHub, tmp_path: Path) -> None:
    fake.inject(
        Fault("cut", only="model.safetensors", share=0.9), Fault("no range", only="model.safetensors", times=-1)
    )
    complete(tmp_path)


def test_a_server_that_finds_the_range_beyond_the_file(fake: FakeHub, tmp_path: Path) -> None:
    fake.inject(
        Fault("cut", only="model.safetensors", share=0.9), Fault("status", only="model.safetensors", status=416)
    )
    complete(tmp_path)


def test_wrong_bytes_once_are_fetched_again(fake: FakeHub, tmp_path: Path) -> None:
    fake.inject(Fault("wrong bytes", only="model.safetensors"), Fault("long", only="config.json"))
    complete(tmp_path)


def test_all_files_are_of_one_commit_though_the_branch_moves(fake: FakeHub, tmp_path: Path) -> None:
    def move(method: str, path: str) -> tuple[int, dict[str, str], bytes] | None:
        if "/resolve/" not in path:
            return None
        name = path.split("/resolve/")[1].partition("/")[2]
        if fake.commit == COMMIT:
            fake.files, fake.commit = dict.fromkeys(FILES, b"new"), "1" * 40
            return 200, {"X-Repo-Commit": "1" * 40}, b"new"
        return 200, {}, FILES[name] if f"/{COMMIT}/" in path else b"new"

    fake.answer = move
    snapshot = download("acme/tiny", None, ["*"])
    # The request that moved it was answered by the new commit, with other bytes: they were not taken.
    assert {name: (snapshot.path / name).read_bytes() for name in FILES} == FILES
    assert snapshot.commit == COMMIT


def test_a_drip_ends_at_the_time_limit(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", "0.5")
    fake.inject(Fault("drip", only="model.safetensors", times=-1))
    begun = time.monotonic()
    with pytest.raises(HubError, match=r"time limit of 0\.5 seconds") as caught:
        download("acme/tiny", None, ["*"])
    assert time.monotonic() - begun < 30
    assert "LLMCOMPRESS_HUB_DEADLINE_S" in caught.value.hint
    fake.inject(Fault("drip", only="/tree/", times=-1))
    with pytest.raises(HubError, match=r"time limit of 0\.5 seconds"):
        listing("acme/tiny")
    monkeypatch.delenv("LLMCOMPRESS_HUB_DEADLINE_S")
    fake.inject()
    complete(tmp_path)


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", "0"])
def test_a_time_limit_that_is_none(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", text)
    with pytest.raises(UsageError, match=r"LLMCOMPRESS_HUB_DEADLINE_S is .*; a number of seconds is accepted"):
        listing("acme/tiny")


def test_names_and_certificates(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://no-such-host.invalid", tmp_path / "cache", monkeypatch)
    with pytest.raises(HubError, match=r"name of http://no-such-host\.invalid cannot be resolved"):
        listing("acme/tiny")
    use(fake.url.replace("http:", "https:"), tmp_path / "cache", monkeypatch)
    with pytest.raises(HubError, match="certificate of https://127"):
        listing("acme/tiny")


def test_the_token_goes_to_no_other_host(fake: FakeHub, tmp_path: Path) -> None:
    fake.cdn = True
    complete(tmp_path)
    sent = {host.partition(":")[0]: set() for host in fake.hosts}  # type: ignore[var-annotated]
    for host, authorization in zip(fake.hosts, fake.authorizations, strict=True):
        sent[host.partition(":")[0]].add(authorization)
    assert sent == {"127.0.0.1": {f"Bearer {TOKEN}"}, "localhost": {None}}


def test_a_list_of_files_in_pages_whose_next_is_elsewhere(fake: FakeHub) -> None:
    import json

    entries = fake.repo("acme/tiny").commits[COMMIT].files  # type: ignore[union-attr]
    pages = [
        [{"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}]
        for name, content in entries.items()
    ]

    def page(method: str, path: str) -> tuple[int, dict[str, str], bytes] | None:
        if "/tree/" not in path and "/page/" not in path:
            return None
        number = int(path.rpartition("/page/")[2] if "/page/" in path else 0)
        more = {"Link": f'<{fake.elsewhere}/page/{number + 1}>; rel="next"'} if number + 1 < len(pages) else {}
        return 200, more, json.dumps(pages[number]).encode()

    fake.answer = page
    assert [file.path for file in listing("acme/tiny").files] == list(entries)
    assert [fake.authorizations[index] for index, (_, path) in enumerate(fake.requests) if "/page/" in path] == [
        None,
        None,
    ]


@pytest.mark.parametrize(
    "tree",
    [b"[]x", b"{}", b'[{"path": "a"}]', b'[{"type": "file", "path": "a", "size": -1, "oid": "00"}]', b'["a"]', b"\xff"],
)
def test_a_list_of_files_of_another_form(fake: FakeHub, tree: bytes) -> None:
    fake.answer = lambda method, path: (200, {}, tree) if "/tree/" in path else None
    with pytest.raises(HubError, match=r"another form than it documents|cannot be read"):
        listing("acme/tiny")


@pytest.mark.parametrize("oid", ["../../../../tmp/evil", "", "0" * 39, 7, None])
def test_a_hash_that_is_none_becomes_no_name(fake: FakeHub, oid: object) -> None:
    import json

    tree = [{"type": "file", "path": "config.json", "size": 3, "oid": oid}]
    fake.answer = lambda method, path: (200, {}, json.dumps(tree).encode()) if "/tree/" in path else None
    with pytest.raises(HubError, match="another form than it documents"):
        download("acme/tiny", None, ["*"])


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil", "C:evil"])
def test_a_listed_name_outside_is_refused(fake: FakeHub, tmp_path: Path, name: str) -> None:
    fake.files[name] = b"evil"
    with pytest.raises(SecurityError, match="evil") as caught:
        download("acme/tiny", None, ["*"])
    assert caught.value.exit_code == 6
    assert fake.asked("/resolve/") == []


def test_offline_with_a_complete_cache_and_with_a_part_of_it(fake: FakeHub, tmp_path: Path) -> None:
    complete(tmp_path)
    fake.requests.clear()
    assert download("acme/tiny", None, ["*"], offline=True).commit == COMMIT
    blob = cache_of(tmp_path) / "blobs" / sha256(BIG)
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    found = listing("acme/tiny", offline=True)
    with pytest.raises(HubError, match=r"model\.safetensors is not there at revision main in the local cache"):
        fetch(found, ["model.safetensors"])
    assert fake.requests == []
    complete(tmp_path)
    assert fake.asked("model.safetensors") == []


def test_the_libraries_find_it_in_the_cache_and_we_find_theirs(fake: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    ours = download("acme/tiny", None, ["*"]).path
    fake.requests.clear()
    # The stock client, with the network: it asks which commit it is and fetches nothing.
    assert Path(snapshot_download("acme/tiny")) == ours
    assert Path(snapshot_download("acme/tiny", local_files_only=True)) == ours
    assert fake.asked("/resolve/") == []
    other = tmp_path / "theirs"
    theirs = Path(snapshot_download("acme/tiny", cache_dir=other))
    assert {path.name for path in (other / "models--acme--tiny" / "blobs").iterdir()} == {
        path.name for path in (cache_of(tmp_path) / "blobs").iterdir()
    }
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(other))
        fake.requests.clear()
        assert download("acme/tiny", None, ["*"]).path == theirs
        assert fake.asked("/resolve/") == []


def test_bytes_of_another_commit_are_used(fake: FakeHub, tmp_path: Path) -> None:
    complete(tmp_path)
    fake.commit = "2" * 40
    fake.requests.clear()
    snapshot = download("acme/tiny", None, ["*"])
    assert snapshot.path.name == "2" * 40
    assert fake.asked("/resolve/") == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcompress.hub.download.free_bytes", lambda folder: 1000)
    with pytest.raises(ResourceError, match=r"bytes are to be fetched, and 1,000 are free") as caught:
        download("acme/tiny", None, ["*"])
    assert "HF_HOME" in caught.value.hint
    assert fake.asked("/resolve/") == []


def test_another_process_that_never_ends(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("llmcompress.hub.cache._LOCK_WAIT_S", 0.2)
    lock = tmp_path / "cache" / ".locks" / "models--acme--tiny" / f"{git_sha1(FILES['config.json'])}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(LockedError, match=r"another process has been fetching config\.json"):
        download("acme/tiny", None, ["config.json"])
    complete(tmp_path)


def test_the_first_failure_ends_the_others(fake: FakeHub) -> None:
    fake.inject(Fault("drip", only="model.safetensors"), Fault("status", only="config.json", times=-1, status=403))
    begun = time.monotonic()
    with pytest.raises(HubError, match="may not read"):
        download("acme/tiny", None, ["*"])
    assert time.monotonic() - begun < 30


def test_no_error_of_ours_carries_the_servers_words() -> None:
    with (
        pytest.raises(HubError, match=r"could not be used \(RuntimeError\)") as caught,
        translated_errors("a/b", "main"),
    ):
        raise RuntimeError(f"server says {TOKEN}")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_ended(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 10)
    fake.inject(Fault("hang after headers", only="model.safetensors", share=0.9))
    variables = {**os.environ, **environment(fake, tmp_path / "cache", TOKEN)}
    program = "from fake_hub import download; download('acme/tiny', None, ['*'])"
    child = subprocess.Popen([sys.executable, "-c", program], env=variables, cwd=Path(__file__).parent)
    left = cache_of(tmp_path) / "blobs" / f"{sha256(BIG)}.incomplete"
    deadline = time.monotonic() + 60
    while not (left.exists() and left.stat().st_size > 0.89 * len(BIG)) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.wait()
    nothing_wrong_is_kept(tmp_path)
    complete(tmp_path)
    assert fake.num_sent[f"/acme/tiny/resolve/{COMMIT}/model.safetensors"] < 1.05 * len(BIG)


def test_a_failure_ends_the_wait_for_another_process(fake: FakeHub, tmp_path: Path) -> None:
    from filelock import FileLock

    lock = tmp_path / "cache" / ".locks" / "models--acme--tiny" / f"{sha256(BIG)}.lock"
    lock.parent.mkdir(parents=True)
    fake.inject(Fault("status", only="config.json", status=403))
    begun = time.monotonic()
    with FileLock(lock), pytest.raises(HubError, match="may not read it"):
        download("acme/tiny", None, ["*"])
    assert time.monotonic() - begun < 30


def test_other_kinds_of_failures_in_words() -> None:
    import httpx

    for error, message in (
        (httpx.ProxyError("x"), "no connection to"),
        (httpx.WriteTimeout("x"), "did not answer in time"),
        (httpx.PoolTimeout("x"), "no connection to"),
    ):
        with pytest.raises(HubError, match=message), translated_errors("a/b", "main"):
            raise error
