"""How long to wait for the Hub: pauses between tries, what a server asks for, and the limit of an operation."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from llmcompress.errors import UsageError

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between the tries of one request."""
LONGEST_WAIT_S = 300.0
"""A server that asks for more patience than this gets none."""
LIMIT_VARIABLE = "LLMCOMPRESS_HUB_DEADLINE_S"
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Refusals that may be over soon."""

_TRIES_TO_CONNECT = 3
_BASE_LIMIT_S = 300.0
_SLOWEST_BYTES_PER_S = 250_000


def limit_s(num_bytes: int) -> float:
    """Seconds that an operation may take which moves so many bytes: ``LLMCOMPRESS_HUB_DEADLINE_S`` if it is set.

    Raises:
        UsageError: the variable is not a number of seconds.
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


def pause_s(error: httpx.HTTPError, failures: int, repeatable: bool) -> float | None:
    """Seconds before the next try, after so many failures in a row; None: there is none.

    Args:
        error: The last failure.
        failures: 0 where the last try failed and brought something all the same.
        repeatable: False where a second try would do a thing twice, if only the answer to the first was lost.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if failures > len(PAUSES_S):
        return None
    pause = PAUSES_S[failures - 1] if failures else 0.0
    if isinstance(error, HfHubHTTPError):
        status, asked = error.response.status_code, _asked_wait_s(error.response)
        again = status == 429 or (repeatable and status in TRANSIENT_STATUSES)
        return max(pause, asked) if again and asked <= LONGEST_WAIT_S else None
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return None if failures >= _TRIES_TO_CONNECT else pause
    return pause if repeatable else None


def _asked_wait_s(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, as a number or a date (RFC 9110, 10.2.3), or by the Hub's rate limits."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        pass
    limits = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return float(limits.reset_in_seconds) if limits is not None else 0.0
