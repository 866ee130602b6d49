"""What huggingface_hub and the network raise, in words that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from llmcompress.errors import HubError, LlmcompressError, WriteError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
# A part of the cache's path is a file.
_DISK_ERRORS |= {errno.ENOTDIR, errno.EEXIST}

_Words = tuple[str, str]
"""What happened, and what to do."""

OFFLINE: _Words = ("this run is offline, by HF_HUB_OFFLINE", "unset it to reach the Hub")
"""For what nothing in the cache can answer, such as a push."""

_REFUSALS: dict[str, _Words] = {
    "GatedRepoError": (
        "the model is gated: its owner wants its terms accepted first, and this account has no access yet",
        "open {page}, accept the terms, then {login}",
    ),
    "DisabledRepoError": ("the Hub has disabled this repository", "see {page}"),
    "RevisionNotFoundError": ("it has no revision {revision!r}", "{page}/tree/main shows branches, tags and commits"),
    "RepositoryNotFoundError": (
        "the Hub shows no model of this name: it is absent, misspelt, or private",
        "check the name at {page}; if it is private, {login}",
    ),
    "RemoteEntryNotFoundError": (
        "a file is not there at revision {revision!r}",
        "{page}/tree/{revision} shows the files",
    ),
}
_STATUSES: dict[int, _Words] = {
    401: ("the Hub wants a valid access token (401): none was sent, or it has expired", "{login}"),
    403: ("this account or token may not read it (403)", "see {page}, and the permissions of the token"),
    410: ("it is gone for good (410): its owner or the Hub has removed it", "see {page}"),
    413: ("the Hub finds it too large (413)", "see the limits of {page}"),
    416: ("the Hub has no such part of the file (416)", "see whether {page} opens, and try again"),
}
_STATUSES_OF_A_WRITE: dict[int, _Words] = {
    400: ("the Hub refuses what was sent (400)", "check the front matter of README.md, and the names of files"),
    403: (
        "this account or token may not write it, or the account's storage is full (403)",
        "check the token's permissions at https://huggingface.co/settings/tokens, and the account's plan; "
        "`create_pr` proposes a change to somebody else's repository",
    ),
}
_FAULTS: dict[str, _Words] = {
    "OverdueError": (
        "it was not done within its time limit of {limit} seconds",
        "{again}; LLMCOMPRESS_HUB_DEADLINE_S=SECONDS sets another limit",
    ),
    "SSL": (
        "the certificate of {endpoint}, or what it is sent through, was not accepted",
        "check the network and its proxy, and the clock; SSL_CERT_FILE names further authorities",
    ),
    "gaierror": ("the name of {endpoint} cannot be resolved", "check the network and HF_ENDPOINT{or_cached}"),
    "TooManyRedirects": ("the Hub redirects in a circle", "see whether {page} opens, and check HF_ENDPOINT"),
    "ReadTimeout WriteTimeout": (
        "{endpoint} did not answer in time",
        "{again}; HF_HUB_DOWNLOAD_TIMEOUT=SECONDS waits longer{or_cached}",
    ),
    "EndedEarlyError": ("the download ended early: fewer bytes came than the Hub states", "{again}"),
    "RemoteProtocolError ReadError WriteError": ("the connection to {endpoint} broke, several times", "{again}"),
    "Connect Network Timeout Proxy": ("no connection to {endpoint}", "check the network{or_cached}"),
    "JSONDecodeError DecodingError UnicodeDecodeError": (
        "the Hub's answer cannot be read",
        "see whether {page} opens; a proxy may answer in its place",
    ),
    "": ("the Hub could not be used ({kinds})", "see whether {page} opens, and try again"),
}
"""By words, one of which is part of an error's name; the first that fits counts."""


@contextmanager
def translated_errors(repo_id: str, revision: str, *, writing: bool = False) -> Iterator[None]:
    """Turn an error of the Hub, the network or the cache into a HubError or WriteError.

    A server's own words are never repeated: they can echo the token that was sent.
    """
    try:
        yield
    except LlmcompressError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a client raises
        # Not chained: the words of the cause would reach whoever prints the whole traceback.
        raise _translated(error, repo_id, revision, writing) from _CauseWithoutWordsError(error)


def unreachable_reason() -> str | None:
    """Ask the Hub for any answer at all, and say in plain words why none came; None: there is one."""
    from huggingface_hub import constants

    try:
        with translated_errors(constants.ENDPOINT, ""):
            httpx.head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HubError as error:
        return error.message
    return None


def unwritable_cache(error: BaseException, folder: str | os.PathLike[str], where: str) -> WriteError | None:
    """The error to raise where the disk of a Hugging Face cache refused; None: it was something else."""
    if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
        return None
    return WriteError(
        f"the Hugging Face cache {os.fspath(folder)} cannot be written: {error.strerror}",
        where=where,
        hint="make room or permission there, or set HF_HOME to another disk",
    )


class _CauseWithoutWordsError(Exception):
    """The kinds of the errors behind one."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(" < ".join(type(link).__name__ for link in _chain(error)))


def _translated(error: Exception, repo_id: str, revision: str, writing: bool) -> LlmcompressError:
    from huggingface_hub import constants, errors

    chain = _chain(error)
    kinds = sorted({type(link).__name__ for link in chain})
    # TLS and a firewall have numbers that also disks have.
    sending = any(isinstance(link, httpx.HTTPError) for link in chain)
    for link in chain:
        if not sending and (refused := unwritable_cache(link, constants.HF_HUB_CACHE, repo_id)):
            return refused
    refusal = next((link for link in chain if isinstance(link, errors.HfHubHTTPError)), None)
    alone = isinstance(error, errors.LocalEntryNotFoundError) and len(chain) == 1
    if refusal is not None:
        message, hint = _refusal_words(refusal, writing)
    elif writing and any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        message, hint = OFFLINE
    elif alone or any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        message = "revision {revision!r} is not in the local cache {cache}, and this run is offline"
        hint = "run it once without `offline` (and without HF_HUB_OFFLINE)"
    else:
        message, hint = next(words for named, words in _FAULTS.items() if _is_among(named, kinds))
    facts = {
        "page": f"{constants.ENDPOINT}/{repo_id}",
        "endpoint": constants.ENDPOINT,
        "cache": constants.HF_HUB_CACHE,
        "revision": revision,
        "login": "run `hf auth login`, or set HF_TOKEN",
        "limit": next((str(link) for link in chain if type(link).__name__ == "OverdueError"), ""),
        "kinds": ", ".join(kinds),
        "again": "run it again: nothing is sent twice"
        if writing
        else "what came is kept: run it again, and it goes on there",
        "or_cached": "" if writing else ", or use `offline` if it is cached",
    }
    return HubError(message.format(**facts), where=repo_id, hint=hint.format(**facts))


def _is_among(words: str, kinds: Sequence[str]) -> bool:
    return not words or any(word in kind for word in words.split() for kind in kinds)


def _refusal_words(refusal: Any, writing: bool) -> _Words:
    for kind in type(refusal).__mro__:
        if kind.__name__ in _REFUSALS:
            return _REFUSALS[kind.__name__]
    status = refusal.response.status_code
    if status == 429:
        seconds = str(refusal.response.headers.get("Retry-After", ""))
        wait = f"in {seconds} seconds" if seconds.isdigit() else "later"
        return f"too many requests (429): the Hub asks to come back {wait}", "wait; {login} for a higher limit"
    if status >= 500:
        return f"the Hub has a fault ({status})", "try again later{or_cached}"
    known = _STATUSES | (_STATUSES_OF_A_WRITE if writing else {})
    return known.get(status, (f"the Hub answered {status}", "see whether {page} opens"))


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: huggingface_hub hides a status behind a 'not in the cache' of its own."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
