from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, download, running, sha256, use

from llmcompress.errors import HubError, SecurityError, UsageError, WriteError
from llmcompress.hub.download import fetch
from llmcompress.hub.failures import translated_errors
from llmcompress.hub.listing import listing
from llmcompress.spec.access import check_name, check_repo_id, check_revision
from llmcompress.system.progress import Progress

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 40, "notes.md": b"hello"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.01, 0.01))
    with running(FakeHub(files=dict(FILES))) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


def status(code: int, headers: dict[str, str] | None = None, *, only: str = "") -> object:
    """Every request that contains ``only`` fails, and the server echoes the token it was sent."""
    body = b'{"error": "bad token hf_secretsecretsecret"}'
    return lambda method, path: (code, dict(headers or {}), body) if only in path else None


@pytest.mark.parametrize("name", ["gpt2", "acme/tiny", "Qwen/Qwen3-0.6B", "a.b_c/d-e"])
def test_ids_of_the_hub_pass(name: str) -> None:
    assert check_repo_id(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../b",
        "a/b/c",
        "-rf",
        "a--b",
        "x" * 97,
        "a b",
        "a\nb",
        "gpt2\n",
        "m%2e%2e",
        "mоdel",
        "a\\b",
        "",
        "a\0b",
    ],
)
def test_other_ids_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="neither an existing path nor a Hub id"):
        check_repo_id(name)


@pytest.mark.parametrize("name", ["main", "v1.0", "refs/pr/1", COMMIT, "feature/x-y"])
def test_revisions_pass(name: str) -> None:
    assert check_revision(name) == name


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "a//b", "a/", "-x", "a\0", "a\n", "a b", "x" * 201, "a/.git", "a\\b", "main.lock", ""]
)
def test_other_revisions_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a revision"):
        check_revision(name)


@pytest.mark.parametrize("name", ["config.json", "a/b.jinja"])
def test_names_inside_pass(name: str) -> None:
    assert check_name(name, where="x") == name


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\\b", "C:x", "a//b", "a\nb", "", "."])
def test_names_outside_are_refused(name: str) -> None:
    with pytest.raises(SecurityError, match="leaves the model's directory"):
        check_name(name, where="x")


def test_listing_pins_a_commit_and_fetches_no_file(fake: FakeHub) -> None:
    found = listing("acme/tiny")
    assert (found.commit, found.offline, found.revision) == (COMMIT, False, "main")
    assert {file.path: file.size_bytes for file in found.files} == {name: len(b) for name, b in FILES.items()}
    assert {file.path: file.sha256 for file in found.files}["model.safetensors"] == sha256(FILES["model.safetensors"])
    assert fake.asked("/resolve/") == []


def test_a_listed_name_that_leaves_the_directory_is_refused_before_anything_is_fetched(
    fake: FakeHub, tmp_path: Path
) -> None:
    fake.files["../../evil.txt"] = b"evil"
    with pytest.raises(SecurityError, match="evil"):
        download("acme/tiny", None, ["*"])
    assert fake.asked("/resolve/") == []
    assert not list(tmp_path.rglob("*evil*"))


def test_a_commit_that_is_none_is_refused(fake: FakeHub) -> None:
    fake.commit = "../../x"
    with pytest.raises(HubError, match="where a commit hash of 40 digits belongs"):
        listing("acme/tiny")


def test_download_gives_one_commit_and_its_hashes(fake: FakeHub) -> None:
    seen: list[Progress] = []
    snapshot = download("acme/tiny", "main", ["*.json", "*.safetensors"], progress=seen.append)
    assert snapshot.commit == snapshot.path.name == COMMIT
    assert sorted(path.name for path in snapshot.path.iterdir()) == ["config.json", "model.safetensors"]
    assert (snapshot.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert snapshot.sha256 == {"model.safetensors": sha256(FILES["model.safetensors"])}
    total = len(FILES["config.json"]) + len(FILES["model.safetensors"])
    assert seen[-1] == Progress("download", total, total, "bytes")
    assert fake.asked("notes.md") == []


def test_offline_uses_the_cache_and_asks_nobody(fake: FakeHub) -> None:
    download("acme/tiny", None, ["*.json"])
    fake.requests.clear()
    snapshot = download("acme/tiny", None, ["*.json"], offline=True)
    assert (snapshot.path / "config.json").read_bytes() == FILES["config.json"]
    assert fake.requests == []
    found = listing("acme/tiny", offline=True)
    with pytest.raises(
        HubError, match=r"model\.safetensors is not there at revision main in the local cache"
    ) as caught:
        fetch(found, ["model.safetensors"])
    assert "without `offline`" in caught.value.hint


def test_offline_without_a_cached_copy(fake: FakeHub) -> None:
    with pytest.raises(HubError, match=r"is not in the local cache .* and this run is offline") as caught:
        listing("acme/tiny", offline=True)
    assert "`offline`" in caught.value.hint
    assert fake.requests == []


def test_the_offline_variable_counts(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="this run is offline"):
        listing("acme/tiny")


@pytest.mark.parametrize(
    ("code", "headers", "message", "hint"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "shows no model of this name", "hf auth login"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            r"wants a valid access token \(401\)",
            "HF_TOKEN",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "gated", "accept the terms"),
        (403, {}, r"may not read it \(403\)", "permissions"),
        (404, {"X-Error-Code": "RepoNotFound"}, "absent, misspelt, or private", "check the name"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no revision 'main'", "branches"),
        (410, {}, r"gone for good \(410\)", "see "),
        (416, {}, r"no such part of the file \(416\)", "try again"),
        (418, {}, "answered 418", "opens"),
        (429, {"Retry-After": "700"}, r"too many requests \(429\): .* in 700 seconds", "wait"),
        (429, {}, r"too many requests \(429\): .* later", "wait"),
        (500, {}, r"has a fault \(500\)", "try again later"),
        (503, {}, r"has a fault \(503\)", "try again later"),
    ],
)
def test_answers_of_the_hub_in_clear_words(
    fake: FakeHub, code: int, headers: dict[str, str], message: str, hint: str
) -> None:
    fake.answer = status(code, headers)  # type: ignore[assignment]
    with pytest.raises(HubError, match=message) as caught:
        listing("acme/tiny")
    assert hint in caught.value.hint
    assert "hf_secret" not in str(caught.value)
    retried = code in (500, 503) or (code == 429 and not headers)
    assert len(fake.requests) == (3 if retried else 1)
    assert set(fake.authorizations) == {"Bearer hf_secretsecretsecret"}


def test_a_file_that_vanished(fake: FakeHub) -> None:
    found = listing("acme/tiny")
    del fake.files["config.json"]
    with pytest.raises(HubError, match="a file is not there at revision 'main'"):
        fetch(found, ["config.json"])


def test_a_name_that_is_not_listed(fake: FakeHub) -> None:
    with pytest.raises(HubError, match=r"missing\.json is not there at revision main\n"):
        fetch(listing("acme/tiny"), ["missing.json"])


def test_what_the_cache_has_wrong_is_fetched_again(fake: FakeHub) -> None:
    path = download("acme/tiny", None, ["*"]).path
    with (path / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    (path / "config.json").write_bytes(FILES["config.json"].replace(b"llama", b"lamma"))
    fake.requests.clear()
    download("acme/tiny", None, ["*"])
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert {request[1].rpartition("/")[2] for request in fake.asked("/resolve/")} == {
        "model.safetensors",
        "config.json",
    }


def test_offline_what_the_cache_has_wrong_is_named(fake: FakeHub) -> None:
    path = download("acme/tiny", None, ["*"]).path
    (path / "config.json").write_bytes(FILES["config.json"].replace(b"llama", b"lamma"))
    with pytest.raises(HubError, match=r"config\.json: the file in the cache holds other bytes") as caught:
        download("acme/tiny", None, ["*"], offline=True)
    assert "without `offline`" in caught.value.hint


def test_nobody_listens(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = listing("acme/tiny")
    use("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.raises(HubError, match=r"no connection to http://127\.0\.0\.1:9"):
        listing("acme/tiny")
    with pytest.raises(HubError, match=r"no connection to http://127\.0\.0\.1:9"):
        fetch(found, ["config.json"])


def test_no_answer_in_time(fake: FakeHub) -> None:
    import httpx

    with pytest.raises(HubError, match="did not answer in time"), translated_errors("acme/tiny", "main"):
        raise httpx.ReadTimeout("slow")


def test_a_full_disk_is_a_write_error(fake: FakeHub) -> None:
    with (
        pytest.raises(WriteError, match=r"cache .* cannot be written: No space left") as caught,
        translated_errors("a", "b"),
    ):
        raise OSError(28, "No space left on device")
    assert "HF_HOME" in caught.value.hint


def test_a_cache_below_a_file_is_named(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(WriteError, match=r"cache .*/file/hub cannot be written: Not a directory") as caught:
        download("acme/tiny", None, ["*"])
    assert "HF_HOME" in caught.value.hint


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_may_only_be_read_is_read(fake: FakeHub, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = download("acme/tiny", None, ["*"])
    for ref in first.path.parent.parent.glob("refs/*"):
        ref.unlink()

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert download("acme/tiny", None, ["*"]) == first


def test_a_disabled_repository(fake: FakeHub) -> None:
    fake.answer = status(403, {"X-Error-Message": "Access to this resource is disabled."})  # type: ignore[assignment]
    with pytest.raises(HubError, match="disabled this repository"):
        listing("acme/tiny")


def test_an_unknown_error_names_its_kind() -> None:
    with pytest.raises(HubError, match=r"could not be used \(KeyError\)"), translated_errors("a", "b"):
        raise KeyError("hf_secret")
