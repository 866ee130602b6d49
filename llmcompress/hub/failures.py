"""What huggingface_hub and the network raise, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from llmcompress.errors import HubError, LlmcompressError, WriteError

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


@contextmanager
def explained(repo_id: str, revision: str, repo_type: str = "model", *, writing: bool = False) -> Iterator[None]:
    """Turn an error of the Hub, the network or the cache into a HubError or WriteError.

    A server's own words are never repeated: they can echo the token that was sent.
    """
    try:
        yield
    except LlmcompressError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a client raises
        # Not chained: the words of the cause would reach whoever prints the whole traceback.
        raise _explain(error, repo_id, revision, repo_type, writing) from _KindsError(error)


class _KindsError(Exception):
    """The kinds of the errors behind one, without their words."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(" < ".join(type(link).__name__ for link in _chain(error)))


def _explain(error: Exception, repo_id: str, revision: str, repo_type: str, writing: bool) -> LlmcompressError:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"

    def hub(message: str, hint: str) -> HubError:
        return HubError(message, where=repo_id, hint=hint)

    chain = _chain(error)
    for link in chain:
        if isinstance(link, errors.GatedRepoError):
            return hub(
                "the model is gated: its owner wants its terms accepted first, and this account has no access yet",
                f"open {page}, accept the terms, then {_LOGIN}",
            )
        if isinstance(link, errors.DisabledRepoError):
            return hub("the Hub has disabled this repository", f"see {page}")
        if isinstance(link, errors.RevisionNotFoundError):
            return hub(f"it has no revision {revision!r}", f"{page}/tree/main shows branches, tags and commits")
        if isinstance(link, errors.RepositoryNotFoundError):
            return hub(
                f"the Hub shows no {repo_type} of this name: it is absent, misspelt, or private",
                f"check the name at {page}; if it is private, {_LOGIN}",
            )
        if isinstance(link, errors.RemoteEntryNotFoundError):
            return hub(f"a file is not there at revision {revision!r}", f"{page}/tree/{revision} shows the files")
        if isinstance(link, errors.HfHubHTTPError):
            return _http(link, hub, page, writing)
    # TLS and a firewall have numbers that also disks have.
    sending = any(isinstance(link, httpx.TransportError) for link in chain)
    for link in chain:
        if isinstance(link, OSError) and link.errno in _DISK_ERRORS and not sending:
            return WriteError(
                f"the Hugging Face cache {constants.HF_HUB_CACHE} cannot be written: {link.strerror}",
                where=repo_id,
                hint="make room or permission there, or set HF_HOME to another disk",
            )
    kinds = {type(link).__name__ for link in chain}
    alone = isinstance(error, errors.LocalEntryNotFoundError) and len(chain) == 1
    if alone or "OfflineModeIsEnabled" in kinds:
        return hub(
            f"revision {revision!r} is not in the local cache {constants.HF_HUB_CACHE}, and this run is offline",
            "run it once without --offline (and without HF_HUB_OFFLINE)",
        )
    return _network(chain, hub, page, writing)


def _network(chain: list[BaseException], hub: Any, page: str, writing: bool) -> LlmcompressError:
    from huggingface_hub import constants

    kinds = {type(link).__name__ for link in chain}
    again = (
        "run it again: nothing is sent twice" if writing else "what came is kept: run it again, and it goes on there"
    )
    cached = "" if writing else ", or use --offline if it is cached"
    answer: LlmcompressError
    if "OverdueError" in kinds:
        limit = next(str(link) for link in chain if type(link).__name__ == "OverdueError")
        answer = hub(
            f"it was not done within its time limit of {limit} seconds",
            f"{again}; LLMCOMPRESS_HUB_DEADLINE_S=SECONDS sets another limit",
        )
    elif any("SSL" in kind for kind in kinds):
        answer = hub(
            f"the certificate of {constants.ENDPOINT}, or what it is sent through, was not accepted",
            "check the network and its proxy, and the clock; SSL_CERT_FILE names further authorities",
        )
    elif "gaierror" in kinds:
        answer = hub(
            f"the name of {constants.ENDPOINT} cannot be resolved", f"check the network and HF_ENDPOINT{cached}"
        )
    elif "TooManyRedirects" in kinds:
        answer = hub("the Hub redirects in a circle", f"see whether {page} opens, and check HF_ENDPOINT")
    elif "ReadTimeout" in kinds or "WriteTimeout" in kinds:
        answer = hub(
            f"{constants.ENDPOINT} did not answer in time",
            f"{again}; HF_HUB_DOWNLOAD_TIMEOUT=SECONDS waits longer{cached}",
        )
    elif "_ShortError" in kinds:
        answer = hub("the download ended early: fewer bytes came than the Hub states", again)
    elif "RemoteProtocolError" in kinds or "ReadError" in kinds or "WriteError" in kinds:
        answer = hub(f"the connection to {constants.ENDPOINT} broke, several times", again)
    elif any(word in kind for kind in kinds for word in ("Connect", "Network", "Timeout", "Proxy")):
        answer = hub(f"no connection to {constants.ENDPOINT}", f"check the network{cached}")
    elif kinds & {"JSONDecodeError", "DecodingError", "UnicodeDecodeError"}:
        answer = hub("the Hub's answer cannot be read", f"see whether {page} opens; a proxy may answer in its place")
    else:
        answer = hub(
            f"the Hub could not be used ({', '.join(sorted(kinds))})", f"see whether {page} opens, and try again"
        )
    return answer


def _http(error: Any, hub: Any, page: str, writing: bool) -> HubError:
    response = error.response
    status = response.status_code
    if status == 401:
        answer = hub("the Hub wants a valid access token (401): none was sent, or it has expired", _LOGIN)
    elif status == 400 and writing:
        answer = hub(
            "the Hub refuses what was sent (400)", "check the front matter of README.md, and the names of files"
        )
    elif status == 403 and writing:
        answer = hub(
            "this account or token may not write it, or the account's storage is full (403)",
            "check the token's permissions at https://huggingface.co/settings/tokens, and the account's plan; "
            "--create-pr proposes a change to somebody else's repository",
        )
    elif status == 403:
        answer = hub("this account or token may not read it (403)", f"see {page}, and the permissions of the token")
    elif status == 410:
        answer = hub("it is gone for good (410): its owner or the Hub has removed it", f"see {page}")
    elif status == 413:
        answer = hub("the Hub finds it too large (413)", f"see the limits of {page}")
    elif status == 416:
        answer = hub("the Hub has no such part of the file (416)", f"see whether {page} opens, and try again")
    elif status == 429:
        seconds = str(response.headers.get("Retry-After", ""))
        wait = f"in {seconds} seconds" if seconds.isdigit() else "later"
        answer = hub(f"too many requests (429): the Hub asks to come back {wait}", f"wait; {_LOGIN} for a higher limit")
    elif status >= 500:
        cached = "" if writing else ", or use --offline if it is cached"
        answer = hub(f"the Hub has a fault ({status})", f"try again later{cached}")
    else:
        answer = hub(f"the Hub answered {status}", f"see whether {page} opens")
    assert isinstance(answer, HubError)
    return answer


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: huggingface_hub hides a status behind a 'not in the cache' of its own."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
