"""One HTTP client for the Hub: time limits, patience, and a token that goes to no other host.

huggingface_hub's own client waits for ever, passes over ``Retry-After`` and reads what a server says into its errors.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx

from llmcompress.errors import UsageError
from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between the tries of one request."""
LONGEST_WAIT_S = 300.0
"""A server that asks for more patience than this gets none."""
LIMIT_VARIABLE = "LLMCOMPRESS_HUB_DEADLINE_S"

_TRIES_TO_CONNECT = 3
_LOOK_S = 0.2
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_BASE_LIMIT_S = 300.0
_SLOWEST_BYTES_PER_S = 250_000
_ANSWER_TO_A_WRITE_S = 60.0
_TOLD = ("X-Error-Code", "X-Error-Message", "Retry-After", "RateLimit")


class UnansweredError(Exception):
    """Every try of a request failed; the cause is the last one."""


class OverdueError(Exception):
    """The time limit of the whole operation has passed, in seconds."""


class StoppedError(Exception):
    """Another part of the same operation has failed."""


def limit_s(num_bytes: int) -> float:
    """Seconds that an operation may take which moves so many bytes: ``LLMCOMPRESS_HUB_DEADLINE_S`` if it is set.

    Raises:
        UsageError: the variable is no number of seconds.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return _BASE_LIMIT_S + num_bytes / _SLOWEST_BYTES_PER_S
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{LIMIT_VARIABLE} is {text!r}; a number of seconds is accepted, such as 3600")
    return value


class HubClient(httpx.Client):
    """A client for one operation: it ends with the operation's time limit.

    A stall is as long as ``HF_HUB_DOWNLOAD_TIMEOUT`` says. A request is sent again after a fault of the network or
    the server, when that cannot do a thing twice; ``Retry-After`` is waited for, within bounds.

    Raises, besides httpx's errors:
        UnansweredError: no try came through.
        OverdueError: the time limit has passed.
        StoppedError: ``stop`` was called.
    """

    def __init__(self, limit_s: float, *, on_sent: Callable[[int], None] | None = None) -> None:
        """Start the clock; ``on_sent`` is told the sizes of the pieces of files that go out."""
        from huggingface_hub import constants

        super().__init__(follow_redirects=True, event_hooks={"request": [_keep_token_home]}, verify=_authorities())
        self._stall_s = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._limit_s = limit_s
        self._end = time.monotonic() + limit_s
        self._stopped = threading.Event()
        self._on_sent = on_sent

    def stop(self) -> None:
        """Let every other thread that uses this client come to its end."""
        self._stopped.set()

    def left_s(self) -> float:
        """Seconds until the time limit.

        Raises:
            OverdueError: there are none.
            StoppedError: ``stop`` was called.
        """
        if self._stopped.is_set():
            raise StoppedError
        left = self._end - time.monotonic()
        if left <= 0:
            raise OverdueError(f"{self._limit_s:g}")
        return left

    def pause(self, seconds: float) -> None:
        """Wait, not beyond the time limit."""
        self._stopped.wait(min(seconds, self.left_s()))
        self.left_s()

    def json(self, url: str, *, params: Mapping[str, Any] | None = None) -> tuple[Any, str | None]:
        """Get a JSON document; returns it and the address of its next page, if it has one.

        Raises HfHubHTTPError for what the Hub refuses, ValueError for what is no JSON.
        """
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        response = self.get(url, params=params, headers=build_hf_headers())
        raise_for_status(response)
        return response.json(), response.links.get("next", {}).get("url")

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request, again if need be. The body of a file is sent once: who opened it has to rewind it."""
        again = isinstance(request.stream, httpx.ByteStream)
        if not again and self._on_sent is not None:
            assert isinstance(request.stream, httpx.SyncByteStream)
            request.stream = _Counted(request.stream, self._on_sent)
        writes = request.method not in ("GET", "HEAD")
        answer_s = max(self._stall_s, _ANSWER_TO_A_WRITE_S) if writes else self._stall_s
        limits = dict.fromkeys(("connect", "write", "pool"), self._stall_s) | {"read": answer_s}
        request.extensions = {**request.extensions, "timeout": limits}
        # A second pull request would be opened by a commit whose answer was lost.
        once = writes and "/commit/" in request.url.path and "create_pr" in request.url.params
        for number, pause in enumerate((*PAUSES_S, None), start=1):
            try:
                response = self._send_in_time(request, options)
            except httpx.TransportError as error:
                connecting = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if not again and connecting:
                    # huggingface_hub closes its client over a failed connection, and then sends with the closed one.
                    raise httpx.NetworkError(str(error)) from error
                if not again:
                    raise
                hopeless = connecting and (number >= _TRIES_TO_CONNECT or _is_refused_certificate(error))
                if pause is None or hopeless or (once and not connecting):
                    raise UnansweredError from error
                self.pause(pause)
                continue
            if response.status_code not in _AGAIN or (once and response.status_code != 429):
                return response
            wait = _asked_wait_s(response)
            if pause is None or (wait or 0) > min(LONGEST_WAIT_S, self.left_s()):
                if again:
                    # Not returned: huggingface_hub would begin tries of its own.
                    response.close()
                    raise_for_status(response)
                return response
            if not again:
                self.pause(wait or 0)
                return response
            response.close()
            self.pause(max(wait or 0, pause))
        raise AssertionError("the last try returns or raises")

    def _send_in_time(self, request: httpx.Request, options: dict[str, Any]) -> httpx.Response:
        """Send in a thread of its own: a server that drips bytes into its headers never stalls and never ends."""
        answer: list[httpx.Response | BaseException] = []

        def send() -> None:
            try:
                answer.append(httpx.Client.send(self, request, **options))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                answer.append(error)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(min(self.left_s(), _LOOK_S))
        if isinstance(answer[0], BaseException):
            raise answer[0]
        return answer[0]


@cache
def _authorities() -> ssl.SSLContext:
    """Read once: that takes as long as several requests."""
    return httpx.create_ssl_context()


class _Counted(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, on_sent: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_sent = on_sent

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            yield block
            self._on_sent(len(block))


def raise_for_status(response: httpx.Response) -> None:
    """Raise huggingface_hub's error for a refusal, without the server's words: they can echo the token or never end."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.is_error:
        told = {name: response.headers[name] for name in _TOLD if name in response.headers}
        hf_raise_for_status(httpx.Response(response.status_code, headers=told, request=response.request))


def _keep_token_home(request: httpx.Request) -> None:
    """Take the token out of what goes to another host: a redirect, a next page, or an upload's address may name one."""
    from huggingface_hub import constants

    home = httpx.URL(constants.ENDPOINT)
    if (request.url.scheme, request.url.host, request.url.port) != (home.scheme, home.host, home.port):
        request.headers.pop("Authorization", None)
        request.headers.pop("Cookie", None)


def _asked_wait_s(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, as a number or a date (RFC 9110, 10.2.3), or by the Hub's rate limits."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        pass
    limits = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return float(limits.reset_in_seconds) if limits is not None else None


def _is_refused_certificate(error: BaseException) -> bool:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ssl.SSLError):
            return True
        link = link.__cause__ or link.__context__
    return False


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def lent(client: HubClient) -> Iterator[HfApi]:
    """The API with our time limits and patience; its bars, logs and warnings, which repeat a server's words, are off.

    Large files go by the Git LFS protocol over HTTP: what the Xet library sends cannot be bounded or watched from here.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import _http

    logger = logging.getLogger("huggingface_hub")
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(replaced(_http, "_GLOBAL_CLIENT", client))
        stack.enter_context(replaced(constants, "HF_HUB_DISABLE_XET", True))
        stack.enter_context(replaced(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True))
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield HfApi()
