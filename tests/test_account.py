"""Who is logged in, and what is known to be refused before anything is hashed or sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, running, use

from llmcompress.errors import HubError
from llmcompress.hub.account import Account, current_token, find_account, require_rights, staying_offline
from llmcompress.hub.client import HubClient

TOKEN = "hf_secretsecretsecret"
FINE_GRAINED = {
    "global": ["discussion.write"],
    "scoped": [{"permissions": ["repo.write"]}, {"entity": {"type": "user"}, "permissions": ["repo.content.read"]}, {}],
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.001,))
    with running(FakeHub()) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


def answer(orgs: Any = (), token: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": "acme", "orgs": orgs, "auth": {"accessToken": token}, **more}


def test_the_token_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert current_token() == TOKEN


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (
            answer(
                [{"name": "lab", "roleInOrg": "admin"}, {"name": "club"}, {"name": "team", "roleInOrg": None}],
                {"role": "fineGrained", "fineGrained": FINE_GRAINED},
            ),
            Account(
                "acme", {"lab": "admin", "club": "", "team": ""}, "fineGrained",
                frozenset({"discussion.write", "repo.write", "repo.content.read"}),
            ),
        ),
        (answer(token={"role": "write", "fineGrained": None}), Account("acme", {}, "write", frozenset())),
        (answer(token={"role": None, "fineGrained": {}}), Account("acme", {}, "", frozenset())),
        (answer(), Account("acme", {}, "", frozenset())),
        ({"name": 7, "auth": {}}, Account("7", {}, "", frozenset())),
        ({"name": "acme"}, Account("acme", {}, "", frozenset())),
    ],
)  # fmt: skip
def test_what_the_hub_says_of_an_account(fake: FakeHub, stated: dict[str, Any], expected: Account) -> None:
    fake.account = stated
    assert find_account(HubClient()) == expected
    assert fake.authorizations == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize(
    "stated",
    [{}, {"name": "acme", "orgs": 7}, {"name": "acme", "orgs": ["lab"]}, {"name": "acme", "auth": "x"}],
)
def test_an_answer_of_another_form(fake: FakeHub, stated: dict[str, Any]) -> None:
    fake.account = stated
    with pytest.raises(HubError, match="about the account has another form than it documents") as caught:
        find_account(HubClient())
    assert "hf auth login" in caught.value.hint


def test_without_a_token_or_offline_nobody_is_asked(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.get_token", lambda: None)
        with pytest.raises(HubError, match="nobody is logged in to the Hub"):
            find_account(HubClient())
        # Offline nobody needs to log in first.
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="this run is offline, by HF_HUB_OFFLINE"):
            find_account(HubClient())
    assert fake.requests == []


def test_a_refusal_speaks_of_writing(fake: FakeHub) -> None:
    fake.answer = lambda method, path: (403, {}, b"{}")
    with pytest.raises(HubError, match="may not write it") as caught:
        find_account(HubClient())
    assert caught.value.where == "the account"
    assert len(fake.requests) == 1


def test_other_libraries_stay_offline_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with staying_offline():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()


def who(role: str = "write", permissions: tuple[str, ...] = (), **organizations: str) -> Account:
    return Account("bob", organizations, role, frozenset(permissions))


@pytest.mark.parametrize("account", [
    who(), who(""), who("fineGrained", ("repo.write",)), who("fineGrained", ("repo.content.write", "x")),
])  # fmt: skip
@pytest.mark.parametrize("role", ["admin", "write", "contributor", ""])
def test_one_who_may_write_is_let_through(account: Account, role: str) -> None:
    require_rights(account, "bob/model", create_pr=False)
    require_rights(account._replace(organizations={"lab": role}), "lab/model", create_pr=False)
    require_rights(account, "elsewhere/model", create_pr=True)


@pytest.mark.parametrize(
    ("account", "repo_id", "message", "hint"),
    [
        (who("read"), "bob/model", "the token of bob may only read", "make one that may write at https://"),
        (
            who("fineGrained", ("repo.content.read",)), "bob/model",
            "the token of bob has no permission to write repositories", "edit its permissions at https://",
        ),
        (
            who(lab="write", club="read", den="no_access"), "acme/model", "the account bob is no member of acme",
            "push to one of bob, lab, or propose it",
        ),
        (who(acme="read"), "acme/model", "the account bob may only read in acme", "push to one of bob, or propose it"),
        (who(acme="no_access"), "acme/model", "the account bob is no member of acme", "push to one of bob, or"),
    ],
)  # fmt: skip
def test_what_must_fail_is_refused_first(account: Account, repo_id: str, message: str, hint: str) -> None:
    with pytest.raises(HubError) as caught:
        require_rights(account, repo_id, create_pr=False)
    assert (caught.value.message, caught.value.where) == (message, repo_id)
    assert caught.value.hint.startswith(hint)


def test_a_token_that_only_reads_opens_no_pull_request() -> None:
    with pytest.raises(HubError, match="may only read"):
        require_rights(who("read"), "acme/model", create_pr=True)
    require_rights(who("fineGrained"), "acme/model", create_pr=True)
    require_rights(who(acme="read"), "acme/model", create_pr=True)
