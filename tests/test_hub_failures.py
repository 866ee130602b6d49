"""Failures of the Hub, the network and the cache in plain words, and never in those of a server."""

from __future__ import annotations

import errno
import socket
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmcompress.errors import HubError, LlmcompressError, UsageError, WriteError
from llmcompress.hub.failures import translated_errors, unreachable_reason, unwritable_cache

TOKEN = "hf_secretsecretsecret"
REQUEST = httpx.Request("GET", "http://home.test")
LOGIN = "run `hf auth login`, or set HF_TOKEN"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://home.test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/cache")


def translated(error: Exception, *, writing: bool = False) -> LlmcompressError:
    with pytest.raises(LlmcompressError) as caught, translated_errors("acme/tiny", "v1", writing=writing):
        raise error
    return caught.value


def words(error: Exception, *, writing: bool = False) -> tuple[str, str]:
    found = translated(error, writing=writing)
    assert isinstance(found, HubError)
    assert found.where == "acme/tiny"
    return found.message, found.hint


def caused(error: Exception, cause: BaseException, *, hidden: bool = False) -> Exception:
    """An error and what it was raised over."""
    if hidden:
        error.__context__ = cause
    else:
        error.__cause__ = cause
    return error


def refusal(status: int, kind: str = "HfHubHTTPError", **headers: str) -> Any:
    from huggingface_hub import errors

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return getattr(errors, kind)(TOKEN, response=httpx.Response(status, headers=named, request=REQUEST))


def test_no_word_of_a_server_reaches_a_traceback() -> None:
    found = translated(caused(ValueError(TOKEN), caused(httpx.ReadError(TOKEN), OSError(TOKEN), hidden=True)))
    shown = "".join(traceback.format_exception(found))
    assert TOKEN not in shown
    assert str(found.__cause__) == "ValueError < ReadError < OSError"
    # An error that is its own cause is looked at once.
    circle = httpx.ReadError("")
    assert str(translated(caused(circle, caused(OSError(), circle), hidden=True)).__cause__) == "ReadError < OSError"


def test_errors_of_ours_stay_as_they_are() -> None:
    ours = UsageError("ours")
    assert translated(ours) is ours
    with translated_errors("acme/tiny", "v1"):
        pass


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("GatedRepoError", "the model is gated: ", f"open http://home.test/acme/tiny, accept the terms, then {LOGIN}"),
        ("DisabledRepoError", "the Hub has disabled this repository", "see http://home.test/acme/tiny"),
        ("RevisionNotFoundError", "it has no revision 'v1'", "http://home.test/acme/tiny/tree/main shows branches"),
        ("RepositoryNotFoundError", "the Hub shows no model of this name: ", "check the name at http://home.test/acme"),
        (
            "RemoteEntryNotFoundError",
            "a file is not there at revision 'v1'",
            "http://home.test/acme/tiny/tree/v1 shows",
        ),
    ],
)
def test_kinds_of_refusals(kind: str, message: str, hint: str) -> None:
    found = words(refusal(404, kind))
    assert found[0].startswith(message)
    assert found[1].startswith(hint)
    # Whatever it is hidden behind, and whatever stopped the connection then.
    assert words(caused(httpx.ReadError(""), refusal(404, kind))) == found
    assert words(caused(OSError(errno.EACCES, "x"), refusal(404, kind)), writing=True)[0] == found[0]


@pytest.mark.parametrize(
    ("status", "reading", "writing"),
    [
        (400, "the Hub answered 400", "the Hub refuses what was sent (400)"),
        (401, "the Hub wants a valid access token (401): ", "the Hub wants a valid access token (401): "),
        (403, "this account or token may not read it (403)", "this account or token may not write it, or "),
        (404, "the Hub answered 404", "the Hub answered 404"),
        (410, "it is gone for good (410): ", "it is gone for good (410): "),
        (413, "the Hub finds it too large (413)", "the Hub finds it too large (413)"),
        (416, "the Hub has no such part of the file (416)", "the Hub has no such part of the file (416)"),
        (499, "the Hub answered 499", "the Hub answered 499"),
        (500, "the Hub has a fault (500)", "the Hub has a fault (500)"),
    ],
)
def test_statuses(status: int, reading: str, writing: str) -> None:
    assert words(refusal(status))[0].startswith(reading)
    assert words(refusal(status), writing=True)[0].startswith(writing)


def test_what_to_do_after_a_fault_of_the_hub() -> None:
    assert words(refusal(401))[1] == LOGIN
    kept = "what came is kept: run it again, and it goes on there"
    assert words(named("EndedEarlyError"))[1] == words(httpx.ReadError(""))[1] == kept
    # Unless it is said otherwise, nothing is written there.
    with pytest.raises(HubError, match="may not read it"), translated_errors("acme/tiny", "v1"):
        raise refusal(403)
    assert words(refusal(500))[1] == "try again later, or use `offline` if it is cached"
    assert words(refusal(500), writing=True)[1] == "try again later"


def test_too_many_requests() -> None:
    message = "too many requests (429): the Hub asks to come back "
    assert words(refusal(429, Retry_After="700")) == (f"{message}in 700 seconds", f"wait; {LOGIN} for a higher limit")
    for said in ({}, {"Retry_After": TOKEN}, {"Retry_After": ""}):
        assert words(refusal(429, **said))[0] == f"{message}later"


def test_offline() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    reading = (
        "revision 'v1' is not in the local cache /cache, and this run is offline",
        "run it once without `offline` (and without HF_HUB_OFFLINE)",
    )
    assert words(LocalEntryNotFoundError(TOKEN)) == words(OfflineModeIsEnabled(TOKEN)) == reading
    assert words(caused(LocalEntryNotFoundError(TOKEN), OfflineModeIsEnabled(TOKEN))) == reading
    assert words(LocalEntryNotFoundError(TOKEN), writing=True) == reading
    assert words(OfflineModeIsEnabled(TOKEN), writing=True) == (
        "this run is offline, by HF_HUB_OFFLINE", "unset it to reach the Hub",
    )  # fmt: skip
    # Behind that of the library is often what really happened.
    assert words(caused(LocalEntryNotFoundError(TOKEN), httpx.ReadTimeout("")))[0].startswith(
        "http://home.test did not"
    )
    assert words(caused(ValueError(), LocalEntryNotFoundError(TOKEN)))[0].startswith("the Hub could not be used")


def named(name: str) -> Exception:
    return type(name, (Exception,), {})(TOKEN)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (named("StoppedError"), "the Hub could not be used (StoppedError)"),
        (caused(httpx.ConnectError(""), named("SSLCertVerificationError")), "the certificate of http://home.test, or "),
        (caused(httpx.ConnectError(""), socket.gaierror()), "the name of http://home.test cannot be resolved"),
        (httpx.TooManyRedirects(""), "the Hub redirects in a circle"),
        (httpx.ReadTimeout(""), "http://home.test did not answer in time"),
        (named("EndedEarlyError"), "the download ended early: "),
        (httpx.RemoteProtocolError(""), "the connection to http://home.test broke, several times"),
        (httpx.WriteError(""), "the connection to http://home.test broke, several times"),
        (httpx.ConnectError(""), "no connection to http://home.test"),
        (httpx.ProxyError(""), "no connection to http://home.test"),
        (httpx.DecodingError(""), "the Hub's answer cannot be read"),
        (caused(ValueError(), KeyError()), "the Hub could not be used (KeyError, ValueError)"),
    ],
)
def test_faults_of_the_network(error: Exception, message: str) -> None:
    assert words(error)[0].startswith(message)


def test_a_limit_is_named_and_what_is_kept() -> None:
    from llmcompress.hub.client import OverdueError

    found = words(caused(ValueError(), OverdueError("12.5")))
    assert found == (
        "it was not done within its time limit of 12.5 seconds",
        "what came is kept: run it again, and it goes on there; LLMCOMPRESS_HUB_DEADLINE_S=SECONDS sets another limit",
    )
    assert words(OverdueError("12.5"), writing=True)[1].startswith("run it again: nothing is sent twice; ")


# --- the cache


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EIO", "ENOTDIR", "EEXIST"])
def test_a_disk_that_refuses(name: str) -> None:
    refused = OSError(getattr(errno, name), "no")
    for error in (refused, caused(ValueError(TOKEN), refused)):
        found = translated(error)
        assert isinstance(found, WriteError)
        assert found.message == "the Hugging Face cache /cache cannot be written: no"
        assert (found.where, found.hint) == (
            "acme/tiny",
            "make room or permission there, or set HF_HOME to another disk",
        )
    # A firewall says the same of a connection.
    assert words(caused(httpx.ConnectError(TOKEN), refused))[0] == "no connection to http://home.test"


def test_what_is_no_refusal_of_a_disk() -> None:
    for error in (OSError(errno.ENOENT, "no"), OSError("no"), ValueError("no")):
        assert unwritable_cache(error, "/cache", "x") is None
        assert words(error)[0].startswith("the Hub could not be used")
    found = unwritable_cache(OSError(errno.EROFS, "no"), Path("/elsewhere"), "x")
    assert found is not None
    assert (found.message, found.where) == ("the Hugging Face cache /elsewhere cannot be written: no", "x")


# --- is it there


def test_why_no_answer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []

    def head(url: str, timeout: float) -> httpx.Response:
        asked.append((url, timeout))
        if len(asked) > 1:
            raise httpx.ConnectError(TOKEN)
        return httpx.Response(500)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 7)
    monkeypatch.setattr(httpx, "head", head)
    assert unreachable_reason() is None
    assert unreachable_reason() == "no connection to http://home.test"
    assert asked == [("http://home.test", 7)] * 2
