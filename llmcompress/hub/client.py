"""Requests to the Hub through huggingface_hub's session: time limits, patience, and a token that stays at home.

On its own the library waits forever, ignores ``Retry-After`` and repeats a server's words in its errors.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

import httpx

from llmcompress.hub.patience import TRANSIENT_STATUSES, limit_s, pause_s
from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")

_LOOK_S = 0.2
_ANSWER_TO_A_WRITE_S = 60.0
_KEPT_HEADERS = ("X-Error-Code", "X-Error-Message", "Retry-After", "RateLimit")
_ONE_AT_A_TIME = threading.RLock()


class OverdueError(Exception):
    """The time limit of the whole operation has passed, in seconds."""


class StoppedError(Exception):
    """Another part of the same operation has failed."""


class HubClient:
    """The requests of one operation, which ends with its time limit.

    A stall is as long as ``HF_HUB_DOWNLOAD_TIMEOUT`` says. After a fault of the network or the server a request is
    sent again; ``Retry-After`` is waited for, within bounds.

    Methods raise, next to httpx's and huggingface_hub's errors:
        OverdueError: the time limit has passed.
        StoppedError: ``stop`` was called.
    """

    def __init__(self, num_bytes: int = 0, *, on_sent: Callable[[int], None] | None = None) -> None:
        """Start the clock for an operation that moves so many bytes.

        ``on_sent`` gets the sizes of the pieces of files that go out. Raises UsageError as ``limit_s``.
        """
        self._limit_s = limit_s(num_bytes)
        self._end = time.monotonic() + self._limit_s
        self._stopped = threading.Event()
        self._on_sent = on_sent

    def stop(self) -> None:
        """Let every other thread that uses this client come to its end."""
        self._stopped.set()

    def left_s(self) -> float:
        """Seconds until the time limit."""
        if self._stopped.is_set():
            raise StoppedError
        left = self._end - time.monotonic()
        if left <= 0:
            raise OverdueError(f"{self._limit_s:g}")
        return left

    def read(self, url: str) -> bytes:
        """Get a document."""

        def get() -> bytes:
            with self.stream(url) as response:
                return b"".join(self.blocks(response))

        return self.patiently(get)

    @contextmanager
    def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """Send one GET request, once; the body is to be read by ``blocks``. The token goes to the Hub alone."""
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        session = get_session()
        request = session.build_request(
            "GET",
            url,
            headers={**build_hf_headers(token=None if _is_home(httpx.URL(url)) else False), **(headers or {})},
            extensions={"timeout": _stall_limits("GET")},
        )
        response = self.in_time(lambda: session.send(request, stream=True, follow_redirects=True))
        try:
            raise_for_status(response)
            yield response
        finally:
            response.close()

    def blocks(self, response: httpx.Response) -> Iterator[bytes]:
        """The body, as it comes."""
        for block in response.iter_bytes():
            self.left_s()
            yield block

    def call(
        self,
        function: Callable[[HfApi], Result],
        *,
        repeatable: bool = True,
        on_response: Callable[[httpx.Response], None] | None = None,
    ) -> Result:
        """Let huggingface_hub's API do what ``function`` says, within our limits.

        Args:
            function: Given the API; called again after a fault.
            repeatable: As for ``patiently``.
            on_response: Given every answer before its body is read.
        """
        from huggingface_hub import HfApi

        def attempt() -> Result:
            with self._watched_session(on_response) as session:
                try:
                    return self.in_time(lambda: function(HfApi()))
                except RuntimeError as error:
                    # The library closes its session over a failed connection, and then sends with the closed one.
                    if session.is_closed:
                        raise httpx.NetworkError("the session is closed") from error
                    # It also puts one around what an upload failed of.
                    if isinstance(error.__cause__, httpx.HTTPError):
                        raise error.__cause__ from None
                    raise

        with _ONE_AT_A_TIME, _quiet_library():
            return self.patiently(attempt, repeatable=repeatable)

    def patiently(
        self,
        attempt: Callable[[], Result],
        *,
        repeatable: bool = True,
        done: Callable[[], int] = lambda: 0,
        enough: int = 1,
    ) -> Result:
        """Call ``attempt`` until it succeeds or further tries are pointless.

        Args:
            attempt: What may fail.
            repeatable: False where a second call would do a thing twice, if only the answer to the first was lost.
            done: How much is there; a try that brings ``enough`` more is not a failure.
            enough: At least that much.
        """
        from huggingface_hub.errors import HfHubHTTPError

        failures = 0
        while True:
            before = done()
            try:
                return attempt()
            except (httpx.TransportError, httpx.DecodingError, HfHubHTTPError) as error:
                failures = 0 if done() - before >= enough else failures + 1
                pause = pause_s(error, failures, repeatable)
                if pause is None or pause > self.left_s():
                    raise
            self._stopped.wait(pause)
            self.left_s()

    def in_time(self, attempt: Callable[[], Result]) -> Result:
        """Call in a thread of its own: a server that drips bytes into its headers never stalls and never ends."""
        outcome: Future[Result] = Future()

        def run() -> None:
            try:
                outcome.set_result(attempt())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                outcome.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while not outcome.done():
            wait([outcome], timeout=min(self.left_s(), _LOOK_S))
        return outcome.result()

    @contextmanager
    def _watched_session(self, on_response: Callable[[httpx.Response], None] | None) -> Iterator[httpx.Client]:
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        session = get_session()
        before = session.event_hooks
        session.event_hooks = {
            "request": [*before["request"], self._bound],
            "response": [*before["response"], _refuse_early, *([on_response] if on_response else [])],
        }
        try:
            yield session
        finally:
            session.event_hooks = before

    def _bound(self, request: httpx.Request) -> None:
        """Put our limits on a request of the library; an upload's or a next page's address may name another host."""
        self.left_s()
        request.extensions = {**request.extensions, "timeout": _stall_limits(request.method)}
        if not _is_home(request.url):
            request.headers.pop("Authorization", None)
            request.headers.pop("Cookie", None)
        if not isinstance(request.stream, httpx.ByteStream):
            assert isinstance(request.stream, httpx.SyncByteStream)
            request.stream = _CountedStream(request.stream, self._count)

    def _count(self, num_bytes: int) -> None:
        self.left_s()
        if self._on_sent is not None:
            self._on_sent(num_bytes)


class _CountedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            yield block
            self._count(len(block))


def raise_for_status(response: httpx.Response) -> None:
    """Raise huggingface_hub's error for a refusal, without the server's words: they can echo the token or never end."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.is_error:
        kept = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        hf_raise_for_status(httpx.Response(response.status_code, headers=kept, request=response.request))


def _refuse_early(response: httpx.Response) -> None:
    """Raise before the library begins tries of its own, which ignore ``Retry-After``."""
    if response.status_code in TRANSIENT_STATUSES:
        raise_for_status(response)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without huggingface_hub's bars, logs and warnings, which repeat a server's words.

    Large files go by the Git LFS protocol over HTTP: what the Xet library sends cannot be bounded or watched from here.
    Its switch, ``HF_HUB_DISABLE_XET``, is read when the library is imported, so it is set where that puts it.
    """
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    with ExitStack() as stack:
        stack.enter_context(replaced(constants, "HF_HUB_DISABLE_XET", True))
        stack.enter_context(replaced(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True))
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _is_home(url: httpx.URL) -> bool:
    from huggingface_hub import constants

    home = httpx.URL(constants.ENDPOINT)
    return (url.scheme, url.host, url.port) == (home.scheme, home.host, home.port)


def _stall_limits(method: str) -> dict[str, float]:
    from huggingface_hub import constants

    stall_s = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    answer_s = stall_s if method in ("GET", "HEAD") else max(stall_s, _ANSWER_TO_A_WRITE_S)
    return {"connect": stall_s, "write": stall_s, "pool": stall_s, "read": answer_s}
