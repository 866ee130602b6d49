"""Requests to the Hub, call by call: whose token goes where, what is waited for, and what is put back."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from llmcompress.hub import client as hub_client
from llmcompress.hub.client import HubClient, OverdueError, StoppedError, raise_for_status

HOME, ELSEWHERE = "http://home.test:8080", "http://cdn.test"
TOKEN = "hf_secretsecretsecret"
Handler = Callable[[httpx.Request], httpx.Response]


class Session:
    """huggingface_hub's session on a server that is a function."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.requests: list[httpx.Request] = []
        self.answer: Handler = lambda request: httpx.Response(200, content=b"content")
        self.client = httpx.Client(transport=httpx.MockTransport(self._handle))
        patch.setattr("huggingface_hub.utils.get_session", lambda: self.client)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)

    def get(self, url: str) -> Callable[[Any], httpx.Response]:
        return lambda api: self.client.get(url)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", HOME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 7)
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (0.001, 0.001))
    return Session(monkeypatch)


# --- the token


@pytest.mark.parametrize(
    ("url", "is_home"),
    [
        (f"{HOME}/acme/tiny", True),
        (f"{ELSEWHERE}/acme/tiny", False),
        ("http://home.test/acme/tiny", False),
        ("https://home.test:8080/acme/tiny", False),
        ("http://home.test.evil.test:8080/acme/tiny", False),
    ],
)
def test_the_token_goes_to_the_hub_alone(session: Session, url: str, is_home: bool) -> None:
    client = HubClient()
    with client.stream(url, headers={"Range": "bytes=1-"}) as response:
        assert b"".join(client.blocks(response)) == b"content"
    # A request of the library brings what the library put into it.
    client.call(lambda api: session.client.get(url, headers={"Authorization": f"Bearer {TOKEN}", "Cookie": TOKEN}))
    for request in session.requests:
        assert request.headers.get("Authorization") == (f"Bearer {TOKEN}" if is_home else None)
    assert session.requests[1].headers.get("Cookie") == (TOKEN if is_home else None)
    assert (session.requests[0].method, str(session.requests[0].url)) == ("GET", url)
    assert session.requests[0].headers["Range"] == "bytes=1-"


def test_a_redirect_to_another_host_gets_no_token(session: Session) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "home.test":
            return httpx.Response(302, headers={"Location": f"{ELSEWHERE}/file"})
        return httpx.Response(200, content=b"there")

    session.answer = answer
    assert HubClient().read(f"{HOME}/file") == b"there"
    assert [request.headers.get("Authorization") for request in session.requests] == [f"Bearer {TOKEN}", None]


def test_a_refusal_keeps_no_words_of_the_server(session: Session) -> None:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    headers = {
        "X-Error-Code": "GatedRepo",
        "X-Error-Message": "ask for access",
        "Retry-After": "0",
        "RateLimit": '"api";r=1;t=1',
        "X-Echo": TOKEN,
    }
    session.answer = lambda request: httpx.Response(403, headers=headers, content=TOKEN.encode())
    with pytest.raises(GatedRepoError) as caught:
        HubClient().read(f"{HOME}/file")
    kept = caught.value.response.headers
    assert {name: kept[name] for name in ("X-Error-Code", "X-Error-Message", "Retry-After", "RateLimit")} == {
        name: value for name, value in headers.items() if name != "X-Echo"
    }
    assert "X-Echo" not in kept
    assert TOKEN not in str(caught.value)
    assert str(caught.value.response.request.url) == f"{HOME}/file"
    raise_for_status(httpx.Response(200, request=httpx.Request("GET", HOME)))
    with pytest.raises(HfHubHTTPError):
        raise_for_status(httpx.Response(404, request=httpx.Request("GET", HOME)))


# --- time


def test_the_limits_of_a_stall(session: Session) -> None:
    client = HubClient()
    with client.stream(f"{HOME}/file"):
        pass
    for method in ("GET", "HEAD", "POST", "PUT"):
        client.call(lambda api, method=method: session.client.request(method, f"{HOME}/file"))  # type: ignore[misc]
    read = {"connect": 7.0, "write": 7.0, "pool": 7.0, "read": 7.0}
    write = {**read, "read": 60.0}
    assert [request.extensions["timeout"] for request in session.requests] == [read, read, read, write, write]


def test_a_stall_that_is_longer_than_the_answer_to_a_write(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 90)
    HubClient().call(lambda api: session.client.post(f"{HOME}/file"))
    assert session.requests[0].extensions["timeout"]["read"] == 90.0


def test_an_operation_has_its_time_by_its_size(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 299 < HubClient().left_s() <= 300
    assert 303 < HubClient(1_000_000).left_s() <= 304
    now = [1000.0]
    monkeypatch.setattr(hub_client.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", "12.5")
    client = HubClient()
    assert client.left_s() == 12.5
    now[0] += 12.4999
    assert 0 < client.left_s() < 0.001
    now[0] = 1012.5
    with pytest.raises(OverdueError, match=r"^12\.5$"):
        client.left_s()
    client.stop()
    with pytest.raises(StoppedError):
        client.left_s()


def test_a_body_ends_with_the_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    client, given = HubClient(), []

    def body() -> Iterator[bytes]:
        yield from (b"a", b"b", b"c")

    session.answer = lambda request: httpx.Response(200, content=body())

    def take() -> None:
        with client.stream(f"{HOME}/file") as response:
            for block in client.blocks(response):
                given.append(block)
                client.stop()

    with pytest.raises(StoppedError):
        take()
    assert given == [b"a"]


def test_a_response_is_closed_whatever_happens(session: Session) -> None:
    responses: list[httpx.Response] = []

    class Watched(httpx.SyncByteStream):
        closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield b"a"

        def close(self) -> None:
            Watched.closed += 1

    def answer(request: httpx.Request) -> httpx.Response:
        responses.append(httpx.Response(200, stream=Watched()))
        return responses[-1]

    session.answer = answer
    with HubClient().stream(f"{HOME}/file"):
        assert Watched.closed == 0
    assert Watched.closed == 1

    def fail() -> None:
        with HubClient().stream(f"{HOME}/file"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Watched.closed == 2


def test_what_never_ends_is_left_behind(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", "0.05")
    never = threading.Event()
    threads: list[threading.Thread] = []

    def wait() -> None:
        threads.append(threading.current_thread())
        never.wait(20)

    began = time.monotonic()
    with pytest.raises(OverdueError):
        HubClient().in_time(wait)
    assert time.monotonic() - began < 5
    assert threads[0].daemon
    assert threads[0] is not threading.main_thread()
    never.set()
    assert HubClient().in_time(lambda: 5) == 5
    with pytest.raises(SystemExit):
        HubClient().in_time(lambda: exec("raise SystemExit"))


def test_a_stop_is_noticed_while_a_call_waits(session: Session) -> None:
    client, never = HubClient(), threading.Event()
    threading.Timer(0.05, client.stop).start()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        client.in_time(lambda: never.wait(20))
    assert time.monotonic() - began < 5
    never.set()


# --- tries


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [times]

    def attempt() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return f"after {times}"

    return attempt


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), httpx.DecodingError("cut"), httpx.ReadTimeout("slow")])
def test_a_fault_of_the_network_is_tried_again(session: Session, error: Exception) -> None:
    assert HubClient().patiently(failing(2, error)) == "after 2"
    with pytest.raises(type(error)):
        HubClient().patiently(failing(3, error))
    with pytest.raises(type(error)):
        HubClient().patiently(failing(1, error), repeatable=False)
    with pytest.raises(ValueError, match="other"):
        HubClient().patiently(failing(1, ValueError("other")))


def test_a_try_that_brings_enough_is_no_failure(session: Session) -> None:
    there = [0]

    def bring(size: int, times: int) -> Callable[[], str]:
        attempt = failing(times, httpx.ReadError("reset"))

        def try_it() -> str:
            there[0] += size
            return attempt()

        return try_it

    client = HubClient()
    assert client.patiently(bring(1, 9), done=lambda: there[0]) == "after 9"
    assert client.patiently(bring(5, 9), done=lambda: there[0], enough=5) == "after 9"
    for size, enough in ((4, 5), (0, 1)):
        with pytest.raises(httpx.ReadError):
            client.patiently(bring(size, 9), done=lambda: there[0], enough=enough)


def test_after_a_try_that_brought_enough_there_is_no_pause(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (20.0, 20.0))
    there, attempt = [0], failing(3, httpx.ReadError("reset"))

    def bring() -> str:
        there[0] += 1
        return attempt()

    began = time.monotonic()
    assert HubClient().patiently(bring, done=lambda: there[0]) == "after 3"
    assert time.monotonic() - began < 10


def test_a_pause_that_would_not_end_in_time_is_none(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    session.answer = lambda request: httpx.Response(503, headers={"Retry-After": "200"})
    monkeypatch.setenv("LLMCOMPRESS_HUB_DEADLINE_S", "100")
    began = time.monotonic()
    with pytest.raises(HfHubHTTPError):
        HubClient().read(f"{HOME}/file")
    assert time.monotonic() - began < 5
    assert len(session.requests) == 1


def test_a_stop_ends_a_pause(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcompress.hub.patience.PAUSES_S", (20.0,))
    client = HubClient()
    threading.Timer(0.05, client.stop).start()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        client.patiently(failing(1, httpx.ReadError("reset")))
    assert time.monotonic() - began < 5


# --- calls of the library


def test_a_transient_refusal_is_ours_before_the_library_tries_on_its_own(session: Session) -> None:
    answers = [503, 429, 200]
    seen: list[int] = []
    session.answer = lambda request: httpx.Response(answers.pop(0), json={})
    found = HubClient().call(session.get(f"{HOME}/api"), on_response=lambda response: seen.append(response.status_code))
    assert found.status_code == 200
    assert seen == [200]
    # Others are the library's to tell.
    session.answer = lambda request: httpx.Response(404)
    assert HubClient().call(session.get(f"{HOME}/api")).status_code == 404


def test_what_is_done_twice_is_asked_once(session: Session) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    session.answer = lambda request: httpx.Response(503)
    with pytest.raises(HfHubHTTPError):
        HubClient().call(session.get(f"{HOME}/api"), repeatable=False)
    assert len(session.requests) == 1


def test_hooks_are_put_back(session: Session) -> None:
    seen: list[str] = []
    hooks: dict[str, list[Any]] = {
        "request": [lambda request: seen.append("request")], "response": [lambda response: seen.append("response")]
    }  # fmt: skip
    session.client.event_hooks = hooks
    client = HubClient()
    client.call(session.get(f"{HOME}/api"))
    assert seen == ["request", "response"]

    def fail(api: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        client.call(fail)
    assert session.client.event_hooks == hooks
    client.stop()
    with pytest.raises(StoppedError):
        HubClient.call(client, session.get(f"{HOME}/api"))


def test_a_call_that_is_stopped_sends_nothing_more(session: Session) -> None:
    client = HubClient()

    def stop_first(api: Any) -> httpx.Response:
        client.stop()
        return session.client.get(f"{HOME}/api")

    with pytest.raises(StoppedError):
        client.call(stop_first)
    assert session.requests == []


def test_errors_that_the_library_wraps(session: Session) -> None:
    tries: list[int] = []

    def wrapped(api: Any) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("while uploading") from httpx.ReadError("reset")
        return "sent"

    assert HubClient().call(wrapped) == "sent"

    def other(api: Any) -> None:
        raise RuntimeError("a mistake") from ValueError("of another kind")

    with pytest.raises(RuntimeError, match="a mistake"):
        HubClient().call(other)

    def closed(api: Any) -> None:
        session.client.close()
        raise RuntimeError("Cannot send a request, as the client has been closed.")

    with pytest.raises(httpx.NetworkError, match="the session is closed"):
        HubClient().call(closed, repeatable=False)


def test_pieces_of_files_are_counted_as_they_go(session: Session) -> None:
    sent: list[int] = []
    client = HubClient(on_sent=sent.append)

    def pieces() -> Iterator[bytes]:
        yield b"four"
        yield b"seventy"

    client.call(lambda api: session.client.put(f"{ELSEWHERE}/part", content=pieces()))
    assert sent == [4, 7]
    # A body that is there as a whole is no file.
    client.call(lambda api: session.client.post(f"{HOME}/api", content=b"whole"))
    assert sent == [4, 7]
    assert session.requests[0].read() == b"fourseventy"
    HubClient().call(lambda api: session.client.put(f"{ELSEWHERE}/part", content=pieces()))

    def stopping() -> Iterator[bytes]:
        yield b"one"
        client.stop()
        yield b"two"

    with pytest.raises(StoppedError):
        client.call(lambda api: session.client.put(f"{ELSEWHERE}/part", content=stopping()))
    assert sent[2:] == [3]


def test_the_library_is_quiet_and_put_back(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", logging.INFO)
    before = (constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DISABLE_PROGRESS_BARS, logger.level)
    filters = list(warnings.filters)

    def look(api: Any) -> tuple[Any, ...]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("a server's words", stacklevel=1)
        quiet = (constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DISABLE_PROGRESS_BARS)
        return (*quiet, logger.isEnabledFor(logging.CRITICAL), len(caught))

    assert HubClient().call(look) == (True, True, False, 0)
    assert (constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DISABLE_PROGRESS_BARS, logger.level) == before
    assert list(warnings.filters) == filters


def test_one_call_of_the_library_at_a_time(session: Session) -> None:
    at_work, most = [0], [0]

    def work(api: Any) -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.02)
        at_work[0] -= 1

    threads = [threading.Thread(target=lambda: HubClient().call(work)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
