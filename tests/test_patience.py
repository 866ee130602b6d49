"""How long the Hub is waited for: every kind of failure, and what a server asks for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from llmcompress.errors import UsageError
from llmcompress.hub.patience import PAUSES_S, limit_s, pause_s

REQUEST = httpx.Request("GET", "http://home.test")


def refusal(status: int, **headers: str) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HfHubHTTPError("", response=httpx.Response(status, headers=named, request=REQUEST))


def pause(error: Exception, failures: int = 1, repeatable: bool = True) -> float | None:
    assert isinstance(error, httpx.HTTPError)
    return pause_s(error, failures, repeatable)


def test_the_limit_grows_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMCOMPRESS_HUB_DEADLINE_S", raising=False)
    assert (limit_s(0), limit_s(250_000), limit_s(25_000_000)) == (300.0, 301.0, 400.0)
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", "0.5")
    assert limit_s(25_000_000) == 0.5
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", "")
    assert limit_s(0) == 300.0


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "an hour"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", text)
    with pytest.raises(UsageError, match=f"LLMCOMPRESS_HUB_DEADLINE_S is '{text}'; a number of seconds is accepted"):
        limit_s(0)


def test_pauses_double_and_come_to_an_end() -> None:
    broken = httpx.ReadError("")
    assert [pause(broken, failures) for failures in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, None, None]
    assert PAUSES_S == (0.5, 1.0, 2.0, 4.0, 8.0)
    assert pause(broken, 1, repeatable=False) is None


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout])
def test_who_is_not_there_is_called_three_times(kind: type[httpx.TransportError]) -> None:
    for repeatable in (True, False):
        found = [pause(kind(""), failures, repeatable) for failures in range(5)]
        assert found == [0.0, 0.5, 1.0, None, None]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_refusals_that_may_be_over_soon(status: int) -> None:
    assert pause(refusal(status)) == 0.5
    # Too many requests: none was carried out.
    assert pause(refusal(status), repeatable=False) == (0.5 if status == 429 else None)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 416, 501])
def test_refusals_that_stay(status: int) -> None:
    assert pause(refusal(status)) is None
    assert pause(refusal(status, Retry_After="1")) is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("7", 7.0), (" 7 ", 7.0), ("0", 0.5), ("300", 300.0), ("301", None), ("soon", 0.5), ("-3", 0.5), ("1.5", 0.5)],
)
def test_what_a_server_asks_for_is_waited_for_within_bounds(asked: str, expected: float | None) -> None:
    assert pause(refusal(503, Retry_After=asked)) == expected
    assert pause(refusal(503, Retry_After="1"), 4) == 4.0


def test_a_date_is_waited_for() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    found = pause(refusal(503, Retry_After=format_datetime(later, usegmt=True)))
    assert found is not None
    assert 30 < found <= 100
    assert pause(refusal(503, Retry_After=format_datetime(later - timedelta(days=1), usegmt=True))) == 0.5
    # One of an unknown zone is none.
    assert pause(refusal(503, Retry_After="Mon, 16 Nov 2099 13:32:02 -0000")) == 0.5


def test_a_rate_limit_of_the_hub_says_when_it_ends() -> None:
    headers = {"RateLimit": '"api";r=0;t=55', "RateLimit_Policy": '"fixed window";"api";q=500;w=300'}
    assert pause(refusal(429, **headers)) == 55.0
    assert pause(refusal(503, **headers)) == 0.5
    assert pause(refusal(429, Retry_After="2", **headers)) == 2.0
