"""What huggingface_hub and the network raise, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx

from llmcompress.errors import HubError, LlmcompressError, WriteError

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


class _Attempt(NamedTuple):
    """What was to be done, for the words about its failure."""

    repo_id: str
    revision: str
    writing: bool

    @property
    def page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repo_id}"

    @property
    def again(self) -> str:
        if self.writing:
            return "run it again: nothing is sent twice"
        return "what came is kept: run it again, and it goes on there"

    @property
    def or_cached(self) -> str:
        return "" if self.writing else ", or use --offline if it is cached"


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
        raise _translated(error, _Attempt(repo_id, revision, writing)) from _CauseWithoutWordsError(error)


class _CauseWithoutWordsError(Exception):
    """The kinds of the errors behind one."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(" < ".join(type(link).__name__ for link in _chain(error)))


def _translated(error: Exception, attempt: _Attempt) -> LlmcompressError:
    from huggingface_hub import constants, errors

    chain = _chain(error)
    refusal = next((link for link in chain if isinstance(link, errors.HfHubHTTPError)), None)
    if refusal is not None:
        message, hint = _named_refusal(refusal, attempt) or _status(refusal.response, attempt)
        return HubError(message, where=attempt.repo_id, hint=hint)
    # TLS and a firewall have numbers that also disks have.
    sending = any(isinstance(link, httpx.TransportError) for link in chain)
    for link in chain:
        if isinstance(link, OSError) and link.errno in _DISK_ERRORS and not sending:
            return WriteError(
                f"the Hugging Face cache {constants.HF_HUB_CACHE} cannot be written: {link.strerror}",
                where=attempt.repo_id,
                hint="make room or permission there, or set HF_HOME to another disk",
            )
    alone = isinstance(error, errors.LocalEntryNotFoundError) and len(chain) == 1
    if alone or any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        return HubError(
            f"revision {attempt.revision!r} is not in the local cache {constants.HF_HUB_CACHE}, "
            "and this run is offline",
            where=attempt.repo_id,
            hint="run it once without --offline (and without HF_HUB_OFFLINE)",
        )
    message, hint = _network(chain, attempt)
    return HubError(message, where=attempt.repo_id, hint=hint)


def _named_refusal(refusal: BaseException, attempt: _Attempt) -> tuple[str, str] | None:
    """Message and hint where the Hub says more than a status."""
    from huggingface_hub import errors

    page, revision = attempt.page, attempt.revision
    if isinstance(refusal, errors.GatedRepoError):
        return (
            "the model is gated: its owner wants its terms accepted first, and this account has no access yet",
            f"open {page}, accept the terms, then {_LOGIN}",
        )
    if isinstance(refusal, errors.DisabledRepoError):
        return "the Hub has disabled this repository", f"see {page}"
    if isinstance(refusal, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}", f"{page}/tree/main shows branches, tags and commits"
    if isinstance(refusal, errors.RepositoryNotFoundError):
        return (
            "the Hub shows no model of this name: it is absent, misspelt, or private",
            f"check the name at {page}; if it is private, {_LOGIN}",
        )
    if isinstance(refusal, errors.RemoteEntryNotFoundError):
        return f"a file is not there at revision {revision!r}", f"{page}/tree/{revision} shows the files"
    return None


def _status(response: httpx.Response, attempt: _Attempt) -> tuple[str, str]:
    status, page = response.status_code, attempt.page
    if status == 429:
        seconds = str(response.headers.get("Retry-After", ""))
        wait = f"in {seconds} seconds" if seconds.isdigit() else "later"
        return f"too many requests (429): the Hub asks to come back {wait}", f"wait; {_LOGIN} for a higher limit"
    if status >= 500:
        return f"the Hub has a fault ({status})", f"try again later{attempt.or_cached}"
    known = {
        401: ("the Hub wants a valid access token (401): none was sent, or it has expired", _LOGIN),
        403: ("this account or token may not read it (403)", f"see {page}, and the permissions of the token"),
        410: ("it is gone for good (410): its owner or the Hub has removed it", f"see {page}"),
        413: ("the Hub finds it too large (413)", f"see the limits of {page}"),
        416: ("the Hub has no such part of the file (416)", f"see whether {page} opens, and try again"),
    }
    if attempt.writing:
        known[400] = (
            "the Hub refuses what was sent (400)",
            "check the front matter of README.md, and the names of files",
        )
        known[403] = (
            "this account or token may not write it, or the account's storage is full (403)",
            "check the token's permissions at https://huggingface.co/settings/tokens, and the account's plan; "
            "--create-pr proposes a change to somebody else's repository",
        )
    return known.get(status, (f"the Hub answered {status}", f"see whether {page} opens"))


def _network(chain: list[BaseException], attempt: _Attempt) -> tuple[str, str]:
    from huggingface_hub import constants

    kinds = {type(link).__name__ for link in chain}
    endpoint, again, or_cached = constants.ENDPOINT, attempt.again, attempt.or_cached
    if "OverdueError" in kinds:
        limit = next(str(link) for link in chain if type(link).__name__ == "OverdueError")
        return (
            f"it was not done within its time limit of {limit} seconds",
            f"{again}; LLMCOMPRESS_HUB_DEADLINE_S=SECONDS sets another limit",
        )
    if any("SSL" in kind for kind in kinds):
        return (
            f"the certificate of {endpoint}, or what it is sent through, was not accepted",
            "check the network and its proxy, and the clock; SSL_CERT_FILE names further authorities",
        )
    if "gaierror" in kinds:
        return f"the name of {endpoint} cannot be resolved", f"check the network and HF_ENDPOINT{or_cached}"
    if "TooManyRedirects" in kinds:
        return "the Hub redirects in a circle", f"see whether {attempt.page} opens, and check HF_ENDPOINT"
    if kinds & {"ReadTimeout", "WriteTimeout"}:
        return f"{endpoint} did not answer in time", f"{again}; HF_HUB_DOWNLOAD_TIMEOUT=SECONDS waits longer{or_cached}"
    if "EndedEarlyError" in kinds:
        return "the download ended early: fewer bytes came than the Hub states", again
    if kinds & {"RemoteProtocolError", "ReadError", "WriteError"}:
        return f"the connection to {endpoint} broke, several times", again
    if any(word in kind for kind in kinds for word in ("Connect", "Network", "Timeout", "Proxy")):
        return f"no connection to {endpoint}", f"check the network{or_cached}"
    if kinds & {"JSONDecodeError", "DecodingError", "UnicodeDecodeError"}:
        return "the Hub's answer cannot be read", f"see whether {attempt.page} opens; a proxy may answer in its place"
    return (
        f"the Hub could not be used ({', '.join(sorted(kinds))})",
        f"see whether {attempt.page} opens, and try again",
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: huggingface_hub hides a status behind a 'not in the cache' of its own."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
